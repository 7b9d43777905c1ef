//! Login with a key (RFC 4252 sections 5 and 7, RFC 8332).

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
    error::Error,
    wire::{Put, Reader, message, presentable, quoted},
};

/// The login.
///
/// The request goes out with its signature at once: asking first whether the key would do costs a
/// round trip and saves nothing, as there is only one key. Nor does it wait for the service to be
/// accepted, but for [`HEAD_START`], in which that is on its way: sshd leaves Nagle's algorithm on
/// until a session starts, so its second answer waits until the first is acknowledged. Where both
/// requests come at once nothing acknowledges that for 40 ms, Linux' longest delay; the login
/// request does so if it comes behind it.
#[derive(Debug)]
pub(crate) struct Auth {
    user: String,
    key: Arc<PrivateKey>,
    /// `server-sig-algs`, once the server has told them.
    accepted: Option<Vec<String>>,
    tried: Vec<&'static str>,
    banners: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Keys are not exchanged yet.
    Early,
    /// The service request is to be sent.
    Service,
    /// It went out, and the server has until then to accept it.
    Accept {
        until: Instant,
    },
    /// The login request is to be signed and sent.
    Request,
    /// The server's answer is awaited.
    Waiting,
    Done,
}

/// What a message of the server has led to.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Progress {
    Nothing,
    Banner(String),
    Authenticated,
}

impl Auth {
    pub(crate) fn new(user: String, key: Arc<PrivateKey>) -> Self {
        Self { user, key, accepted: None, tried: Vec::new(), banners: 0, step: Step::Early }
    }

    /// Starts; keys have been exchanged.
    pub(crate) fn begin(&mut self) {
        if self.step == Step::Early {
            self.step = Step::Service;
        }
    }

    /// Behaves as if the login were over.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip(&mut self) {
        self.step = Step::Done;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.step == Step::Done
    }

    /// Returns the next payload to send.
    ///
    /// The signature is made here, as late as possible, so that the server's `EXT_INFO`, which comes
    /// right behind its NEWKEYS, can still choose the hash.
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
            Step::Early | Step::Accept { .. } | Step::Waiting | Step::Done => Ok(None),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if let Step::Accept { until } = self.step { Some(until) } else { None }
    }

    /// Goes on without an answer once that has taken its time.
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

    /// Handles a message of the login.
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
                        Err(Error::protocol(format!("service `{name}` was not asked for")))
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
                let tried = self.tried.join(", ");
                Err(Error::AuthRejected { user: self.user.clone(), tried, methods })
            }
            message::USERAUTH_BANNER if started => {
                self.banners += 1;
                if self.banners > MAX_BANNERS {
                    return Err(Error::protocol("too many banners"));
                }
                let mut reader = Reader::new(payload, "USERAUTH_BANNER");
                reader.u8()?;
                Ok(Progress::Banner(presentable(reader.string()?, BANNER_CHARACTERS)))
            }
            _ => Err(Error::protocol(format!("message {number} does not belong to the login"))),
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

    /// Chooses the signature algorithm for the next try; `None` if all have been tried.
    fn next_algorithm(&self) -> Option<&'static str> {
        let fitting: &[&'static str] = match self.key.algorithm() {
            Algorithm::Ed25519 => &["ssh-ed25519"],
            Algorithm::Ecdsa { curve } => match curve {
                russh::keys::EcdsaCurve::NistP256 => &["ecdsa-sha2-nistp256"],
                russh::keys::EcdsaCurve::NistP384 => &["ecdsa-sha2-nistp384"],
                russh::keys::EcdsaCurve::NistP521 => &["ecdsa-sha2-nistp521"],
            },
            // Servers that tell nothing are older than RFC 8308; SHA-256 is the hash that
            // RFC 8332 recommends them to have.
            Algorithm::Rsa { .. } if self.accepted.is_none() => &[RSA_SHA2_256, RSA_SHA2_512],
            Algorithm::Rsa { .. } => &[RSA_SHA2_512, RSA_SHA2_256],
            _ => &[],
        };
        let fresh = |name: &&&str| !self.tried.contains(*name);
        let announced = |name: &&&str| {
            self.accepted
                .as_ref()
                .is_none_or(|accepted| accepted.iter().any(|known| known == **name))
        };
        // A list without any algorithm of this key is no reason not to try: it may be wrong, and
        // the server's own answer says more to the reader than ours would.
        let first = fitting.iter().filter(fresh).find(announced);
        first.or_else(|| fitting.first().filter(fresh).filter(|_| self.tried.is_empty())).copied()
    }
}

fn names(list: &str) -> Vec<String> {
    list.split(',')
        .filter(|name| !name.is_empty())
        .take(MAX_METHODS)
        .map(|name| quoted(name.as_bytes()))
        .collect()
}

/// What sshd gets to accept the service before the login request comes: it takes well below a
/// millisecond on an idle machine. Lost where the round trip is longer, as it mostly is.
const HEAD_START: Duration = Duration::from_millis(4);

const PUBLICKEY: &str = "publickey";

const RSA_SHA2_256: &str = "rsa-sha2-256";

const RSA_SHA2_512: &str = "rsa-sha2-512";

/// Banners that are shown; a limit of ours, servers send one.
const MAX_BANNERS: usize = 16;

/// Characters of a banner that are shown.
const BANNER_CHARACTERS: usize = 2_000;

/// Extensions that are looked at.
const MAX_EXTENSIONS: u32 = 64;

/// Methods of the server that are repeated in an error.
const MAX_METHODS: usize = 16;
