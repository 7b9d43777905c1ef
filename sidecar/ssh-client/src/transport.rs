//! The transport layer (RFC 4253): identification, key exchange at the start and later, verification of the host
//! key, and which messages are allowed when.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use russh::keys::{HashAlg, PublicKey};

use crate::{
    cipher::{Letters, Opener, Sealer},
    config::Config,
    error::Error,
    exchange::{Ephemeral, Secret, Transcript},
    host_key,
    identification::{self, Preamble},
    negotiation::{Choice, Negotiated, Offer},
    packet::{PacketReader, PacketWriter},
    pin::HostKeyPin,
    wire::{Reader, message, quoted},
};

/// The transport layer of one connection.
#[derive(Debug)]
pub(crate) struct Transport {
    offer: Offer,
    pins: Vec<HostKeyPin>,
    rekey_bytes: u64,
    rekey_interval: Duration,

    pub(crate) reader: PacketReader,
    pub(crate) writer: PacketWriter,
    /// Messages of the key exchange to send. While there are any, no others may be sent.
    queue: VecDeque<Outgoing>,
    /// Results to return from `next` before the next message.
    pending: VecDeque<Incoming>,

    /// What came before the server's identification.
    preamble: Preamble,
    exchange: Exchange,
    authenticated: bool,
    /// Whether compression was negotiated with the keys in use, outgoing and incoming; it starts after the login.
    compressed: (bool, bool),
    rekeys: u64,
}

/// What the transport layer passes to the layers above.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The server's identification.
    Identified(String),
    /// The server has proven that it holds this key.
    HostKey { fingerprint: String, pinned: bool },
    /// The first key exchange has its keys: the login may start.
    Agreed(Negotiated),
    /// A message for the layers above; not empty.
    Message(BytesMut),
}

/// A message of the key exchange to send.
#[derive(Debug)]
enum Outgoing {
    Identification,
    Payload(Vec<u8>),
    /// NEWKEYS, and the keys that are used after it.
    NewKeys {
        sealer: Box<Sealer>,
        compressed: bool,
        reset_sequence: bool,
    },
}

/// State of the key exchange.
#[derive(Debug)]
enum Exchange {
    /// Waiting for the server's identification.
    Identifying,
    /// The client's KEXINIT is queued or sent; waiting for the server's.
    Started { server: Server, kexinit: Vec<u8> },
    /// Waiting for the server's half, `KEX_ECDH_REPLY`.
    Replying(Box<Replying>),
    /// The client's NEWKEYS is queued or sent; waiting for the server's.
    Finishing { session: Session, is_first: bool, opener: Box<Opener>, compressed: bool },
    /// No exchange is in progress; the next one starts at `rekey_due` at the latest.
    Idle { session: Session, rekey_due: Instant },
    /// After an error.
    Failed,
}

/// What is needed to finish the exchange when the server's half arrives.
#[derive(Debug)]
struct Replying {
    server: Server,
    kexinit: Vec<u8>,
    server_kexinit: Vec<u8>,
    ephemeral: Ephemeral,
    choice: Choice,
}

/// The server of an exchange.
#[derive(Debug)]
enum Server {
    /// In the first exchange: only its identification is known.
    New { identification: String },
    /// In a later exchange: it has proven its host key.
    Proven(Session),
}

impl Server {
    fn identification(&self) -> &str {
        match self {
            Self::New { identification } | Self::Proven(Session { identification, .. }) => {
                identification
            }
        }
    }

    fn session(&self) -> Option<&Session> {
        match self {
            Self::New { .. } => None,
            Self::Proven(session) => Some(session),
        }
    }
}

/// Results of the first exchange that later ones need.
#[derive(Debug)]
struct Session {
    identification: String,
    /// The session identifier: the hash of the first exchange (RFC 4253 section 7.2).
    id: Vec<u8>,
    host_key: PublicKey,
    /// Both sides use strict key exchange (OpenSSH's PROTOCOL section 1.10): no other messages during the first
    /// exchange, and sequence numbers start at 0 with each set of keys.
    strict: bool,
}

impl Transport {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            offer: Offer::new(config),
            pins: config.pins.clone(),
            rekey_bytes: config.rekey_bytes.max(MIN_REKEY_BYTES),
            rekey_interval: config.rekey_interval.clamp(MIN_REKEY_INTERVAL, MAX_REKEY_INTERVAL),
            reader: PacketReader::new(),
            writer: PacketWriter::new(),
            queue: VecDeque::new(),
            pending: VecDeque::new(),
            preamble: Preamble::default(),
            exchange: Exchange::Identifying,
            authenticated: false,
            compressed: (false, false),
            rekeys: 0,
        }
    }

    /// Returns the next result of the input, `None` if more input is needed.
    ///
    /// # Errors
    ///
    /// Any violation of the protocol by the server, or its DISCONNECT. The connection has then ended.
    pub(crate) fn next(&mut self, now: Instant) -> Result<Option<Incoming>, Error> {
        loop {
            if let Some(incoming) = self.pending.pop_front() {
                return Ok(Some(incoming));
            }
            if let Exchange::Identifying = self.exchange {
                let taken = identification::take(&mut self.reader.input, &mut self.preamble)?;
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

    /// Writes at most one message of the key exchange; returns whether it wrote one.
    pub(crate) fn poll_transmit(&mut self, out: &mut BytesMut) -> Result<bool, Error> {
        match self.queue.pop_front() {
            None => return Ok(false),
            Some(Outgoing::Identification) => {
                out.extend_from_slice(identification::OURS.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
            Some(Outgoing::Payload(payload)) => self.writer.write(out, &payload, &[])?,
            Some(Outgoing::NewKeys { sealer, compressed, reset_sequence }) => {
                self.writer.write(out, &[message::NEWKEYS], &[])?;
                self.compressed.0 = compressed;
                self.writer.switch(*sealer, self.authenticated && compressed, reset_sequence);
            }
        }
        Ok(true)
    }

    /// Whether messages of the layers above may be sent: there are keys, and no key exchange forbids it (RFC 4253
    /// section 7.1).
    pub(crate) fn may_send(&self) -> bool {
        self.queue.is_empty()
            && matches!(self.exchange, Exchange::Idle { .. } | Exchange::Finishing { .. })
    }

    /// Whether the client's identification was sent. Only after it a DISCONNECT can be.
    pub(crate) fn is_identified(&self) -> bool {
        !matches!(self.exchange, Exchange::Identifying)
            && !matches!(self.queue.front(), Some(Outgoing::Identification))
    }

    /// The words of the server ahead of its identification, while that is awaited; `None` if there are none.
    pub(crate) fn preamble(&self) -> Option<String> {
        let awaited = matches!(self.exchange, Exchange::Identifying);
        awaited.then(|| self.preamble.words(&self.reader.input)).flatten()
    }

    /// Starts a key exchange if the volume or the time since the last one requires it, once logged in. Call it
    /// between packets.
    pub(crate) fn rekey_if_due(&mut self, now: Instant) -> Result<(), Error> {
        let is_volume_used = [self.reader.used(), self.writer.used()]
            .iter()
            .any(|used| used.bytes >= self.rekey_bytes || used.packets >= MAX_PACKETS);
        match std::mem::replace(&mut self.exchange, Exchange::Failed) {
            Exchange::Idle { session, rekey_due }
                if self.authenticated && (is_volume_used || now >= rekey_due) =>
            {
                self.start_exchange(Server::Proven(session))
            }
            other => {
                self.exchange = other;
                Ok(())
            }
        }
    }

    /// When the next exchange is due by time.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.exchange {
            Exchange::Idle { rekey_due, .. } if self.authenticated => Some(rekey_due),
            _ => None,
        }
    }

    /// To be called after a successful login, which starts compression.
    pub(crate) fn on_authenticated(&mut self) {
        self.authenticated = true;
        if self.compressed.0 {
            self.writer.compress();
        }
        if self.compressed.1 {
            self.reader.decompress();
        }
    }

    /// The session identifier; `None` before the first exchange has it and while a later one is in progress.
    pub(crate) fn session_id(&self) -> Option<&[u8]> {
        match &self.exchange {
            Exchange::Finishing { session, .. } | Exchange::Idle { session, .. } => {
                Some(&session.id)
            }
            _ => None,
        }
    }

    /// Number of key exchanges after the first one.
    pub(crate) fn rekeys(&self) -> u64 {
        self.rekeys
    }

    /// Enters the state after a key exchange, without encryption.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip_exchange(&mut self, now: Instant) {
        use russh::keys::ssh_key::public::{Ed25519PublicKey, KeyData};

        let session = Session {
            identification: "SSH-2.0-fuzz".to_owned(),
            id: vec![0; 32],
            host_key: KeyData::Ed25519(Ed25519PublicKey([0; 32])).into(),
            strict: false,
        };
        self.exchange = Exchange::Idle { session, rekey_due: now + self.rekey_interval };
        self.on_authenticated();
    }

    fn on_identification(&mut self, theirs: String) -> Result<(), Error> {
        self.pending.push_back(Incoming::Identified(theirs.clone()));
        // Not earlier: the path below may lose what is sent before the server's first bytes.
        self.queue.push_back(Outgoing::Identification);
        self.start_exchange(Server::New { identification: theirs })
    }

    fn start_exchange(&mut self, server: Server) -> Result<(), Error> {
        let kexinit = self.queue_kexinit(&server)?;
        self.exchange = Exchange::Started { server, kexinit };
        Ok(())
    }

    fn queue_kexinit(&mut self, server: &Server) -> Result<Vec<u8>, Error> {
        let mut cookie = [0; 16];
        aws_lc_rs::rand::fill(&mut cookie).map_err(|_| Error::Crypto { what: "random bytes" })?;
        let kexinit = self.offer.payload(cookie, server.session().is_none());
        self.queue.push_back(Outgoing::Payload(kexinit.clone()));
        Ok(kexinit)
    }

    /// Handles the messages of this layer and returns those of the layers above.
    fn handle(&mut self, now: Instant, payload: BytesMut) -> Result<Option<BytesMut>, Error> {
        let number = payload.first().copied().unwrap_or_default();
        if number == message::DISCONNECT {
            return Err(disconnected(&payload));
        }
        if matches!(number, message::IGNORE | message::UNIMPLEMENTED | message::DEBUG) {
            if self.is_in_strict_exchange() {
                return Err(unexpected(number, "the first key exchange"));
            }
            return Ok(None);
        }
        match (std::mem::replace(&mut self.exchange, Exchange::Failed), number) {
            (Exchange::Started { server, kexinit }, message::KEXINIT) => {
                self.on_kexinit(server, kexinit, &payload)?;
            }
            (Exchange::Idle { session, .. }, message::KEXINIT) => {
                let server = Server::Proven(session);
                let kexinit = self.queue_kexinit(&server)?;
                self.on_kexinit(server, kexinit, &payload)?;
            }
            (Exchange::Replying(mut replying), number)
                if replying.choice.skip_guess && is_method_specific(number) =>
            {
                replying.choice.skip_guess = false;
                self.exchange = Exchange::Replying(replying);
            }
            (Exchange::Replying(replying), message::KEX_ECDH_REPLY) => {
                self.on_reply(*replying, &payload)?;
            }
            (Exchange::Finishing { session, is_first, opener, compressed }, message::NEWKEYS) => {
                self.rekeys += u64::from(!is_first);
                self.compressed.1 = compressed;
                self.reader.switch(*opener, self.authenticated && compressed, session.strict);
                self.exchange = Exchange::Idle { session, rekey_due: now + self.rekey_interval };
            }
            // Also while an exchange has only started: the server may have sent this before it received our
            // KEXINIT.
            (
                state @ (Exchange::Idle { .. }
                | Exchange::Started { server: Server::Proven(_), .. }),
                number,
            ) if !is_key_exchange(number) => {
                self.exchange = state;
                return Ok(Some(payload));
            }
            _ => return Err(unexpected(number, "this state of the key exchange")),
        }
        Ok(None)
    }

    /// Whether the first key exchange is in progress, and strict.
    fn is_in_strict_exchange(&self) -> bool {
        match &self.exchange {
            Exchange::Replying(replying) => {
                replying.server.session().is_none() && replying.choice.strict
            }
            Exchange::Finishing { session, is_first, .. } => *is_first && session.strict,
            _ => false,
        }
    }

    fn on_kexinit(
        &mut self,
        server: Server,
        kexinit: Vec<u8>,
        payload: &[u8],
    ) -> Result<(), Error> {
        let choice = self.offer.choose(payload)?;
        let is_first = server.session().is_none();
        if is_first && choice.strict && self.reader.last_sequence() != 0 {
            return Err(Error::protocol("KEXINIT was not the first packet"));
        }
        let ephemeral = Ephemeral::generate(choice.method)?;
        self.queue.push_back(Outgoing::Payload(ephemeral.init_payload()));
        let server_kexinit = payload.to_vec();
        let replying = Replying { server, kexinit, server_kexinit, ephemeral, choice };
        self.exchange = Exchange::Replying(Box::new(replying));
        Ok(())
    }

    fn on_reply(&mut self, replying: Replying, payload: &[u8]) -> Result<(), Error> {
        let Replying { server, kexinit, server_kexinit, ephemeral, choice } = replying;
        let mut reader = Reader::new(payload, "KEX_ECDH_REPLY");
        reader.u8()?;
        let host_key = reader.string()?;
        let server_public = reader.string()?;
        let signature = reader.string()?;
        reader.end()?;
        let secret = ephemeral.finish(&Transcript {
            client_identification: identification::OURS.as_bytes(),
            server_identification: server.identification().as_bytes(),
            client_kexinit: &kexinit,
            server_kexinit: &server_kexinit,
            host_key,
            server_public,
        })?;
        let host_key = self.verify(server.session(), host_key, signature, &choice, &secret)?;

        let is_first = server.session().is_none();
        let session = match server {
            Server::Proven(session) => session,
            Server::New { identification } => {
                let fingerprint = host_key.fingerprint(HashAlg::Sha256).to_string();
                // `verify` has checked that the key is pinned if there are pins.
                let pinned = !self.pins.is_empty();
                self.pending.push_back(Incoming::HostKey { fingerprint, pinned });
                self.pending.push_back(Incoming::Agreed(choice.negotiated()));
                let (id, strict) = (secret.exchange_hash().to_vec(), choice.strict);
                Session { identification, id, host_key, strict }
            }
        };
        let sealer = Sealer::new(&choice.outgoing, &secret, &session.id, Letters::OUTGOING)?;
        let opener = Opener::new(&choice.incoming, &secret, &session.id, Letters::INCOMING)?;
        self.queue.push_back(Outgoing::NewKeys {
            sealer: Box::new(sealer),
            compressed: choice.outgoing.compressed,
            reset_sequence: session.strict,
        });
        let (opener, compressed) = (Box::new(opener), choice.incoming.compressed);
        self.exchange = Exchange::Finishing { session, is_first, opener, compressed };
        Ok(())
    }

    /// Checks that the host key is accepted and unchanged, and that the server has signed with it; returns it.
    fn verify(
        &self,
        session: Option<&Session>,
        blob: &[u8],
        signature: &[u8],
        choice: &Choice,
        secret: &Secret,
    ) -> Result<PublicKey, Error> {
        let key = host_key::read(blob, choice.host_key)?;
        let pinned = self.pins.iter().any(|pin| pin.matches(&key));
        let changed = session
            .map(|session| &session.host_key)
            .filter(|known| known.key_data() != key.key_data());
        if changed.is_some() || (!pinned && !self.pins.is_empty()) {
            let expected = match changed {
                Some(known) => known.fingerprint(HashAlg::Sha256).to_string(),
                None => self.pins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            let fingerprint = key.fingerprint(HashAlg::Sha256);
            let actual = format!("{fingerprint} ({})", key.algorithm());
            return Err(Error::HostKeyMismatch { expected, actual });
        }
        host_key::prove(&key, choice.host_key, signature, secret.exchange_hash())?;
        Ok(key)
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
    Error::protocol(format!("message {number} is not allowed in {place}"))
}

/// Whether a message belongs to the key exchange: numbers 20 to 49 (RFC 4250 section 4.1.1).
fn is_key_exchange(number: u8) -> bool {
    (20..=49).contains(&number)
}

/// Whether a message belongs to a key exchange method: numbers 30 to 49 (RFC 4250 section 4.1.1).
fn is_method_specific(number: u8) -> bool {
    (30..=49).contains(&number)
}

/// Packets after which keys are exchanged, whatever their volume. RFC 4344 section 3.1 requires it before sequence
/// numbers repeat, which is after 2^32.
const MAX_PACKETS: u64 = 1 << 31;

/// Least volume between exchanges, in bytes: more than an exchange itself takes, so that it does not cause
/// the next one.
const MIN_REKEY_BYTES: u64 = 4 * 1024;

/// Least time between exchanges. A limit of ours.
const MIN_REKEY_INTERVAL: Duration = Duration::from_millis(10);

/// Longest time between exchanges: a year can be added to any `Instant`.
const MAX_REKEY_INTERVAL: Duration = Duration::from_hours(24 * 365);
