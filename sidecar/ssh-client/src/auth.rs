//! Authentication with a private key: the method `publickey` (RFC 4252 sections 5 and 7, RFC 8332).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use russh::keys::{
    Algorithm, HashAlg, PrivateKey,
    signature::Signer,
    ssh_encoding::Encode,
    ssh_key::{Signature, private::KeypairData},
};

use crate::{
    error::{Error, Login},
    wire::{Put, Reader, message, one_line, quoted},
};

/// The state of authentication.
///
/// The first request is already signed: asking first whether the server would accept the key costs a round
/// trip and saves nothing, as there is only one key.
///
/// The request does not wait for `SERVICE_ACCEPT` either, but only for [`HEAD_START`] after the service
/// request. The reason for the pause: sshd uses Nagle's algorithm until a session starts, so its second
/// answer waits until the first is acknowledged. If both requests arrived together, nothing would acknowledge
/// the first answer for 40 ms, Linux' longest delayed acknowledgement; the authentication request does, if it
/// arrives after it.
#[derive(Debug)]
pub(crate) struct Auth {
    user: String,
    key: Arc<PrivateKey>,
    /// `server-sig-algs` of the server's `EXT_INFO`, if it sent one (RFC 8308 section 3.1).
    accepted: Option<Vec<String>>,
    /// Signature algorithms of the requests so far.
    tried: Vec<&'static str>,
    banners: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Waiting for the first key exchange.
    KeyExchange,
    /// The service request must be sent.
    Service,
    /// The service request was sent; waiting for its answer, at most until then.
    Accept {
        until: Instant,
    },
    /// The authentication request must be signed and sent.
    Request,
    /// Waiting for the answer to it.
    Waiting,
    Done,
}

/// Result of a message of the server.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    Nothing,
    Banner(String),
    Authenticated,
}

impl Auth {
    pub(crate) fn new(user: String, key: Arc<PrivateKey>) -> Self {
        Self { user, key, accepted: None, tried: Vec::new(), banners: 0, step: Step::KeyExchange }
    }

    /// Starts authentication, after the first key exchange.
    pub(crate) fn begin(&mut self) {
        if self.step == Step::KeyExchange {
            self.step = Step::Service;
        }
    }

    /// Enters the state after authentication.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip(&mut self) {
        self.step = Step::Done;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// Returns the next payload to send.
    ///
    /// The signature is made here, as late as possible, so that the server's `EXT_INFO`, which follows its
    /// NEWKEYS, can still decide the hash.
    ///
    /// # Errors
    ///
    /// [`Error::Signing`] if the key cannot sign.
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        session_id: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        match self.step {
            Step::Service => {
                self.step = Step::Accept { until: now + HEAD_START };
                let mut payload = vec![message::SERVICE_REQUEST];
                payload.put_string(b"ssh-userauth");
                Ok(Some(payload))
            }
            Step::Request => {
                self.step = Step::Waiting;
                self.request(session_id).map(Some)
            }
            Step::KeyExchange | Step::Accept { .. } | Step::Waiting | Step::Done => Ok(None),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Step::Accept { until } = self.step { Some(until) } else { None }
    }

    /// Continues without the answer to the service request once [`HEAD_START`] has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|until| now >= until) {
            self.step = Step::Request;
        }
    }

    /// Reads `EXT_INFO` (RFC 8308 section 2.3).
    pub(crate) fn on_ext_info(&mut self, payload: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(payload, "EXT_INFO");
        reader.u8()?;
        for _ in 0..reader.u32()?.min(MAX_EXTENSIONS) {
            let name = reader.string()?;
            let value = reader.string()?;
            if name == b"server-sig-algs" {
                let list = String::from_utf8_lossy(value);
                self.accepted = Some(list.split(',').map(str::to_owned).collect());
            }
        }
        Ok(())
    }

    /// Handles a message of the authentication layer.
    ///
    /// # Errors
    ///
    /// [`Error::AuthRejected`], [`Error::AuthIncomplete`], or [`Error::Protocol`].
    pub(crate) fn handle(&mut self, payload: &[u8]) -> Result<Progress, Error> {
        let number = payload.first().copied().unwrap_or_default();
        let started = matches!(self.step, Step::Accept { .. } | Step::Request | Step::Waiting);
        match number {
            message::SERVICE_ACCEPT if started => {
                let mut reader = Reader::new(payload, "SERVICE_ACCEPT");
                reader.u8()?;
                match reader.string()? {
                    b"ssh-userauth" => {
                        if let Step::Accept { .. } = self.step {
                            self.step = Step::Request;
                        }
                        Ok(Progress::Nothing)
                    }
                    other => {
                        let name = quoted(other);
                        Err(Error::protocol(format!("service `{name}` was not requested")))
                    }
                }
            }
            message::USERAUTH_SUCCESS if self.step == Step::Waiting => {
                self.step = Step::Done;
                Ok(Progress::Authenticated)
            }
            message::USERAUTH_FAILURE if self.step == Step::Waiting => {
                let mut reader = Reader::new(payload, "USERAUTH_FAILURE");
                reader.u8()?;
                let methods = names(reader.name_list()?);
                if reader.bool()? {
                    return Err(Error::AuthIncomplete { methods });
                }
                if self.next_algorithm().is_some() && methods.iter().any(|name| name == PUBLICKEY) {
                    self.step = Step::Request;
                    return Ok(Progress::Nothing);
                }
                Err(Error::AuthRejected { login: self.login().into(), methods })
            }
            message::USERAUTH_BANNER if started => {
                self.banners += 1;
                if self.banners > MAX_BANNERS {
                    return Err(Error::protocol("too many banners"));
                }
                let mut reader = Reader::new(payload, "USERAUTH_BANNER");
                reader.u8()?;
                Ok(Progress::Banner(one_line(reader.string()?, BANNER_CHARACTERS)))
            }
            _ => Err(Error::protocol(format!("message {number} is not allowed during the login"))),
        }
    }

    /// The error of a DISCONNECT: once a login was requested, it is the answer to that.
    pub(crate) fn on_disconnected(&self, reason: u32, text: String) -> Error {
        match self.step {
            Step::Request | Step::Waiting if !self.tried.is_empty() => {
                Error::LoginEnded { login: self.login().into(), reason, text }
            }
            _ => Error::Disconnected { reason, text },
        }
    }

    fn login(&self) -> Login {
        let rsa_bits = match self.key.key_data() {
            KeypairData::Rsa(pair) => Some(pair.key_size()),
            _ => None,
        };
        let accepted =
            self.accepted.as_ref().filter(|_| !self.fitting().iter().any(|name| self.takes(name)));
        Login {
            user: self.user.clone(),
            tried: self.tried.join(", "),
            accepted: accepted.map(|names| quoted(names.join(",").as_bytes())),
            rsa_bits,
        }
    }

    fn request(&mut self, session_id: &[u8]) -> Result<Vec<u8>, Error> {
        let algorithm = self.next_algorithm().ok_or_else(|| Error::Signing {
            algorithm: self.key.algorithm().to_string(),
            why: "keys of this type are not supported".to_owned(),
        })?;
        self.tried.push(algorithm);
        let failed = |why: &dyn std::fmt::Display| Error::Signing {
            algorithm: algorithm.to_owned(),
            why: why.to_string(),
        };
        let blob = self.key.public_key().to_bytes().map_err(|error| failed(&error))?;

        let mut payload = vec![message::USERAUTH_REQUEST];
        payload.put_string(self.user.as_bytes());
        payload.put_string(b"ssh-connection");
        payload.put_string(PUBLICKEY.as_bytes());
        payload.put_bool(true);
        payload.put_string(algorithm.as_bytes());
        payload.put_string(&blob);
        let mut signed = Vec::new();
        signed.put_string(session_id);
        signed.extend_from_slice(&payload);
        let signature: Signature = match self.key.key_data() {
            KeypairData::Rsa(pair) => {
                let hash =
                    if algorithm == RSA_SHA2_512 { HashAlg::Sha512 } else { HashAlg::Sha256 };
                (pair, Some(hash)).try_sign(&signed)
            }
            _ => self.key.try_sign(&signed),
        }
        .map_err(|error| failed(&error))?;
        payload.put_string(&signature.encode_vec().map_err(|error| failed(&error))?);
        Ok(payload)
    }

    /// Chooses the signature algorithm of the next request; `None` if no further one makes sense.
    fn next_algorithm(&self) -> Option<&'static str> {
        let fitting = self.fitting();
        if self.accepted.is_none() {
            return fitting.iter().find(|name| !self.tried.contains(*name)).copied();
        }
        if self.tried.iter().any(|name| self.takes(name)) {
            // It has refused the key, not the algorithm; a server may count attempts and allow one.
            return None;
        }
        let fresh = fitting.iter().filter(|name| !self.tried.contains(*name));
        // One request is sent even if the list has no algorithm of this key: the list may be wrong, and the
        // server's own answer tells more than an error of ours.
        fresh
            .clone()
            .find(|name| self.takes(name))
            .or_else(|| fitting.first().filter(|_| self.tried.is_empty()))
            .copied()
    }

    /// Whether the server has named this algorithm among those that it takes.
    fn takes(&self, name: &str) -> bool {
        self.accepted.as_ref().is_some_and(|accepted| accepted.iter().any(|known| known == name))
    }

    /// The signature algorithms of the key, in order of preference.
    fn fitting(&self) -> &'static [&'static str] {
        match self.key.algorithm() {
            Algorithm::Ed25519 => &["ssh-ed25519"],
            Algorithm::Ecdsa { curve } => match curve {
                russh::keys::EcdsaCurve::NistP256 => &["ecdsa-sha2-nistp256"],
                russh::keys::EcdsaCurve::NistP384 => &["ecdsa-sha2-nistp384"],
                russh::keys::EcdsaCurve::NistP521 => &["ecdsa-sha2-nistp521"],
            },
            // A server without `server-sig-algs` is older than RFC 8308; SHA-256 is the hash that RFC 8332
            // section 3 recommends.
            Algorithm::Rsa { .. } if self.accepted.is_none() => &[RSA_SHA2_256, RSA_SHA2_512],
            Algorithm::Rsa { .. } => &[RSA_SHA2_512, RSA_SHA2_256],
            _ => &[],
        }
    }
}

fn names(list: &str) -> Vec<String> {
    list.split(',')
        .filter(|name| !name.is_empty())
        .take(MAX_METHODS)
        .map(|name| quoted(name.as_bytes()))
        .collect()
}

/// Time between the service request and the authentication request: sshd needs well below a millisecond to accept
/// the service on an idle machine. With a longer round trip, as is usual, the login takes this much longer.
const HEAD_START: Duration = Duration::from_millis(4);

/// Name of the authentication method (RFC 4252 section 7).
const PUBLICKEY: &str = "publickey";

const RSA_SHA2_256: &str = "rsa-sha2-256";

const RSA_SHA2_512: &str = "rsa-sha2-512";

/// Most banners. A limit of ours: servers send one.
const MAX_BANNERS: usize = 16;

/// Most characters of a banner; the rest is cut. A limit of ours.
const BANNER_CHARACTERS: usize = 2_000;

/// Most extensions of `EXT_INFO` that are read. A limit of ours.
const MAX_EXTENSIONS: u32 = 64;

/// Most authentication methods of the server in an error. A limit of ours.
const MAX_METHODS: usize = 16;
