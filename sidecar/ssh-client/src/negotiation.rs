//! Negotiation of algorithms: KEXINIT of both sides and the choice that follows from them (RFC 4253
//! section 7.1).

use bytes::BufMut;
use russh::keys::Algorithm;

use crate::{
    algorithms::{Cipher, Direction, Mac},
    config::{Compression, Config},
    error::Error,
    exchange::Method,
    pin::HostKeyPin,
    wire::{Put, Reader, message, quoted},
};

/// The algorithms that the client offers.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    host_key: Vec<&'static str>,
    compression: &'static [&'static str],
}

impl Offer {
    pub(crate) fn new(config: &Config) -> Self {
        let mut host_key = match &config.host_key_algorithms {
            None => HOST_KEYS.to_vec(),
            Some(wanted) => wanted
                .iter()
                .filter_map(|name| HOST_KEYS.iter().find(|known| *known == name).copied())
                .collect(),
        };
        // A server presents one key only, so the types of pinned keys are preferred. A pinned fingerprint has no
        // type, so all types stay in the list.
        let pinned: Vec<_> = config.pins.iter().filter_map(HostKeyPin::algorithm).collect();
        host_key.sort_by_key(|name| !pinned.iter().any(|kind| belongs(name, kind)));
        Self {
            host_key,
            compression: match config.compression {
                Compression::Auto => &[ZLIB, NONE],
                Compression::On => &[ZLIB],
                Compression::Off => &[NONE],
            },
        }
    }

    /// Writes the KEXINIT payload. In the `initial` exchange it also announces `EXT_INFO` (RFC 8308 section 2.1)
    /// and strict key exchange.
    pub(crate) fn payload(&self, cookie: [u8; 16], initial: bool) -> Vec<u8> {
        let mut kex = names(Method::ALL, Method::name);
        if initial {
            kex.extend([EXT_INFO_CLIENT, EXT_INFO_IN_AUTH, STRICT_CLIENT]);
        }
        let (cipher, mac) = (names(Cipher::ALL, Cipher::name), names(Mac::ALL, Mac::name));
        let mut payload = vec![message::KEXINIT];
        payload.put_slice(&cookie);
        for list in [
            &*kex,
            &self.host_key,
            &cipher,
            &cipher,
            &mac,
            &mac,
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

        let itself = |name| name;
        let guessed_right = first(kex) == Method::ALL.first().map(|method| method.name())
            && first(host_key) == self.host_key.first().copied();
        let direction = |cipher: &str, mac: &str, compression: &str| {
            let cipher = pick("cipher", Cipher::ALL, Cipher::name, cipher)?;
            let mac = if cipher.needs_mac() {
                Some(pick("MAC", Mac::ALL, Mac::name, mac)?)
            } else {
                None
            };
            let compression = pick("compression", self.compression, itself, compression)?;
            Ok::<_, Error>(Direction { cipher, mac, compressed: compression == ZLIB })
        };
        Ok(Choice {
            method: pick("key exchange method", Method::ALL, Method::name, kex)?,
            host_key: pick("host key algorithm", &self.host_key, itself, host_key)?,
            outgoing: direction(cipher_out, mac_out, compression_out)?,
            incoming: direction(cipher_in, mac_in, compression_in)?,
            skip_guess: guess_follows && !guessed_right,
            strict: kex.split(',').any(|name| name == STRICT_SERVER),
        })
    }
}

/// The result of a negotiation.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    /// Name of the host key's signature algorithm.
    pub(crate) host_key: &'static str,
    pub(crate) outgoing: Direction,
    pub(crate) incoming: Direction,
    /// The server guessed another method and sent its first packet already, which must be ignored.
    pub(crate) skip_guess: bool,
    /// The server supports strict key exchange. Valid in the initial exchange only.
    pub(crate) strict: bool,
}

impl Choice {
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

/// Names of the algorithms in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Negotiated {
    /// Key exchange method.
    pub kex: &'static str,
    /// Signature algorithm of the host key.
    pub host_key: &'static str,
    /// Cipher of outgoing packets.
    pub cipher: &'static str,
    /// MAC of outgoing packets; `None` if the cipher authenticates by itself.
    pub mac: Option<&'static str>,
    /// Whether outgoing packets are compressed after the login.
    pub compressed: bool,
}

/// Chooses the first of the client's algorithms that the server has, too (RFC 4253 section 7.1).
fn pick<T: Copy>(
    kind: &'static str,
    ours: &[T],
    name: impl Fn(T) -> &'static str,
    theirs: &str,
) -> Result<T, Error> {
    let found = ours.iter().find(|one| theirs.split(',').any(|their| their == name(**one)));
    found.copied().ok_or_else(|| Error::NoCommonAlgorithm {
        kind,
        ours: names(ours, name).join(","),
        theirs: quoted(theirs.as_bytes()),
    })
}

fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|one| name(*one)).collect()
}

fn first(list: &str) -> Option<&str> {
    list.split(',').next()
}

/// Whether keys of type `kind` sign with the algorithm `name`.
fn belongs(name: &str, kind: &Algorithm) -> bool {
    match kind {
        Algorithm::Rsa { .. } => name.starts_with("rsa-sha2-"),
        other => name == other.as_str(),
    }
}

/// Host key algorithms in order of preference. `ssh-rsa` is not offered: its signatures use SHA-1.
const HOST_KEYS: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// Compression that starts after the login (OpenSSH's PROTOCOL section 1.2), so that no unauthenticated peer
/// reaches the decompressor.
const ZLIB: &str = "zlib@openssh.com";

const NONE: &str = "none";

/// Announces that the client reads `EXT_INFO` (RFC 8308 section 2.1).
const EXT_INFO_CLIENT: &str = "ext-info-c";

/// Announces that the client reads a second `EXT_INFO` during the login (OpenSSH's PROTOCOL section 1.13): only there
/// does OpenSSH name what `PubkeyAcceptedAlgorithms` takes of this user.
const EXT_INFO_IN_AUTH: &str = "ext-info-in-auth@openssh.com";

/// Announces strict key exchange (OpenSSH's PROTOCOL section 1.10).
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";

/// The server's announcement of strict key exchange.
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
