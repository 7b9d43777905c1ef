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
