//! Names of AWS regions: their form, the known ones, and what a wrong name most likely means.

/// Whether `name` has the form of a region's name: words of letters and a number, such as `ap-northeast-1`,
/// `us-gov-west-1` and `eusc-de-east-1`. A region that is newer than this crate passes.
pub fn is_well_formed(name: &str) -> bool {
    let parts: Vec<_> = name.split('-').collect();
    let [area, words @ .., number] = parts.as_slice() else { return false };
    let is_word = |word: &&str| {
        !word.is_empty()
            && word.len() <= LONGEST_WORD
            && word.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    (2..=4).contains(&area.len())
        && is_word(area)
        && (1..=3).contains(&words.len())
        && words.iter().all(is_word)
        && (1..=2).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether this crate knows the region. New ones are added to AWS every year.
pub fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|(known, _)| *known == name)
}

/// Returns the known region that `name` most likely means: that of an availability zone, of a city, or the most similar
/// one; `None` where nothing is similar.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.trim().to_ascii_lowercase();
    let by_zone =
        zone_region(&name).and_then(|region| KNOWN.iter().find(|(known, _)| *known == region));
    let by_place = || {
        let mut with_place =
            KNOWN.iter().filter(|(_, place)| name.contains(&place.to_ascii_lowercase()));
        // The longest place: "Osaka" alone, but "US West (Oregon)" too.
        with_place.by_ref().max_by_key(|(_, place)| place.len())
    };
    let by_similarity = || {
        let name: String =
            name.chars().map(|c| if c.is_whitespace() || c == '_' { '-' } else { c }).collect();
        let scored = KNOWN
            .iter()
            .map(|region| (strsim::normalized_damerau_levenshtein(&name, region.0), region));
        // The first of several equals: the older region.
        let best = scored.rev().max_by(|(one, _), (other, _)| one.total_cmp(other));
        best.filter(|(score, _)| *score >= LIKELY).map(|(_, region)| region)
    };
    by_zone.or_else(by_place).or_else(by_similarity).map(|(region, _)| *region)
}

/// The region of an availability zone such as `ap-northeast-1a`, or of a local or wavelength zone such as
/// `us-west-2-lax-1a` and `ap-northeast-1-wl1-nrt-wlz-1`; `None` for other names.
pub(crate) fn zone_region(name: &str) -> Option<&str> {
    let ends = name.char_indices().skip(1).filter(|(at, c)| {
        let before = name.get(..*at).and_then(|before| before.chars().last());
        !c.is_ascii_digit() && before.is_some_and(|before| before.is_ascii_digit())
    });
    let mut regions = ends.filter_map(|(at, _)| name.get(..at));
    regions.find(|region| is_well_formed(region))
}

/// Longest word of a name, in characters; `northeast` has 9.
const LONGEST_WORD: usize = 12;

/// Similarity from which a known region may be meant (Damerau-Levenshtein, 0 to 1).
const LIKELY: f64 = 0.5;

/// Regions with the places of their AWS names (AWS General Reference, "AWS Regions"; November 2026), the oldest of an
/// area first.
const KNOWN: [(&str, &str); 42] = [
    ("us-east-1", "Virginia"),
    ("us-east-2", "Ohio"),
    ("us-west-1", "California"),
    ("us-west-2", "Oregon"),
    ("ap-northeast-1", "Tokyo"),
    ("ap-northeast-2", "Seoul"),
    ("ap-northeast-3", "Osaka"),
    ("ap-southeast-1", "Singapore"),
    ("ap-southeast-2", "Sydney"),
    ("ap-southeast-3", "Jakarta"),
    ("ap-southeast-4", "Melbourne"),
    ("ap-southeast-5", "Malaysia"),
    ("ap-southeast-6", "New Zealand"),
    ("ap-southeast-7", "Thailand"),
    ("ap-south-1", "Mumbai"),
    ("ap-south-2", "Hyderabad"),
    ("ap-east-1", "Hong Kong"),
    ("ap-east-2", "Taipei"),
    ("ca-central-1", "Montreal"),
    ("ca-west-1", "Calgary"),
    ("eu-central-1", "Frankfurt"),
    ("eu-central-2", "Zurich"),
    ("eu-west-1", "Ireland"),
    ("eu-west-2", "London"),
    ("eu-west-3", "Paris"),
    ("eu-north-1", "Stockholm"),
    ("eu-south-1", "Milan"),
    ("eu-south-2", "Spain"),
    ("af-south-1", "Cape Town"),
    ("il-central-1", "Tel Aviv"),
    ("me-central-1", "UAE"),
    ("me-south-1", "Bahrain"),
    ("mx-central-1", "Mexico"),
    ("sa-east-1", "Sao Paulo"),
    ("cn-north-1", "Beijing"),
    ("cn-northwest-1", "Ningxia"),
    ("us-gov-east-1", "GovCloud (US-East)"),
    ("us-gov-west-1", "GovCloud (US-West)"),
    ("eusc-de-east-1", "Brandenburg"),
    ("us-iso-east-1", "ISO East"),
    ("us-iso-west-1", "ISO West"),
    ("us-isob-east-1", "ISOB East"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_regions_and_ones_to_come_are_well_formed() {
        for (name, _) in KNOWN {
            assert!(is_well_formed(name) && is_known(name), "{name}");
            assert_eq!(nearest(name), Some(name));
        }
        for name in
            ["ap-northeast-9", "xx-new-1", "eu-isoe-west-1", "us-isof-south-1", "ap-south-10"]
        {
            assert!(is_well_formed(name) && !is_known(name), "{name}");
        }
    }

    #[test]
    fn what_is_no_region_means_the_nearest_one() {
        for (name, expected) in [
            ("ap-northeast-1a", Some("ap-northeast-1")),
            ("AP-NORTHEAST-1", Some("ap-northeast-1")),
            ("ap-northeast1", Some("ap-northeast-1")),
            ("apnortheast1", Some("ap-northeast-1")),
            ("ap_northeast_1", Some("ap-northeast-1")),
            ("ap-north-east-1-", Some("ap-northeast-1")),
            ("us-west-2-lax-1a", Some("us-west-2")),
            ("ap-northeast-1-wl1-nrt-wlz-1", Some("ap-northeast-1")),
            ("Tokyo", Some("ap-northeast-1")),
            ("Asia Pacific (Osaka)", Some("ap-northeast-3")),
            ("US East (N. Virginia)", Some("us-east-1")),
            ("AWS GovCloud (US-West)", Some("us-gov-west-1")),
            ("us-east", Some("us-east-1")),
            ("東京", None),
            ("", None),
            ("production", None),
        ] {
            assert_eq!(nearest(name), expected, "{name}");
        }
        for name in [
            "ap-northeast-1a",
            "ap-northeast1",
            "Tokyo",
            "AP-NORTHEAST-1",
            "us-east",
            "a--1",
            "-",
            "us-west-2-lax-1a",
        ] {
            assert!(!is_well_formed(name), "{name}");
        }
    }
}
