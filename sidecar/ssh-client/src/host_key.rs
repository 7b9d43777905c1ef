//! The server's host key: checks that it has the negotiated type and that the server holds its private half
//! (RFC 4253 section 8).

use russh::keys::{
    HashAlg, PublicKey,
    signature::Verifier,
    ssh_key::{Signature, public::KeyData},
};

use crate::{error::Error, wire::Reader};

/// Reads a public key, which must sign with `algorithm`.
///
/// # Errors
///
/// [`Error::Protocol`] if it cannot be read or is of another type.
pub(crate) fn read(blob: &[u8], algorithm: &str) -> Result<PublicKey, Error> {
    let unreadable = |_| Error::protocol("host key cannot be read");
    let key = PublicKey::from_bytes(blob).map_err(unreadable)?;
    if !algorithm.starts_with(family(&key)) {
        return Err(Error::protocol(format!("host key is not of the negotiated type {algorithm}")));
    }
    Ok(key)
}

/// Checks that `signature` is one of the exchange hash by `key`, with `algorithm`.
///
/// # Errors
///
/// [`Error::HostKeyUnproven`] if it is not, [`Error::Protocol`] if it cannot be read.
pub(crate) fn prove(
    key: &PublicKey,
    algorithm: &str,
    signature: &[u8],
    hash: &[u8],
) -> Result<(), Error> {
    let mut reader = Reader::new(signature, "signature");
    let named = reader.string()?;
    let raw = reader.string()?;
    if named == algorithm.as_bytes() && is_signed(key, algorithm, signature, raw, hash) {
        return Ok(());
    }
    Err(Error::HostKeyUnproven { fingerprint: key.fingerprint(HashAlg::Sha256).to_string() })
}

fn is_signed(key: &PublicKey, algorithm: &str, signature: &[u8], raw: &[u8], hash: &[u8]) -> bool {
    if let KeyData::Rsa(rsa) = key.key_data() {
        // Verified by aws-lc, which accepts keys of 2,048 to 8,192 bits.
        let (Some(n), Some(e)) = (rsa.n().as_positive_bytes(), rsa.e().as_positive_bytes()) else {
            return false;
        };
        let parameters = match algorithm {
            "rsa-sha2-512" => &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA512,
            _ => &aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256,
        };
        let components = aws_lc_rs::signature::RsaPublicKeyComponents { n, e };
        return components.verify(parameters, hash, raw).is_ok();
    }
    Signature::try_from(signature)
        .is_ok_and(|signature| key.key_data().verify(hash, &signature).is_ok())
}

/// The prefix of the names of a key's signature algorithms.
fn family(key: &PublicKey) -> &str {
    match key.key_data() {
        KeyData::Rsa(_) => "rsa-sha2-",
        KeyData::Ed25519(_) => "ssh-ed25519",
        KeyData::Ecdsa(key) => match key.curve() {
            russh::keys::EcdsaCurve::NistP256 => "ecdsa-sha2-nistp256",
            russh::keys::EcdsaCurve::NistP384 => "ecdsa-sha2-nistp384",
            russh::keys::EcdsaCurve::NistP521 => "ecdsa-sha2-nistp521",
        },
        // No algorithm that is offered begins like this.
        _ => "unsupported",
    }
}
