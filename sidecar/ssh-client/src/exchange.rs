//! Key exchange: the client's ephemeral keys, the shared secret, the exchange hash, and the keys derived from
//! them.
//!
//! Sources: RFC 4253 sections 7.2 and 8, RFC 5656 section 4, RFC 8731, and
//! draft-ietf-sshm-mlkem-hybrid-kex for `mlkem768x25519-sha256`.

use std::fmt;

use aws_lc_rs::{
    agreement, digest, error,
    kem::{self, Ciphertext, DecapsulationKey, ML_KEM_768},
};
use zeroize::Zeroizing;

use crate::{
    error::Error,
    wire::{Put, message},
};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Method {
    MlKem768X25519,
    X25519,
    X25519Libssh,
    NistP256,
    NistP384,
    NistP521,
}

impl Method {
    /// All, in order of preference: the post-quantum hybrid first.
    pub(crate) const ALL: &[Self] = &[
        Self::MlKem768X25519,
        Self::X25519,
        Self::X25519Libssh,
        Self::NistP256,
        Self::NistP384,
        Self::NistP521,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::MlKem768X25519 => "mlkem768x25519-sha256",
            Self::X25519 => "curve25519-sha256",
            Self::X25519Libssh => "curve25519-sha256@libssh.org",
            Self::NistP256 => "ecdh-sha2-nistp256",
            Self::NistP384 => "ecdh-sha2-nistp384",
            Self::NistP521 => "ecdh-sha2-nistp521",
        }
    }

    fn hash(self) -> &'static digest::Algorithm {
        match self {
            Self::MlKem768X25519 | Self::X25519 | Self::X25519Libssh | Self::NistP256 => {
                &digest::SHA256
            }
            Self::NistP384 => &digest::SHA384,
            Self::NistP521 => &digest::SHA512,
        }
    }

    fn curve(self) -> &'static agreement::Algorithm {
        match self {
            Self::MlKem768X25519 | Self::X25519 | Self::X25519Libssh => &agreement::X25519,
            Self::NistP256 => &agreement::ECDH_P256,
            Self::NistP384 => &agreement::ECDH_P384,
            Self::NistP521 => &agreement::ECDH_P521,
        }
    }
}

/// The client's half of a key exchange.
pub(crate) struct Ephemeral {
    method: Method,
    curve: agreement::PrivateKey,
    /// The post-quantum part of the hybrid method.
    ml_kem: Option<DecapsulationKey<kem::AlgorithmId>>,
    public: Vec<u8>,
}

impl Ephemeral {
    /// Generates keys for `method`.
    pub(crate) fn generate(method: Method) -> Result<Self, Error> {
        let failed = |_: error::Unspecified| Error::Crypto { what: "making an ephemeral key" };
        let curve = agreement::PrivateKey::generate(method.curve()).map_err(failed)?;
        let mut public = Vec::new();
        let ml_kem = if method == Method::MlKem768X25519 {
            let key = DecapsulationKey::generate(&ML_KEM_768).map_err(failed)?;
            let encapsulation = key.encapsulation_key().map_err(failed)?;
            public.extend_from_slice(encapsulation.key_bytes().map_err(failed)?.as_ref());
            Some(key)
        } else {
            None
        };
        public.extend_from_slice(curve.compute_public_key().map_err(failed)?.as_ref());
        Ok(Self { method, curve, ml_kem, public })
    }

    /// The payload of `KEX_ECDH_INIT`.
    pub(crate) fn init_payload(&self) -> Vec<u8> {
        let mut payload = vec![message::KEX_ECDH_INIT];
        payload.put_string(&self.public);
        payload
    }

    /// Computes the shared secret and the exchange hash from the server's half.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if the server's half is not a valid key.
    pub(crate) fn finish(self, transcript: &Transcript<'_>) -> Result<Secret, Error> {
        let invalid = || Error::protocol("server's ephemeral key is invalid");
        let hash = self.method.hash();
        let mut encoded = Zeroizing::new(Vec::new());
        if let Some(ml_kem) = self.ml_kem {
            let (ciphertext, point) = transcript
                .server_public
                .split_at_checked(ML_KEM_768_CIPHERTEXT)
                .ok_or_else(invalid)?;
            let first = ml_kem.decapsulate(Ciphertext::from(ciphertext)).map_err(|_| invalid())?;
            let mut context = digest::Context::new(hash);
            context.update(first.as_ref());
            let secret = agree(self.method, &self.curve, point, |secret| {
                context.update(secret);
                Zeroizing::new(context.finish().as_ref().to_vec())
            });
            // The shared secret of the hybrid method is a `string`, not an `mpint`.
            encoded.put_string(&secret.ok_or_else(invalid)?);
        } else {
            let secret = agree(self.method, &self.curve, transcript.server_public, |secret| {
                Zeroizing::new(secret.to_vec())
            });
            encoded.put_mpint(&secret.ok_or_else(invalid)?);
        }

        let mut hashed = Vec::new();
        hashed.put_string(transcript.client_identification);
        hashed.put_string(transcript.server_identification);
        hashed.put_string(transcript.client_kexinit);
        hashed.put_string(transcript.server_kexinit);
        hashed.put_string(transcript.host_key);
        hashed.put_string(&self.public);
        hashed.put_string(transcript.server_public);
        let mut context = digest::Context::new(hash);
        context.update(&hashed);
        context.update(&encoded);
        Ok(Secret { hash, encoded, exchange_hash: context.finish().as_ref().to_vec() })
    }
}

impl fmt::Debug for Ephemeral {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ephemeral").field("method", &self.method).finish_non_exhaustive()
    }
}

/// Computes the shared secret of `key` and the server's `point`; `None` if `point` is not on the curve or, on
/// X25519, of small order.
fn agree(
    method: Method,
    key: &agreement::PrivateKey,
    point: &[u8],
    then: impl FnOnce(&[u8]) -> Zeroizing<Vec<u8>>,
) -> Option<Zeroizing<Vec<u8>>> {
    let point = agreement::UnparsedPublicKey::new(method.curve(), point);
    agreement::agree(key, point, (), |secret| {
        // RFC 8731 section 3: an all-zero secret must abort the exchange.
        if secret.iter().all(|byte| *byte == 0) {
            return Err(());
        }
        Ok(then(secret))
    })
    .ok()
}

/// What the exchange hash covers (RFC 4253 section 8).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transcript<'a> {
    pub(crate) client_identification: &'a [u8],
    pub(crate) server_identification: &'a [u8],
    pub(crate) client_kexinit: &'a [u8],
    pub(crate) server_kexinit: &'a [u8],
    pub(crate) host_key: &'a [u8],
    pub(crate) server_public: &'a [u8],
}

/// The result of a key exchange.
pub(crate) struct Secret {
    hash: &'static digest::Algorithm,
    /// The shared secret as it is hashed: as an `mpint`, or as a `string` for the hybrid method.
    encoded: Zeroizing<Vec<u8>>,
    exchange_hash: Vec<u8>,
}

impl Secret {
    /// For a test that computed the exchange as the server.
    #[cfg(test)]
    pub(crate) fn new(encoded: Vec<u8>, exchange_hash: Vec<u8>) -> Self {
        Self { hash: &digest::SHA256, encoded: Zeroizing::new(encoded), exchange_hash }
    }

    /// The hash that the server signs. That of the first exchange is the session identifier.
    pub(crate) fn exchange_hash(&self) -> &[u8] {
        &self.exchange_hash
    }

    /// Derives a key of `length` bytes; `letter` stands for its purpose (RFC 4253 section 7.2).
    pub(crate) fn derive(
        &self,
        letter: u8,
        session_id: &[u8],
        length: usize,
    ) -> Zeroizing<Vec<u8>> {
        // Reserves space for the whole last block: growing would leave an unwiped copy in memory.
        let mut key = Zeroizing::new(Vec::with_capacity(length + digest::SHA512_OUTPUT_LEN));
        while key.len() < length {
            let mut context = digest::Context::new(self.hash);
            context.update(&self.encoded);
            context.update(&self.exchange_hash);
            if key.is_empty() {
                context.update(&[letter]);
                context.update(session_id);
            } else {
                context.update(&key);
            }
            key.extend_from_slice(context.finish().as_ref());
        }
        key.truncate(length);
        key
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Secret").finish_non_exhaustive()
    }
}

/// Length of an ML-KEM-768 ciphertext, in bytes (FIPS 203 table 3).
const ML_KEM_768_CIPHERTEXT: usize = 1_088;
