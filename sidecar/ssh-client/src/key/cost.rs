//! The cost of deriving a key from a passphrase, read from a private key's unencrypted headers.
//!
//! Each format lets the author of a key choose that cost, up to hours of processor time and gigabytes of memory.
//! Deriving blocks: with such a key the caller would neither get ready nor react to a stop. So the cost is
//! checked before a passphrase is tried.

use super::der::{OCTET_STRING, SEQUENCE, element, number};
use crate::wire::Reader;

/// Whether the `bcrypt` options of an OpenSSH key are affordable: a salt and a number of rounds (OpenSSH's
/// PROTOCOL.key section 2).
pub(super) fn is_bcrypt_affordable(options: &[u8]) -> bool {
    let mut reader = Reader::new(options, "key");
    let rounds = reader.string().and_then(|_| reader.u32());
    rounds.is_ok_and(|rounds| rounds <= MAX_BCRYPT_ROUNDS)
}

/// Whether the `PBKDF2-params` (RFC 8018 appendix A.2) or `scrypt-params` (RFC 7914 section 7) of an
/// encrypted PKCS#8 key, which is DER, are affordable.
pub(super) fn is_pkcs8_affordable(content: &[u8]) -> bool {
    // Searching is safe: the fields before the identifier are fixed, so no other bytes can match first.
    let params = |oid: &[u8]| {
        let at = content.windows(oid.len()).position(|window| window == oid)?;
        let (params, _) = element(content.get(at + oid.len()..)?, SEQUENCE)?;
        let (_salt, numbers) = element(params, OCTET_STRING)?;
        Some(numbers)
    };
    if let Some(numbers) = params(PBKDF2) {
        number(numbers).is_some_and(|(iterations, _)| iterations <= MAX_PBKDF2_ITERATIONS)
    } else if let Some(numbers) = params(SCRYPT) {
        let numbers = number(numbers).and_then(|(cost, rest)| {
            let (block, rest) = number(rest)?;
            let (parallel, _) = number(rest)?;
            Some((128_u64.checked_mul(cost)?.checked_mul(block)?, parallel))
        });
        numbers.is_some_and(|(bytes, parallel)| bytes <= MAX_MEMORY && parallel <= MAX_PARALLELISM)
    } else {
        false
    }
}

/// Whether the Argon2 headers of a `PuTTY` key are affordable. Formats before version 3 have none: they hash the
/// passphrase once (`PuTTY` manual, appendix C).
pub(super) fn is_putty_affordable(text: &str) -> bool {
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if header("Key-Derivation:").is_none() {
        return true;
    }
    let number = |name| header(name).and_then(|text| text.parse::<u64>().ok());
    let affordable = || {
        let bytes = number("Argon2-Memory:")?.checked_mul(1024)?;
        let passes = number("Argon2-Passes:")?;
        let parallel = number("Argon2-Parallelism:")?;
        let written = bytes.checked_mul(passes)?;
        Some(bytes <= MAX_MEMORY && written <= MAX_WRITTEN && parallel <= MAX_PARALLELISM)
    };
    affordable().unwrap_or(false)
}

/// Most bcrypt rounds. A limit of ours: `ssh-keygen` uses 24 by default, hardening guides recommend up to 500;
/// a round takes about 6 ms.
const MAX_BCRYPT_ROUNDS: u32 = 1000;

/// Most PBKDF2 iterations. A limit of ours: OpenSSL uses 2,048 by default, password managers up to 1,000,000;
/// this many take a few seconds.
const MAX_PBKDF2_ITERATIONS: u64 = 10_000_000;

/// Most memory, in bytes. A limit of ours: `PuTTY` uses 8 MiB by default, OpenSSL's scrypt 16 MiB.
const MAX_MEMORY: u64 = 256 * 1024 * 1024;

/// Most bytes that Argon2 writes: memory times passes. A limit of ours: `PuTTY` by default chooses as many
/// passes as fit into 100 ms.
const MAX_WRITTEN: u64 = 4 * 1024 * 1024 * 1024;

/// Most parallel lanes. A limit of ours: `PuTTY` and OpenSSL use 1 by default.
const MAX_PARALLELISM: u64 = 16;

/// Object identifier 1.2.840.113549.1.5.12 (RFC 8018 appendix A.2), as DER.
const PBKDF2: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];

/// Object identifier 1.3.6.1.4.1.11591.4.11 (RFC 7914 section 7), as DER.
const SCRYPT: &[u8] = &[0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
