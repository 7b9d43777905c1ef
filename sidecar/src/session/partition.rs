//! Partitions of AWS: the ids in ARNs and the domains of hosts.

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Partition {
    /// The second part of its ARNs.
    pub(crate) id: &'static str,
    /// Domain of its public endpoints.
    pub(crate) suffix: &'static str,
    /// Domain of its dual-stack endpoints.
    pub(crate) dual_stack_suffix: &'static str,
    /// Prefixes of its regions.
    regions: &'static [&'static str],
}

/// Returns the partition of a region: `aws` for an unknown one, as in the AWS SDKs.
pub(crate) fn partition(region: &str) -> &'static Partition {
    let begins =
        |partition: &&Partition| partition.regions.iter().any(|prefix| region.starts_with(prefix));
    PARTITIONS.iter().find(begins).unwrap_or(&COMMERCIAL)
}

/// Whether every account may use `region` without enabling it first: those from before 20 March 2019, to which none is
/// added, and all of the other partitions (AWS Account Management, "Enable or disable AWS Regions in your account").
pub(crate) fn is_enabled_by_default(region: &str) -> bool {
    partition(region).id != COMMERCIAL.id || ENABLED_BY_DEFAULT.contains(&region)
}

/// The regions of the partition `aws` that need no opt-in.
const ENABLED_BY_DEFAULT: [&str; 17] = [
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
];

static COMMERCIAL: Partition = entry("aws", "amazonaws.com", "api.aws", &[]);

/// The partition data of the AWS SDKs (`endpoint_lib.rs` of `aws-sdk-ssm` 1.133.0).
static PARTITIONS: [Partition; 7] = [
    entry("aws-cn", "amazonaws.com.cn", "api.amazonwebservices.com.cn", &["cn-"]),
    entry("aws-us-gov", "amazonaws.com", "api.aws", &["us-gov-"]),
    entry("aws-eusc", "amazonaws.eu", "api.amazonwebservices.eu", &["eusc-"]),
    entry("aws-iso", "c2s.ic.gov", "api.aws.ic.gov", &["us-iso-"]),
    entry("aws-iso-b", "sc2s.sgov.gov", "api.aws.scloud", &["us-isob-"]),
    entry("aws-iso-e", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk", &["eu-isoe-"]),
    entry("aws-iso-f", "csp.hci.ic.gov", "api.aws.hci.ic.gov", &["us-isof-"]),
];

const fn entry(
    id: &'static str,
    suffix: &'static str,
    dual_stack_suffix: &'static str,
    regions: &'static [&'static str],
) -> Partition {
    Partition { id, suffix, dual_stack_suffix, regions }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_since_2019_and_unknown_ones_must_be_enabled_first() {
        for (region, expected) in [
            ("ap-northeast-1", true),
            ("us-gov-west-1", true),
            ("cn-north-1", true),
            ("ap-east-1", false),
            ("me-south-1", false),
            ("xx-new-1", false),
        ] {
            assert_eq!(is_enabled_by_default(region), expected, "{region}");
        }
    }

    #[test]
    fn each_region_is_of_the_partition_that_its_name_begins_with() {
        for (region, id, suffix) in [
            ("eu-west-1", "aws", "amazonaws.com"),
            ("cn-northwest-1", "aws-cn", "amazonaws.com.cn"),
            ("us-gov-west-1", "aws-us-gov", "amazonaws.com"),
            ("eusc-de-east-1", "aws-eusc", "amazonaws.eu"),
            ("us-iso-east-1", "aws-iso", "c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov"),
            ("xx-new-1", "aws", "amazonaws.com"),
        ] {
            let partition = partition(region);
            assert_eq!((partition.id, partition.suffix), (id, suffix), "{region}");
        }
    }
}
