//! Encryption and authentication of whole packets, in place: outgoing packets are sealed, incoming ones opened.
//!
//! Sources: RFC 4253 section 6, RFC 4344 (CTR), RFC 5647 and OpenSSH's PROTOCOL section 1.6 (GCM),
//! OpenSSH's PROTOCOL.chacha20poly1305, RFC 6668 (MACs) and OpenSSH's PROTOCOL section 1.5 (encrypt-then-MAC).

use std::fmt;

use aws_lc_rs::{
    aead::{self, Aad, LessSafeKey, Nonce, UnboundKey, chacha20_poly1305_openssh as chacha},
    cipher::{
        self, DecryptionContext, EncryptionContext, StreamingDecryptingKey, StreamingEncryptingKey,
        UnboundCipherKey,
    },
    error::Unspecified,
    hmac,
    iv::FixedLength,
};
use bytes::BytesMut;

use crate::{
    algorithms::{Cipher, Direction, Mac},
    error::Error,
    exchange::Secret,
};

/// The letters by which the keys of one direction are derived (RFC 4253 section 7.2): initial vector, cipher key,
/// MAC key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Letters(u8, u8, u8);

impl Letters {
    /// Client to server.
    pub(crate) const OUTGOING: Self = Self(b'A', b'C', b'E');
    /// Server to client.
    pub(crate) const INCOMING: Self = Self(b'B', b'D', b'F');
}

/// Seals outgoing packets.
pub(crate) type Sealer = Keyed<chacha::SealingKey, StreamingEncryptingKey>;

/// Opens incoming packets.
pub(crate) type Opener = Keyed<chacha::OpeningKey, StreamingDecryptingKey>;

/// A cipher with its keys. The type parameters are the keys for `ChaCha20` and for counter mode, whose types
/// differ between sealing and opening.
pub(crate) enum Keyed<ChaCha, Ctr> {
    /// Before the first key exchange.
    Plain,
    Gcm {
        key: Box<LessSafeKey>,
        nonce: GcmNonce,
    },
    ChaCha(ChaCha),
    Ctr {
        key: Box<Ctr>,
        mac: Box<KeyedMac>,
        scratch: Vec<u8>,
    },
}

impl<ChaCha, Ctr> Keyed<ChaCha, Ctr> {
    /// The block size in bytes of which a packet's length must be a multiple, and whether the length field is
    /// counted.
    pub(crate) fn alignment(&self) -> (usize, bool) {
        match self {
            Self::Plain => (8, true),
            Self::Gcm { .. } => (16, false),
            Self::ChaCha(_) => (8, false),
            Self::Ctr { mac, .. } => (16, !mac.mac.encrypt_then_mac()),
        }
    }

    /// Derives the keys of one direction from the result of a key exchange.
    fn derive(
        direction: &Direction,
        secret: &Secret,
        session_id: &[u8],
        letters: Letters,
        chacha: impl FnOnce(&[u8; chacha::KEY_LEN]) -> ChaCha,
        ctr: impl FnOnce(UnboundCipherKey, FixedLength<IV>) -> Result<Ctr, Unspecified>,
    ) -> Result<Self, Error> {
        let cipher = direction.cipher;
        let key = secret.derive(letters.1, session_id, cipher.key_len());
        let iv = secret.derive(letters.0, session_id, IV);
        Ok(match cipher {
            Cipher::Aes256Gcm | Cipher::Aes128Gcm => {
                Self::Gcm { key: Box::new(gcm_key(cipher, &key)?), nonce: GcmNonce::new(&iv)? }
            }
            Cipher::ChaCha20Poly1305 => Self::ChaCha(chacha(key.first_chunk().ok_or(FAILED)?)),
            Cipher::Aes256Ctr | Cipher::Aes128Ctr => {
                let iv = iv.first_chunk::<IV>().ok_or(FAILED)?;
                let key = ctr(ctr_key(cipher, &key)?, FixedLength::from(iv)).map_err(failed)?;
                let mac = KeyedMac::new(direction, secret, session_id, letters)?;
                Self::Ctr { key: Box::new(key), mac: Box::new(mac), scratch: Vec::new() }
            }
        })
    }
}

impl<ChaCha, Ctr> fmt::Debug for Keyed<ChaCha, Ctr> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keyed")
            .field("alignment", &self.alignment())
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Derives the keys of one direction from the result of a key exchange.
    pub(crate) fn new(
        direction: &Direction,
        secret: &Secret,
        session_id: &[u8],
        letters: Letters,
    ) -> Result<Self, Error> {
        let ctr =
            |key, iv| StreamingEncryptingKey::less_safe_ctr(key, EncryptionContext::Iv128(iv));
        Self::derive(direction, secret, session_id, letters, chacha::SealingKey::new, ctr)
    }

    /// Encrypts the packet from `start` to the end of `out`, which begins with its length field and ends with its
    /// padding, and appends the tag.
    ///
    /// # Errors
    ///
    /// [`Error::Crypto`] if encryption fails.
    pub(crate) fn seal(
        &mut self,
        sequence: u32,
        out: &mut BytesMut,
        start: usize,
    ) -> Result<(), Error> {
        match self {
            Self::Plain => {}
            Self::Gcm { key, nonce } => {
                let (length, body) = split_length(out, start)?;
                let aad = Aad::from(*length);
                let tag =
                    key.seal_in_place_separate_tag(nonce.next(), aad, body).map_err(failed)?;
                out.extend_from_slice(tag.as_ref());
            }
            Self::ChaCha(key) => {
                let mut tag = [0; chacha::TAG_LEN];
                let packet = out.get_mut(start..).ok_or(FAILED)?;
                key.seal_in_place(sequence, packet, &mut tag);
                out.extend_from_slice(&tag);
            }
            Self::Ctr { key, mac, scratch } => {
                let packet = out.get_mut(start..).ok_or(FAILED)?;
                let plain_tag = (!mac.mac.encrypt_then_mac()).then(|| mac.sign(sequence, packet));
                let skipped = if plain_tag.is_none() { LENGTH } else { 0 };
                let body = packet.get_mut(skipped..).ok_or(FAILED)?;
                scratch.clear();
                scratch.extend_from_slice(body);
                key.less_safe_update(scratch, body).map_err(failed)?;
                zeroize::Zeroize::zeroize(scratch);
                let tag = plain_tag.unwrap_or_else(|| mac.sign(sequence, packet));
                out.extend_from_slice(tag.as_ref());
            }
        }
        Ok(())
    }
}

impl Opener {
    /// Derives the keys of one direction from the result of a key exchange.
    pub(crate) fn new(
        direction: &Direction,
        secret: &Secret,
        session_id: &[u8],
        letters: Letters,
    ) -> Result<Self, Error> {
        let ctr = |key, iv| StreamingDecryptingKey::ctr(key, DecryptionContext::Iv128(iv));
        Self::derive(direction, secret, session_id, letters, chacha::OpeningKey::new, ctr)
    }

    /// How many bytes of a packet are needed to read its length.
    pub(crate) fn head(&self) -> usize {
        match self {
            Self::Ctr { mac, .. } if !mac.mac.encrypt_then_mac() => 16,
            _ => LENGTH,
        }
    }

    /// Length of the tag after each packet, in bytes.
    pub(crate) fn tag_len(&self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Gcm { .. } | Self::ChaCha(_) => aead::AES_256_GCM.tag_len(),
            Self::Ctr { mac, .. } => mac.mac.tag_len(),
        }
    }

    /// Reads the length field from the packet's [head](Self::head). Must be called once per packet, as it may
    /// decrypt the head in place.
    pub(crate) fn length(&mut self, sequence: u32, head: &mut [u8]) -> Result<u32, Error> {
        match self {
            Self::Ctr { key, mac, scratch } if !mac.mac.encrypt_then_mac() => {
                decrypt(key, scratch, head)?;
            }
            Self::ChaCha(key) => {
                // The length stays encrypted in place: the tag covers it so.
                let length = *head.first_chunk().ok_or(FAILED)?;
                return Ok(u32::from_be_bytes(key.decrypt_packet_length(sequence, length)));
            }
            _ => {}
        }
        Ok(u32::from_be_bytes(*head.first_chunk().ok_or(FAILED)?))
    }

    /// Verifies a packet by its tag and decrypts it in place, except for the length field.
    ///
    /// # Errors
    ///
    /// [`Error::Integrity`] if the tag is wrong.
    pub(crate) fn open(&mut self, sequence: u32, packet: &mut [u8]) -> Result<(), Error> {
        let end = packet.len().checked_sub(self.tag_len()).ok_or(FAILED)?;
        let (sealed, tag) = packet.split_at_mut_checked(end).ok_or(FAILED)?;
        match self {
            Self::Plain => Ok(()),
            Self::Gcm { key, nonce } => {
                let (length, body) = split_length(sealed, 0)?;
                key.open_in_place_separate_tag(nonce.next(), Aad::from(*length), tag, body)
                    .map(drop)
                    .map_err(|_| Error::Integrity)
            }
            Self::ChaCha(key) => {
                let tag = tag.first_chunk().ok_or(FAILED)?;
                key.open_in_place(sequence, sealed, tag).map(drop).map_err(|_| Error::Integrity)
            }
            Self::Ctr { key, mac, scratch } => {
                if mac.mac.encrypt_then_mac() {
                    mac.verify(sequence, sealed, tag)?;
                    decrypt(key, scratch, sealed.get_mut(LENGTH..).ok_or(FAILED)?)
                } else {
                    decrypt(key, scratch, sealed.get_mut(16..).ok_or(FAILED)?)?;
                    mac.verify(sequence, sealed, tag)
                }
            }
        }
    }
}

/// The nonce of AES-GCM in SSH: four fixed bytes and a counter (RFC 5647 section 7.1).
#[derive(Debug)]
pub(crate) struct GcmNonce {
    fixed: [u8; 4],
    counter: u64,
}

impl GcmNonce {
    fn new(iv: &[u8]) -> Result<Self, Error> {
        let (fixed, rest) = iv.split_first_chunk().ok_or(FAILED)?;
        let counter = u64::from_be_bytes(*rest.first_chunk().ok_or(FAILED)?);
        Ok(Self { fixed: *fixed, counter })
    }

    fn next(&mut self) -> Nonce {
        let mut nonce = [0; aead::NONCE_LEN];
        if let Some((fixed, counter)) = nonce.split_first_chunk_mut() {
            *fixed = self.fixed;
            counter.copy_from_slice(&self.counter.to_be_bytes());
        }
        self.counter = self.counter.wrapping_add(1);
        Nonce::assume_unique_for_key(nonce)
    }
}

/// A MAC with its key.
pub(crate) struct KeyedMac {
    mac: Mac,
    key: hmac::Key,
}

impl KeyedMac {
    fn new(
        direction: &Direction,
        secret: &Secret,
        session_id: &[u8],
        letters: Letters,
    ) -> Result<Self, Error> {
        let mac = direction.mac.ok_or(FAILED)?;
        let key = secret.derive(letters.2, session_id, mac.tag_len());
        Ok(Self { mac, key: hmac::Key::new(mac.algorithm(), &key) })
    }

    fn sign(&self, sequence: u32, packet: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&sequence.to_be_bytes());
        context.update(packet);
        context.sign()
    }

    fn verify(&self, sequence: u32, packet: &[u8], tag: &[u8]) -> Result<(), Error> {
        let expected = self.sign(sequence, packet);
        aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_ref(), tag)
            .map_err(|_| Error::Integrity)
    }
}

/// Decrypts in place through `scratch`, as the library does not decrypt in place.
fn decrypt(
    key: &mut StreamingDecryptingKey,
    scratch: &mut Vec<u8>,
    body: &mut [u8],
) -> Result<(), Error> {
    scratch.clear();
    scratch.extend_from_slice(body);
    key.less_safe_update(scratch, body).map(drop).map_err(failed)
}

fn gcm_key(cipher: Cipher, key: &[u8]) -> Result<LessSafeKey, Error> {
    let algorithm =
        if cipher == Cipher::Aes256Gcm { &aead::AES_256_GCM } else { &aead::AES_128_GCM };
    UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(failed)
}

fn ctr_key(cipher: Cipher, key: &[u8]) -> Result<UnboundCipherKey, Error> {
    let algorithm = if cipher == Cipher::Aes256Ctr { &cipher::AES_256 } else { &cipher::AES_128 };
    UnboundCipherKey::new(algorithm, key).map_err(failed)
}

/// Splits a packet into its length field, which is not encrypted, and the rest.
fn split_length(packet: &mut [u8], start: usize) -> Result<(&[u8; LENGTH], &mut [u8]), Error> {
    let packet = packet.get_mut(start..).ok_or(FAILED)?;
    let (length, body) = packet.split_first_chunk_mut().ok_or(FAILED)?;
    Ok((length, body))
}

fn failed(_: Unspecified) -> Error {
    FAILED
}

/// Length of the packet's length field, in bytes (RFC 4253 section 6).
pub(crate) const LENGTH: usize = 4;

/// Length of the derived initial vector, in bytes; GCM uses the first twelve (RFC 5647 section 7.1).
const IV: usize = 16;

const FAILED: Error = Error::Crypto { what: "cipher" };
