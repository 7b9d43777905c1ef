//! The ciphers and message authentication codes (MACs) that are offered, in order of preference.
//!
//! Sources of the names: RFC 4344 section 4 (CTR), RFC 5647 and OpenSSH's PROTOCOL section 1.6 (GCM), OpenSSH's
//! PROTOCOL.chacha20poly1305, RFC 6668 (MACs) and OpenSSH's PROTOCOL section 1.5 (encrypt-then-MAC).

use aws_lc_rs::{aead::chacha20_poly1305_openssh as chacha, hmac};

/// Negotiated algorithms of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    pub(crate) cipher: Cipher,
    /// `None` for ciphers that authenticate by themselves.
    pub(crate) mac: Option<Mac>,
    /// Compressed after the login.
    pub(crate) compressed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cipher {
    Aes256Gcm,
    Aes128Gcm,
    ChaCha20Poly1305,
    Aes256Ctr,
    Aes128Ctr,
}

impl Cipher {
    /// All, in order of preference: by speed on processors with AES instructions.
    pub(crate) const ALL: &[Self] = &[
        Self::Aes256Gcm,
        Self::Aes128Gcm,
        Self::ChaCha20Poly1305,
        Self::Aes256Ctr,
        Self::Aes128Ctr,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aes256Gcm => "aes256-gcm@openssh.com",
            Self::Aes128Gcm => "aes128-gcm@openssh.com",
            Self::ChaCha20Poly1305 => "chacha20-poly1305@openssh.com",
            Self::Aes256Ctr => "aes256-ctr",
            Self::Aes128Ctr => "aes128-ctr",
        }
    }

    pub(crate) fn needs_mac(self) -> bool {
        matches!(self, Self::Aes256Ctr | Self::Aes128Ctr)
    }

    /// In bytes.
    pub(crate) fn key_len(self) -> usize {
        match self {
            Self::Aes256Gcm | Self::Aes256Ctr => 32,
            Self::Aes128Gcm | Self::Aes128Ctr => 16,
            Self::ChaCha20Poly1305 => chacha::KEY_LEN,
        }
    }
}

/// A MAC, for the ciphers in counter mode, which do not authenticate by themselves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mac {
    HmacSha256Etm,
    HmacSha512Etm,
    HmacSha256,
    HmacSha512,
}

impl Mac {
    /// All, in order of preference: encrypt-then-MAC first.
    pub(crate) const ALL: &[Self] =
        &[Self::HmacSha256Etm, Self::HmacSha512Etm, Self::HmacSha256, Self::HmacSha512];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HmacSha256Etm => "hmac-sha2-256-etm@openssh.com",
            Self::HmacSha512Etm => "hmac-sha2-512-etm@openssh.com",
            Self::HmacSha256 => "hmac-sha2-256",
            Self::HmacSha512 => "hmac-sha2-512",
        }
    }

    /// Whether the MAC covers the encrypted packet, not the plain one.
    pub(crate) fn encrypt_then_mac(self) -> bool {
        matches!(self, Self::HmacSha256Etm | Self::HmacSha512Etm)
    }

    pub(crate) fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256Etm | Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha512Etm | Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// In bytes.
    pub(crate) fn tag_len(self) -> usize {
        self.algorithm().tag_len()
    }
}
