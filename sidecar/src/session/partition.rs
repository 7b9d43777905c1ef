//! The parts that AWS is divided into: what ARNs begin with, and where hosts are.

/// A partition of AWS.
#[derive(Debug, Eq, PartialEq)]
pub struct Partition {
    /// Second part of its ARNs.
    pub id: &'static str,
    /// Domain of its public endpoints.
    pub suffix: &'static str,
    /// Domain of those that have IPv6 as well.
    pub dual_stack_suffix: &'static str,
    /// What its regions begin with.
    regions: &'static [&'static str],
}

/// The partition of a region; one that is not known is of `aws`, as AWS's SDKs have it.
pub fn partition(region: &str) -> &'static Partition {
    let begins =
        |partition: &&Partition| partition.regions.iter().any(|prefix| region.starts_with(prefix));
    PARTITIONS.iter().find(begins).unwrap_or(&COMMERCIAL)
}

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
