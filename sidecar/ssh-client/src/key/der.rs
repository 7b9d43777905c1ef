//! The little of DER (ITU-T X.690) that private keys need.

use zeroize::Zeroizing;

/// Reads an integer and returns it with the bytes after it; `None` if it is negative or exceeds 64 bits.
pub(super) fn number(der: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = element(der, INTEGER)?;
    if digits.is_empty() || digits.first().is_some_and(|first| *first > 0x7f) || digits.len() > 9 {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        value.checked_mul(256).map(|value| value | u64::from(*digit))
    })?;
    Some((value, rest))
}

/// Reads an element with this tag and returns its content with the bytes after it.
pub(super) fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    match length {
        0..=0x7f => rest.split_at_checked(usize::from(length)),
        0x81 => {
            let (&[length], rest) = rest.split_first_chunk()?;
            rest.split_at_checked(usize::from(length))
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        }
        _ => None,
    }
}

/// A private key of PKCS#8 version 2 (RFC 5958 section 2), which has its public half behind it.
pub(super) struct WithPublicKey<'a> {
    /// The same key in version 1 (RFC 5208 section 5), without the public half.
    pub(super) version_1: Zeroizing<Vec<u8>>,
    /// Its bit string, without the count of unused bits.
    pub(super) public: &'a [u8],
}

/// Takes a key of PKCS#8 version 2 apart; `None` if it is none. The public half may be tagged implicitly, as RFC 5958
/// has it, or explicitly, as some password managers do.
pub(super) fn with_public_key(der: &[u8]) -> Option<WithPublicKey<'_>> {
    let (content, _) = element(der, SEQUENCE)?;
    let (1, rest) = number(content)? else { return None };
    let (_, behind) = element(rest, SEQUENCE)?;
    let (_, behind) = element(behind, OCTET_STRING)?;
    let algorithm_and_key = rest.get(..rest.len() - behind.len())?;
    let behind = element(behind, ATTRIBUTES).map_or(behind, |(_, behind)| behind);
    let bits = match element(behind, EXPLICIT_PUBLIC_KEY) {
        Some((explicit, _)) => element(explicit, BIT_STRING)?.0,
        None => element(behind, PUBLIC_KEY)?.0,
    };
    let (_unused, public) = bits.split_first()?;
    let mut version_1 = Zeroizing::new(Vec::with_capacity(der.len()));
    let length = VERSION_1.len() + algorithm_and_key.len();
    version_1.push(SEQUENCE);
    // The shortest form, as DER demands it.
    match u8::try_from(length) {
        Ok(short @ ..=0x7f) => version_1.push(short),
        Ok(longer) => version_1.extend([0x81, longer]),
        Err(_) => {
            version_1.push(0x82);
            version_1.extend(u16::try_from(length).ok()?.to_be_bytes());
        }
    }
    version_1.extend_from_slice(VERSION_1);
    version_1.extend_from_slice(algorithm_and_key);
    Some(WithPublicKey { version_1, public })
}

/// The integer 0.
const VERSION_1: &[u8] = &[INTEGER, 1, 0];

// Tags (ITU-T X.680 section 8.6, X.690 section 8.1.2; RFC 5958 section 2).
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const SEQUENCE: u8 = 0x30;
const ATTRIBUTES: u8 = 0xa0;
const PUBLIC_KEY: u8 = 0x81;
const EXPLICIT_PUBLIC_KEY: u8 = 0xa1;
