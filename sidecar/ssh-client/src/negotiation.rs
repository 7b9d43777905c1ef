//! KEXINIT: what each side offers and what follows from it (RFC 4253 section 7.1).

use bytes::BufMut;
use russh::keys::Algorithm;

use crate::cipher::{Cipher, Mac};
use crate::config::{Compression, Config};
use crate::error::Error;
use crate::exchange::Method;
use crate::pin::HostKeyPin;
use crate::wire::{Put, Reader, message, quoted};

/// Our side of a negotiation.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    kex: Vec<&'static str>,
    host_key: Vec<&'static str>,
    cipher: Vec<&'static str>,
    mac: Vec<&'static str>,
    compression: &'static [&'static str],
}

impl Offer {
    /// Makes the offer that `config` asks for.
    pub(crate) fn new(config: &Config) -> Self {
        let mut host_key =
            restricted(config.algorithms.host_key.as_deref(), HOST_KEYS.iter().copied());
        // A server shows one key only: ask first for a type that was pinned. A fingerprint does
        // not tell its type, so all types stay on offer.
        let pinned: Vec<_> = config.pins.iter().filter_map(HostKeyPin::algorithm).collect();
        host_key.sort_by_key(|name| !pinned.iter().any(|kind| belongs(name, kind)));
        Self {
            kex: restricted(
                config.algorithms.kex.as_deref(),
                Method::ALL.iter().map(|method| method.name()),
            ),
            host_key,
            cipher: restricted(
                config.algorithms.cipher.as_deref(),
                Cipher::ALL.iter().map(|cipher| cipher.name()),
            ),
            mac: restricted(
                config.algorithms.mac.as_deref(),
                Mac::ALL.iter().map(|mac| mac.name()),
            ),
            compression: match config.compression {
                Compression::Auto => &[ZLIB, NONE],
                Compression::On => &[ZLIB],
                Compression::Off => &[NONE],
            },
        }
    }

    /// Writes the KEXINIT payload. In the `initial` exchange it carries the signs that we read
    /// `EXT_INFO` and keep to the strict rules.
    pub(crate) fn payload(&self, cookie: [u8; 16], initial: bool) -> Vec<u8> {
        let mut kex = self.kex.clone();
        if initial {
            kex.extend([EXT_INFO_CLIENT, STRICT_CLIENT]);
        }
        let mut payload = vec![message::KEXINIT];
        payload.put_slice(&cookie);
        for list in [
            &*kex,
            &self.host_key,
            &self.cipher,
            &self.cipher,
            &self.mac,
            &self.mac,
            self.compression,
            self.compression,
            &[],
            &[],
        ] {
            payload.put_string(list.join(",").as_bytes());
        }
        payload.put_bool(false);
        payload.put_u32(0);
        payload
    }

    /// Chooses algorithms from the server's KEXINIT.
    ///
    /// # Errors
    ///
    /// [`Error::NoCommonAlgorithm`] or [`Error::Protocol`].
    pub(crate) fn choose(&self, payload: &[u8]) -> Result<Choice, Error> {
        let mut reader = Reader::new(payload, "KEXINIT");
        reader.u8()?;
        reader.array::<16>()?;
        let kex = reader.name_list()?;
        let host_key = reader.name_list()?;
        let cipher_out = reader.name_list()?;
        let cipher_in = reader.name_list()?;
        let mac_out = reader.name_list()?;
        let mac_in = reader.name_list()?;
        let compression_out = reader.name_list()?;
        let compression_in = reader.name_list()?;
        reader.name_list()?;
        reader.name_list()?;
        let guess_follows = reader.bool()?;
        reader.u32()?;
        reader.end()?;

        let method = pick("key exchange method", &self.kex, kex)?;
        let host_key_name = pick("host key algorithm", &self.host_key, host_key)?;
        let guessed_right = first(kex) == self.kex.first().copied()
            && first(host_key) == self.host_key.first().copied();
        let direction = |cipher: &str, mac: &str, compression: &str| {
            let cipher = pick("cipher", &self.cipher, cipher)?;
            let cipher = Cipher::named(cipher).ok_or(UNKNOWN)?;
            let mac = if cipher.needs_mac() {
                Some(Mac::named(pick("MAC", &self.mac, mac)?).ok_or(UNKNOWN)?)
            } else {
                None
            };
            let compressed = pick("compression", self.compression, compression)? == ZLIB;
            Ok::<_, Error>(Direction { cipher, mac, compressed })
        };
        Ok(Choice {
            method: Method::named(method).ok_or(UNKNOWN)?,
            host_key: host_key_name,
            outgoing: direction(cipher_out, mac_out, compression_out)?,
            incoming: direction(cipher_in, mac_in, compression_in)?,
            skip_guess: guess_follows && !guessed_right,
            strict: kex.split(',').any(|name| name == STRICT_SERVER),
        })
    }
}

/// What a negotiation has come to.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    /// Name of the host key's signature algorithm.
    pub(crate) host_key: &'static str,
    pub(crate) outgoing: Direction,
    pub(crate) incoming: Direction,
    /// The server has sent a first key exchange packet for another method: it is to be ignored.
    pub(crate) skip_guess: bool,
    /// The server knows the strict key exchange; says something in the initial exchange only.
    pub(crate) strict: bool,
}

impl Choice {
    /// The names, for people.
    pub(crate) fn negotiated(&self) -> Negotiated {
        Negotiated {
            kex: self.method.name(),
            host_key: self.host_key,
            cipher: self.outgoing.cipher.name(),
            mac: self.outgoing.mac.map(Mac::name),
            compressed: self.outgoing.compressed,
        }
    }
}

/// Algorithms of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    pub(crate) cipher: Cipher,
    pub(crate) mac: Option<Mac>,
    pub(crate) compressed: bool,
}

/// Names of the algorithms in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Negotiated {
    /// Key exchange method.
    pub kex: &'static str,
    /// Signature algorithm of the host key.
    pub host_key: &'static str,
    /// Cipher towards the server.
    pub cipher: &'static str,
    /// Authentication code towards the server; `None` if the cipher brings its own.
    pub mac: Option<&'static str>,
    /// Whether what goes to the server is compressed after login.
    pub compressed: bool,
}

/// Takes the first of our names that is among theirs (RFC 4253 section 7.1).
fn pick(kind: &'static str, ours: &[&'static str], theirs: &str) -> Result<&'static str, Error> {
    let found = ours.iter().find(|name| theirs.split(',').any(|their| their == **name));
    found.copied().ok_or_else(|| Error::NoCommonAlgorithm {
        kind,
        ours: ours.join(","),
        theirs: quoted(theirs.as_bytes()),
    })
}

fn first(list: &str) -> Option<&str> {
    list.split(',').next()
}

/// Brings `known` into the order that `wanted` asks for.
fn restricted(
    wanted: Option<&[String]>,
    known: impl Iterator<Item = &'static str>,
) -> Vec<&'static str> {
    let known: Vec<&'static str> = known.collect();
    match wanted {
        None => known,
        Some(wanted) => wanted
            .iter()
            .filter_map(|name| known.iter().find(|known| *known == name).copied())
            .collect(),
    }
}

/// Tells whether a signature algorithm is one of keys of type `kind`.
fn belongs(name: &str, kind: &Algorithm) -> bool {
    match kind {
        Algorithm::Rsa { .. } => name.starts_with("rsa-sha2-"),
        other => name == other.as_str(),
    }
}

/// Host key algorithms in order of preference. `ssh-rsa` is left out: its signatures rest on SHA-1.
const HOST_KEYS: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];
/// Compression that starts after login (OpenSSH's PROTOCOL, section 1.2): before it, an unknown
/// peer could feed the decompressor.
const ZLIB: &str = "zlib@openssh.com";
const NONE: &str = "none";
/// RFC 8308 section 2.1.
const EXT_INFO_CLIENT: &str = "ext-info-c";
/// OpenSSH's PROTOCOL, section 1.10.
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
/// Every name on offer comes from the tables it is looked up in.
const UNKNOWN: Error = Error::Crypto { what: "lookup of an algorithm on offer" };
