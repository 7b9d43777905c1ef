//! What it takes to try a passphrase on a key: read off the key's open part before it is tried.
//!
//! Each format lets the key's author choose the work, up to hours of it and gigabytes. A job that waits for a
//! customer's key would neither be ready nor end when it is told to.

use super::KeyError;
use crate::wire::Reader;

/// Checks the options of OpenSSH's `bcrypt` (its `PROTOCOL.key`): a salt and a number of rounds.
pub(super) fn check_bcrypt(options: &[u8]) -> Result<(), KeyError> {
    let mut reader = Reader::new(options, "key");
    let rounds = reader.string().and_then(|_| reader.u32());
    within(rounds.is_ok_and(|rounds| rounds <= BCRYPT_ROUNDS))
}

/// Checks an encrypted PKCS#8 key, which is DER, by its `PBKDF2-params` (RFC 8018 appendix A.2) or `scrypt-params`
/// (RFC 7914 section 7).
pub(super) fn check_pkcs8(content: &[u8]) -> Result<(), KeyError> {
    // Of what stands before the identifier nothing is the author's to choose.
    let params = |oid: &[u8]| {
        let at = content.windows(oid.len()).position(|window| window == oid)?;
        let (params, _) = element(content.get(at + oid.len()..)?, SEQUENCE)?;
        let (_salt, numbers) = element(params, OCTET_STRING)?;
        Some(numbers)
    };
    let affordable = if let Some(numbers) = params(PBKDF2) {
        number(numbers).is_some_and(|(iterations, _)| iterations <= PBKDF2_ITERATIONS)
    } else if let Some(numbers) = params(SCRYPT) {
        let numbers = number(numbers).and_then(|(cost, rest)| {
            let (block, rest) = number(rest)?;
            let (parallel, _) = number(rest)?;
            Some((128_u64.checked_mul(cost)?.checked_mul(block)?, parallel))
        });
        numbers.is_some_and(|(bytes, parallel)| bytes <= MEMORY && parallel <= PARALLEL)
    } else {
        false
    };
    within(affordable)
}

/// Checks the headers of `PuTTY`'s format; before its version 3 it does not stretch passphrases.
pub(super) fn check_putty(text: &str) -> Result<(), KeyError> {
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if header("Key-Derivation:").is_none() {
        return Ok(());
    }
    let number = |name| header(name).and_then(|text| text.parse::<u64>().ok());
    let affordable = || {
        let bytes = number("Argon2-Memory:")?.checked_mul(1024)?;
        let passes = number("Argon2-Passes:")?;
        let parallel = number("Argon2-Parallelism:")?;
        let filled = bytes.checked_mul(passes)?;
        Some(bytes <= MEMORY && filled <= FILLED && parallel <= PARALLEL)
    };
    within(affordable().unwrap_or(false))
}

fn within(affordable: bool) -> Result<(), KeyError> {
    if affordable { Ok(()) } else { Err(KeyError::Costly) }
}

/// A DER integer, and what follows it; none that is negative or beyond 2^64.
fn number(der: &[u8]) -> Option<(u64, &[u8])> {
    let (digits, rest) = element(der, INTEGER)?;
    if digits.is_empty() || digits.first().is_some_and(|first| *first > 0x7f) || digits.len() > 9 {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        value.checked_mul(256).map(|value| value | u64::from(*digit))
    })?;
    Some((value, rest))
}

/// The content of a DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
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

/// `ssh-keygen` makes 24, guides for the cautious recommend up to 500. Each takes about 6 ms.
const BCRYPT_ROUNDS: u32 = 1000;

/// OpenSSL makes 2,048, password managers up to 1,000,000; this many take a few seconds.
const PBKDF2_ITERATIONS: u64 = 10_000_000;

/// `PuTTY` takes 8 MiB, OpenSSL's scrypt 16 MiB.
const MEMORY: u64 = 256 * 1024 * 1024;

/// Memory times passes; `PuTTY` chooses as many passes as fit into 100 ms.
const FILLED: u64 = 4 * 1024 * 1024 * 1024;

/// `PuTTY` and OpenSSL both take 1.
const PARALLEL: u64 = 16;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// 1.2.840.113549.1.5.12.
const PBKDF2: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];

/// 1.3.6.1.4.1.11591.4.11.
const SCRYPT: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
