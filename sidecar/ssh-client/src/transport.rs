//! The transport layer (RFC 4253): identification, key exchange at the start and at any later time,
//! the server's proof of identity, and who may say what meanwhile.

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
    host_key, identification,
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
    /// What the key exchange has to say; nothing else may come in between.
    queue: VecDeque<Outgoing>,
    /// What is to be told upwards before the next message.
    news: VecDeque<Incoming>,

    exchange: Exchange,
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
    NewKeys {
        sealer: Box<Sealer>,
        compressed: bool,
        reset_sequence: bool,
    },
}

/// Where the key exchange stands.
#[derive(Debug)]
enum Exchange {
    /// The server's identification is awaited; so many bytes of other lines have come before it.
    Identifying { skipped: usize },
    /// Our KEXINIT is on its way, the server's is awaited.
    Started { server: Server, kexinit: Vec<u8> },
    /// The server's half is awaited.
    Replying(Box<Replying>),
    /// Our NEWKEYS is on its way, the server's is awaited.
    Finishing { session: Session, is_first: bool, opener: Box<Opener>, compressed: bool },
    /// None is under way; the next one begins at this time at the latest.
    Idle { session: Session, rekey_due: Instant },
    /// An error has ended it.
    Failed,
}

/// What an exchange waits with for the server's half.
#[derive(Debug)]
struct Replying {
    server: Server,
    kexinit: Vec<u8>,
    server_kexinit: Vec<u8>,
    ephemeral: Ephemeral,
    choice: Choice,
}

/// With whom keys are exchanged.
#[derive(Debug)]
enum Server {
    /// For the first time, with whoever has told this identification.
    New { identification: String },
    /// Anew, with who has proven its host key before.
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

/// What stays of the first exchange.
#[derive(Debug)]
struct Session {
    identification: String,
    /// Hash of the first exchange.
    id: Vec<u8>,
    host_key: PublicKey,
    /// Both sides keep to OpenSSH's strict rules: no other message during the first exchange, and
    /// sequence numbers start anew with each set of keys.
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
            news: VecDeque::new(),
            exchange: Exchange::Identifying { skipped: 0 },
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
            if let Exchange::Identifying { skipped } = &mut self.exchange {
                let taken = identification::take(&mut self.reader.input, skipped)?;
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
            Some(Outgoing::NewKeys { sealer, compressed, reset_sequence }) => {
                self.writer.write(out, &[message::NEWKEYS], &[])?;
                self.compressed.0 = compressed;
                self.writer.switch(*sealer, self.authenticated && compressed, reset_sequence);
            }
        }
        Ok(true)
    }

    /// Whether messages of the layers above may be sent: keys are agreed upon and no exchange
    /// forbids it (RFC 4253 section 7.1).
    pub(crate) fn may_send(&self) -> bool {
        self.queue.is_empty()
            && matches!(self.exchange, Exchange::Idle { .. } | Exchange::Finishing { .. })
    }

    /// Whether a farewell can be sent: our identification went out.
    pub(crate) fn has_spoken(&self) -> bool {
        !matches!(self.exchange, Exchange::Identifying { .. })
            && !matches!(self.queue.front(), Some(Outgoing::Identification))
    }

    /// Starts an exchange if the keys have been used enough; to be called between packets while
    /// logged in.
    pub(crate) fn rekey_if_due(&mut self, now: Instant) -> Result<(), Error> {
        let spent = [self.reader.used(), self.writer.used()]
            .iter()
            .any(|used| used.bytes >= self.rekey_bytes || used.packets >= MAX_PACKETS);
        match std::mem::replace(&mut self.exchange, Exchange::Failed) {
            Exchange::Idle { session, rekey_due }
                if self.authenticated && (spent || now >= rekey_due) =>
            {
                self.start_exchange(Server::Proven(session))
            }
            other => {
                self.exchange = other;
                Ok(())
            }
        }
    }

    /// When an exchange is due by time.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.exchange {
            Exchange::Idle { rekey_due, .. } if self.authenticated => Some(rekey_due),
            _ => None,
        }
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

    /// The hash of the first exchange, `None` before its end and while another one forbids other messages.
    pub(crate) fn session_id(&self) -> Option<&[u8]> {
        match &self.exchange {
            Exchange::Finishing { session, .. } | Exchange::Idle { session, .. } => {
                Some(&session.id)
            }
            _ => None,
        }
    }

    /// How often keys were exchanged after the first time.
    pub(crate) fn rekeys(&self) -> u64 {
        self.rekeys
    }

    /// Behaves as if keys were exchanged, without encryption.
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
        self.news.push_back(Incoming::Identified(theirs.clone()));
        // Not before: the path below may have swallowed whatever was sent before the server spoke.
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

    /// Handles the messages of this layer and returns those of others.
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
            // While an exchange has only started: the server sent this before it saw our KEXINIT.
            (
                between @ (Exchange::Idle { .. }
                | Exchange::Started { server: Server::Proven(_), .. }),
                number,
            ) if !is_key_exchange(number) => {
                self.exchange = between;
                return Ok(Some(payload));
            }
            _ => return Err(unexpected(number, "this state of the key exchange")),
        }
        Ok(None)
    }

    /// Whether both sides keep to the strict rules and the first exchange is not over.
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
                // Where there are pins it is one of them.
                let pinned = !self.pins.is_empty();
                self.news.push_back(Incoming::HostKey { fingerprint, pinned });
                self.news.push_back(Incoming::Agreed(choice.negotiated()));
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

    /// Demands that the host key is one we accept and that its holder is who we talk to; returns it.
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
