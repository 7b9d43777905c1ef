//! The transport layer (RFC 4253): identification, key exchange at the start and at any later time,
//! the server's proof of identity, and who may say what meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use russh::keys::signature::Verifier;
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{HashAlg, PublicKey};

use crate::cipher::{Letters, Opener, Sealer};
use crate::config::Config;
use crate::error::Error;
use crate::exchange::{Ephemeral, Secret, Transcript};
use crate::identification;
use crate::negotiation::{Choice, Direction, Negotiated, Offer};
use crate::packet::{PacketReader, PacketWriter};
use crate::pin::HostKeyPin;
use crate::wire::{Reader, message, quoted};

/// The transport layer of one connection.
#[derive(Debug)]
pub(crate) struct Transport {
    offer: Offer,
    pins: Vec<HostKeyPin>,
    rekey_bytes: u64,
    rekey_interval: Duration,
    /// When keys are to be exchanged by time; `None` before the first exchange has ended.
    rekey_due: Option<Instant>,

    pub(crate) reader: PacketReader,
    pub(crate) writer: PacketWriter,
    /// What the key exchange has to say; nothing else may come in between.
    queue: VecDeque<Outgoing>,
    /// What is to be told upwards before the next message.
    news: VecDeque<Incoming>,

    identification: Option<String>,
    skipped: usize,
    exchange: Exchange,
    /// Both sides keep to OpenSSH's strict rules: no other message during the first exchange, and
    /// sequence numbers start anew with each set of keys.
    strict: bool,
    session_id: Option<Vec<u8>>,
    host_key: Option<PublicKey>,
    authenticated: bool,
    /// Compression of the keys in use, outgoing and incoming; it starts with the login.
    compressed: (bool, bool),
    rekeys: u64,
}

/// What comes up from the transport layer.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The server's identification.
    Identified(String),
    /// The server has proven to hold this key.
    HostKey { fingerprint: String, pinned: bool },
    /// Keys are agreed upon for the first time: the login may start.
    Agreed(Negotiated),
    /// A message for the layers above; not empty.
    Message(BytesMut),
}

/// What is to be sent by the key exchange, in order.
#[derive(Debug)]
enum Outgoing {
    Identification,
    Payload(Vec<u8>),
    /// NEWKEYS, and what it takes into use.
    NewKeys(Box<Sealer>, Direction),
}

/// Where the key exchange stands.
#[derive(Debug)]
enum Exchange {
    /// None is under way.
    Idle,
    /// Our KEXINIT is on its way, the server's is awaited.
    Started { kexinit: Vec<u8> },
    /// The server's half is awaited.
    Replying { ephemeral: Ephemeral, kexinit: Vec<u8>, server_kexinit: Vec<u8>, choice: Choice },
    /// Our NEWKEYS is on its way, the server's is awaited.
    Finishing { opener: Box<Opener>, incoming: Direction },
    /// An error has ended it.
    Failed,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            offer: Offer::new(config),
            pins: config.pins.clone(),
            rekey_bytes: config.rekey_bytes.max(MIN_REKEY_BYTES),
            rekey_interval: config.rekey_interval.clamp(MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL),
            rekey_due: None,
            reader: PacketReader::new(),
            writer: PacketWriter::new(),
            queue: VecDeque::new(),
            news: VecDeque::new(),
            identification: None,
            skipped: 0,
            exchange: Exchange::Idle,
            strict: false,
            session_id: None,
            host_key: None,
            authenticated: false,
            compressed: (false, false),
            rekeys: 0,
        }
    }

    /// Returns what comes next out of the input, `None` once more input is needed.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the peer; the connection is then over.
    pub(crate) fn next(&mut self, now: Instant) -> Result<Option<Incoming>, Error> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(Some(news));
            }
            if self.identification.is_none() {
                let taken = identification::take(&mut self.reader.input, &mut self.skipped)?;
                let Some(theirs) = taken else { return Ok(None) };
                self.on_identification(theirs)?;
                continue;
            }
            let Some(payload) = self.reader.next()? else { return Ok(None) };
            if let Some(message) = self.handle(now, payload)? {
                return Ok(Some(Incoming::Message(message)));
            }
        }
    }

    /// Writes at most one packet of the key exchange; returns whether anything was written.
    pub(crate) fn poll_transmit(&mut self, out: &mut BytesMut) -> Result<bool, Error> {
        match self.queue.pop_front() {
            None => return Ok(false),
            Some(Outgoing::Identification) => {
                out.extend_from_slice(identification::OURS.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Some(Outgoing::Payload(payload)) => self.writer.write(out, &payload, &[])?,
            Some(Outgoing::NewKeys(sealer, direction)) => {
                self.writer.write(out, &[message::NEWKEYS], &[])?;
                self.compressed.0 = direction.compressed;
                let compress = self.authenticated && direction.compressed;
                self.writer.switch(*sealer, compress, self.strict);
            }
        }
        Ok(true)
    }

    /// Tells whether messages of the layers above may be sent: keys are agreed upon and no exchange
    /// forbids it (RFC 4253 section 7.1).
    pub(crate) fn may_send(&self) -> bool {
        self.queue.is_empty()
            && self.session_id.is_some()
            && matches!(self.exchange, Exchange::Idle | Exchange::Finishing { .. })
    }

    /// Tells whether a farewell can be sent: our identification went out.
    pub(crate) fn has_spoken(&self) -> bool {
        self.identification.is_some()
            && !matches!(self.queue.front(), Some(Outgoing::Identification))
    }

    /// Starts an exchange if the keys have been used enough; to be called between packets while
    /// logged in.
    pub(crate) fn rekey_if_due(&mut self, now: Instant) -> Result<(), Error> {
        if !matches!(self.exchange, Exchange::Idle) || !self.authenticated {
            return Ok(());
        }
        let spent = [self.reader.used(), self.writer.used()]
            .iter()
            .any(|used| used.bytes >= self.rekey_bytes || used.packets >= MAX_PACKETS);
        if spent || self.rekey_due.is_some_and(|due| now >= due) {
            self.start_exchange()?;
        }
        Ok(())
    }

    /// When an exchange is due by time.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.rekey_due.filter(|_| matches!(self.exchange, Exchange::Idle) && self.authenticated)
    }

    /// Notes the login's success, with which compression starts.
    pub(crate) fn on_authenticated(&mut self) {
        self.authenticated = true;
        if self.compressed.0 {
            self.writer.compress();
        }
        if self.compressed.1 {
            self.reader.decompress();
        }
    }

    /// The hash of the first exchange, `None` before its end.
    pub(crate) fn session_id(&self) -> Option<&[u8]> {
        self.session_id.as_deref()
    }

    /// How often keys were exchanged after the first time.
    pub(crate) fn rekeys(&self) -> u64 {
        self.rekeys
    }

    /// Behaves as if keys were exchanged, without encryption.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip_exchange(&mut self, now: Instant) {
        self.identification = Some("SSH-2.0-fuzz".to_owned());
        self.session_id = Some(vec![0; 32]);
        self.rekey_due = Some(now + self.rekey_interval);
        self.on_authenticated();
    }

    fn on_identification(&mut self, theirs: String) -> Result<(), Error> {
        self.news.push_back(Incoming::Identified(theirs.clone()));
        self.identification = Some(theirs);
        // Not before: the path below may have swallowed whatever was sent before the server spoke.
        self.queue.push_back(Outgoing::Identification);
        self.start_exchange()
    }

    fn start_exchange(&mut self) -> Result<(), Error> {
        let mut cookie = [0; 16];
        aws_lc_rs::rand::fill(&mut cookie).map_err(|_| Error::Crypto { what: "random bytes" })?;
        let kexinit = self.offer.payload(cookie, self.session_id.is_none());
        self.queue.push_back(Outgoing::Payload(kexinit.clone()));
        self.exchange = Exchange::Started { kexinit };
        Ok(())
    }

    /// Handles the messages of this layer and returns those of others.
    fn handle(&mut self, now: Instant, payload: BytesMut) -> Result<Option<BytesMut>, Error> {
        let number = payload.first().copied().unwrap_or_default();
        if number == message::DISCONNECT {
            return Err(disconnected(&payload));
        }
        let initial = self.rekey_due.is_none();
        if matches!(number, message::IGNORE | message::UNIMPLEMENTED | message::DEBUG) {
            if initial && self.strict {
                return Err(unexpected(number, "the first key exchange"));
            }
            return Ok(None);
        }
        match (std::mem::replace(&mut self.exchange, Exchange::Failed), number) {
            (Exchange::Started { kexinit }, message::KEXINIT) => {
                self.on_kexinit(kexinit, &payload)?;
            }
            (Exchange::Idle, message::KEXINIT) => {
                self.start_exchange()?;
                if let Exchange::Started { kexinit } =
                    std::mem::replace(&mut self.exchange, Exchange::Failed)
                {
                    self.on_kexinit(kexinit, &payload)?;
                }
            }
            (Exchange::Replying { ephemeral, kexinit, server_kexinit, mut choice }, number)
                if choice.skip_guess && is_method_specific(number) =>
            {
                choice.skip_guess = false;
                self.exchange = Exchange::Replying { ephemeral, kexinit, server_kexinit, choice };
            }
            (
                Exchange::Replying { ephemeral, kexinit, server_kexinit, choice },
                message::KEX_ECDH_REPLY,
            ) => self.on_reply(ephemeral, &kexinit, &server_kexinit, &choice, &payload)?,
            (Exchange::Finishing { opener, incoming }, message::NEWKEYS) => {
                self.on_newkeys(now, *opener, &incoming);
            }
            (Exchange::Idle, number) if !is_key_exchange(number) => {
                self.exchange = Exchange::Idle;
                return Ok(Some(payload));
            }
            // The server sent this before it saw our KEXINIT.
            (started @ Exchange::Started { .. }, number)
                if self.session_id.is_some() && !is_key_exchange(number) =>
            {
                self.exchange = started;
                return Ok(Some(payload));
            }
            _ => return Err(unexpected(number, "this state of the key exchange")),
        }
        Ok(None)
    }

    fn on_kexinit(&mut self, kexinit: Vec<u8>, payload: &[u8]) -> Result<(), Error> {
        let choice = self.offer.choose(payload)?;
        if self.session_id.is_none() {
            self.strict = choice.strict;
            if self.strict && self.reader.last_sequence() != 0 {
                return Err(Error::protocol("KEXINIT was not the first packet"));
            }
        }
        let ephemeral = Ephemeral::generate(choice.method)?;
        self.queue.push_back(Outgoing::Payload(ephemeral.init_payload()));
        let server_kexinit = payload.to_vec();
        self.exchange = Exchange::Replying { ephemeral, kexinit, server_kexinit, choice };
        Ok(())
    }

    fn on_reply(
        &mut self,
        ephemeral: Ephemeral,
        kexinit: &[u8],
        server_kexinit: &[u8],
        choice: &Choice,
        payload: &[u8],
    ) -> Result<(), Error> {
        let mut reader = Reader::new(payload, "KEX_ECDH_REPLY");
        reader.u8()?;
        let host_key = reader.string()?;
        let server_public = reader.string()?;
        let signature = reader.string()?;
        reader.end()?;
        let secret = ephemeral.finish(&Transcript {
            client_identification: identification::OURS.as_bytes(),
            server_identification: self.identification.as_deref().unwrap_or_default().as_bytes(),
            client_kexinit: kexinit,
            server_kexinit,
            host_key,
            server_public,
        })?;
        self.verify(host_key, signature, choice, &secret)?;

        let initial = self.session_id.is_none();
        let session_id =
            self.session_id.get_or_insert_with(|| secret.exchange_hash().to_vec()).as_slice();
        let sealer = Sealer::new(&choice.outgoing, &secret, session_id, Letters::OUTGOING)?;
        let opener = Opener::new(&choice.incoming, &secret, session_id, Letters::INCOMING)?;
        self.queue.push_back(Outgoing::NewKeys(Box::new(sealer), choice.outgoing.clone()));
        self.exchange =
            Exchange::Finishing { opener: Box::new(opener), incoming: choice.incoming.clone() };
        if initial {
            self.news.push_back(Incoming::Agreed(choice.negotiated()));
        }
        Ok(())
    }

    /// Demands that the host key is one we accept and that its holder is who we talk to.
    fn verify(
        &mut self,
        blob: &[u8],
        signature: &[u8],
        choice: &Choice,
        secret: &Secret,
    ) -> Result<(), Error> {
        let unreadable = |_| Error::protocol("host key cannot be read");
        let key = PublicKey::from_bytes(blob).map_err(unreadable)?;
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        if !choice.host_key.starts_with(family(&key)) {
            return Err(Error::protocol(format!(
                "host key is not for {} as was agreed",
                choice.host_key
            )));
        }
        let pinned = self.pins.iter().any(|pin| pin.matches(&key));
        let changed = self.host_key.as_ref().filter(|known| known.key_data() != key.key_data());
        if changed.is_some() || (!pinned && !self.pins.is_empty()) {
            let expected = match changed {
                Some(known) => known.fingerprint(HashAlg::Sha256).to_string(),
                None => self.pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            let actual = format!("{fingerprint} ({})", key.algorithm());
            return Err(Error::HostKeyMismatch { expected, actual });
        }
        let mut reader = Reader::new(signature, "signature");
        let named = reader.string()?;
        let raw = reader.string()?;
        let fits = named == choice.host_key.as_bytes()
            && is_signed(&key, choice.host_key, signature, raw, secret.exchange_hash());
        if !fits {
            return Err(Error::HostKeyUnproven { fingerprint });
        }
        if self.host_key.is_none() {
            self.host_key = Some(key);
            self.news.push_back(Incoming::HostKey { fingerprint, pinned });
        }
        Ok(())
    }

    fn on_newkeys(&mut self, now: Instant, opener: Opener, incoming: &Direction) {
        self.compressed.1 = incoming.compressed;
        let compressed = self.authenticated && incoming.compressed;
        if self.rekey_due.is_some() {
            self.rekeys += 1;
        }
        self.reader.switch(opener, compressed, self.strict);
        self.rekey_due = Some(now + self.rekey_interval);
        self.exchange = Exchange::Idle;
    }
}

/// Verifies the server's signature of the exchange hash.
fn is_signed(key: &PublicKey, algorithm: &str, signature: &[u8], raw: &[u8], hash: &[u8]) -> bool {
    if let KeyData::Rsa(rsa) = key.key_data() {
        // By aws-lc, which takes keys of 2,048 to 8,192 bits.
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

/// How the names of a key's signature algorithms start.
fn family(key: &PublicKey) -> &str {
    match key.key_data() {
        KeyData::Rsa(_) => "rsa-sha2-",
        KeyData::Ed25519(_) => "ssh-ed25519",
        KeyData::Ecdsa(key) => match key.curve() {
            russh::keys::EcdsaCurve::NistP256 => "ecdsa-sha2-nistp256",
            russh::keys::EcdsaCurve::NistP384 => "ecdsa-sha2-nistp384",
            russh::keys::EcdsaCurve::NistP521 => "ecdsa-sha2-nistp521",
        },
        _ => "none of ours",
    }
}

fn disconnected(payload: &[u8]) -> Error {
    let mut reader = Reader::new(payload, "DISCONNECT");
    let parsed = reader.u8().and_then(|_| Ok((reader.u32()?, quoted(reader.string()?))));
    match parsed {
        Ok((reason, text)) => Error::Disconnected { reason, text },
        Err(error) => error,
    }
}

fn unexpected(number: u8, place: &str) -> Error {
    Error::protocol(format!("message {number} does not belong into {place}"))
}

/// Numbers 20 to 49 are the key exchange's (RFC 4250 section 4.1.1).
fn is_key_exchange(number: u8) -> bool {
    (20..=49).contains(&number)
}

/// Numbers 30 to 49 are those of each method.
fn is_method_specific(number: u8) -> bool {
    (30..=49).contains(&number)
}

/// Packets after which keys are exchanged whatever their volume: RFC 4344 section 3.1 demands it
/// before sequence numbers repeat.
const MAX_PACKETS: u64 = 1 << 31;
/// Least volume between exchanges, so that an exchange does not by itself call for the next.
const MIN_REKEY_BYTES: u64 = 4 * 1024;
/// Least time between exchanges.
const MIN_REKEY_INTERVAL: Duration = Duration::from_millis(10);
/// Longest time between exchanges: sums with it stay within what an `Instant` can hold.
const MAX_REKEY_INTERVAL: Duration = Duration::from_hours(24 * 365);
