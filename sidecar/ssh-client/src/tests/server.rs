//! A server under control of the test, on the same packet code as the client.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock},
    time::Instant,
};

use aws_lc_rs::{agreement, digest};
use bytes::{BufMut, BytesMut};
use russh::keys::{
    PrivateKey, decode_secret_key, signature::Signer, ssh_encoding::Encode, ssh_key::Signature,
};

use crate::{
    ChannelId, Client, Compression, Config, Error, Event,
    algorithms::{Cipher, Direction},
    cipher::{Letters, Opener, Sealer},
    exchange::Secret,
    identification::{self, Preamble},
    packet::{PacketReader, PacketWriter},
    wire::{Put, Reader, message},
};

/// Client and server, connected in memory.
pub(crate) struct Pair {
    pub(crate) client: Client,
    pub(crate) now: Instant,
    pub(crate) server: Server,
    pub(crate) events: Vec<Event>,
}

impl Pair {
    /// Starts both; the server's identification is queued.
    pub(crate) fn new(server: Server, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new("user", Arc::clone(&USER_KEY));
        config.compression = Compression::Off;
        adjust(&mut config);
        let now = Instant::now();
        let mut pair = Self { client: Client::new(config, now), now, server, events: Vec::new() };
        pair.server.out.extend_from_slice(SERVER_LINE);
        pair.server.out.extend_from_slice(b"\r\n");
        pair
    }

    /// A pair with a finished login.
    pub(crate) fn logged_in(adjust: impl FnOnce(&mut Config)) -> Self {
        let mut pair = Self::new(Server::new(), adjust);
        pair.run().unwrap();
        assert!(pair.events.iter().any(|event| matches!(event, Event::Authenticated(_))));
        pair
    }

    /// A pair with an open channel, whose number is 7 at the server.
    pub(crate) fn with_channel(adjust: impl FnOnce(&mut Config)) -> (Self, ChannelId) {
        let mut pair = Self::logged_in(adjust);
        let originator = ([127, 0, 0, 1], 1).into();
        let id = pair.client.open_direct_tcpip("db", 5432, originator).unwrap();
        pair.run().unwrap();
        pair.server.send(&confirmation(id.0, 1 << 20, 1 << 15));
        pair.run().unwrap();
        assert!(pair.events.contains(&Event::ChannelOpened(id)));
        (pair, id)
    }

    /// Exchanges bytes until both are idle.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        loop {
            let input = self.server.out.split();
            self.client.handle_input(self.now, &input)?;
            self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
            let mut out = BytesMut::new();
            let sent = self.client.poll_transmit(self.now, &mut out, 1 << 20)?;
            self.server.handle(&out);
            if !sent && self.server.out.is_empty() {
                return Ok(());
            }
        }
    }

    /// Exchanges bytes until the authentication request was sent; the server does not answer the service request.
    pub(crate) fn request_login(&mut self) {
        self.run().unwrap();
        self.now = self.client.poll_timeout().unwrap();
        self.client.handle_timeout(self.now).unwrap();
        self.run().unwrap();
    }

    /// Sends one payload and returns the error that it leads to.
    pub(crate) fn provoke(&mut self, payload: &[u8]) -> Error {
        self.server.send(payload);
        self.run().expect_err("the client accepted it")
    }

    /// The payloads of type `number` that the server received and does not handle itself.
    pub(crate) fn received(&mut self, number: u8) -> Vec<Vec<u8>> {
        self.server.received.iter().filter(|payload| payload[0] == number).cloned().collect()
    }
}

#[expect(clippy::struct_excessive_bools, reason = "each is one violation")]
pub(crate) struct Server {
    pub(crate) out: BytesMut,
    pub(crate) received: VecDeque<Vec<u8>>,
    pub(crate) writer: PacketWriter,
    pub(crate) strict: bool,
    pub(crate) host_key: Arc<PrivateKey>,
    /// Sends a wrong first packet along with its KEXINIT.
    pub(crate) guess: bool,
    /// Signs something else than the exchange hash.
    pub(crate) forge: bool,
    /// Leaves the login to the test.
    pub(crate) manual_login: bool,
    /// Answers KEXINIT; otherwise the test does.
    pub(crate) answers_kexinit: bool,
    /// `server-sig-algs` to send.
    pub(crate) announced: Option<&'static str>,
    reader: PacketReader,
    identified: bool,
    kexinit: Option<Vec<u8>>,
    client_kexinit: Vec<u8>,
    keys: Option<Secret>,
    session_id: Option<Vec<u8>>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self {
            out: BytesMut::new(),
            received: VecDeque::new(),
            writer: PacketWriter::new(),
            strict: true,
            host_key: Arc::clone(&HOST_KEY),
            guess: false,
            forge: false,
            manual_login: false,
            answers_kexinit: true,
            announced: None,
            reader: PacketReader::new(),
            identified: false,
            kexinit: None,
            client_kexinit: Vec::new(),
            keys: None,
            session_id: None,
        }
    }

    pub(crate) fn send(&mut self, payload: &[u8]) {
        self.writer.write(&mut self.out, payload, &[]).unwrap();
    }

    pub(crate) fn send_kexinit(&mut self) {
        let mut payload = vec![message::KEXINIT];
        payload.put_slice(&[9; 16]);
        let strict = if self.strict { ",kex-strict-s-v00@openssh.com" } else { "" };
        let kex = if self.guess { "guess-x,curve25519-sha256" } else { "curve25519-sha256" };
        for list in [
            &format!("{kex}{strict}"),
            "ssh-ed25519",
            CIPHER.name(),
            CIPHER.name(),
            "",
            "",
            "zlib@openssh.com,none",
            "zlib@openssh.com,none",
            "",
            "",
        ] {
            payload.put_string(list.as_bytes());
        }
        payload.put_bool(self.guess);
        payload.put_u32(0);
        self.send(&payload);
        if self.guess {
            self.send(&[30, 0, 0, 0, 0]);
        }
        self.kexinit = Some(payload);
    }

    fn handle(&mut self, input: &[u8]) {
        self.reader.input.extend_from_slice(input);
        if !self.identified {
            match identification::take(&mut self.reader.input, &mut Preamble::default()).unwrap() {
                Some(line) => assert_eq!(line, identification::OURS),
                None => return,
            }
            self.identified = true;
            self.send_kexinit();
        }
        while let Some(payload) = self.reader.next().unwrap() {
            match payload[0] {
                message::KEXINIT => {
                    self.client_kexinit = payload.to_vec();
                    if self.answers_kexinit && self.kexinit.is_none() {
                        self.send_kexinit();
                    }
                }
                message::KEX_ECDH_INIT => self.reply(&payload),
                message::NEWKEYS => {
                    let (direction, id) = (direction(), self.session_id.clone().unwrap());
                    let secret = self.keys.take().unwrap();
                    let opener = Opener::new(&direction, &secret, &id, Letters::OUTGOING).unwrap();
                    self.reader.switch(opener, false, self.strict);
                }
                message::SERVICE_REQUEST if !self.manual_login => {
                    let mut accept = vec![message::SERVICE_ACCEPT];
                    accept.put_string(b"ssh-userauth");
                    self.send(&accept);
                }
                message::USERAUTH_REQUEST if !self.manual_login => {
                    self.send(&[message::USERAUTH_SUCCESS]);
                }
                _ => self.received.push_back(payload.to_vec()),
            }
        }
    }

    /// Answers the client's half of the exchange and uses the keys for sending.
    fn reply(&mut self, init: &[u8]) {
        let mut reader = Reader::new(init, "init");
        reader.u8().unwrap();
        let client_public = reader.string().unwrap();
        let private = agreement::PrivateKey::generate(&agreement::X25519).unwrap();
        let public = private.compute_public_key().unwrap();
        let point = agreement::UnparsedPublicKey::new(&agreement::X25519, client_public);
        let mut encoded = Vec::new();
        agreement::agree(&private, point, (), |secret| {
            encoded.put_mpint(secret);
            Ok(())
        })
        .unwrap();
        let blob = self.host_key.public_key().to_bytes().unwrap();
        let mut hashed = Vec::new();
        hashed.put_string(identification::OURS.as_bytes());
        hashed.put_string(SERVER_LINE);
        hashed.put_string(&self.client_kexinit);
        hashed.put_string(&self.kexinit.take().unwrap());
        hashed.put_string(&blob);
        hashed.put_string(client_public);
        hashed.put_string(public.as_ref());
        hashed.extend_from_slice(&encoded);
        let hash = digest::digest(&digest::SHA256, &hashed).as_ref().to_vec();
        let signed = if self.forge { b"something else".to_vec() } else { hash.clone() };
        let signature: Signature = self.host_key.try_sign(&signed).unwrap();

        let mut reply = vec![message::KEX_ECDH_REPLY];
        reply.put_string(&blob);
        reply.put_string(public.as_ref());
        reply.put_string(&signature.encode_vec().unwrap());
        self.send(&reply);
        self.send(&[message::NEWKEYS]);
        let secret = Secret::new(encoded, hash.clone());
        let id = self.session_id.get_or_insert(hash);
        let sealer = Sealer::new(&direction(), &secret, id, Letters::INCOMING).unwrap();
        self.writer.switch(sealer, false, self.strict);
        self.keys = Some(secret);
        if let Some(algorithms) = self.announced.take() {
            let mut payload = vec![message::EXT_INFO];
            payload.put_u32(1);
            payload.put_string(b"server-sig-algs");
            payload.put_string(algorithms.as_bytes());
            self.send(&payload);
        }
    }
}

/// `CHANNEL_OPEN_CONFIRMATION` for a channel, whose number is 7 at the server.
pub(crate) fn confirmation(id: u32, window: u32, max_packet: u32) -> Vec<u8> {
    numbers(message::CHANNEL_OPEN_CONFIRMATION, &[id, 7, window, max_packet])
}

/// A message of type `number` with `u32` fields.
pub(crate) fn numbers(number: u8, fields: &[u32]) -> Vec<u8> {
    let mut payload = vec![number];
    for field in fields {
        payload.put_u32(*field);
    }
    payload
}

/// `CHANNEL_DATA` for a channel.
pub(crate) fn data(id: u32, data: &[u8]) -> Vec<u8> {
    let mut payload = numbers(message::CHANNEL_DATA, &[id]);
    payload.put_string(data);
    payload
}

/// Generates a key with openssl.
pub(crate) fn fresh_key(algorithm: &str) -> Arc<PrivateKey> {
    let output = std::process::Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", algorithm])
        .output()
        .unwrap();
    let output = if output.status.success() {
        output
    } else {
        // Older versions do not know `-quiet`.
        let arguments = ["genpkey", "-algorithm", algorithm];
        std::process::Command::new("openssl").args(arguments).output().unwrap()
    };
    Arc::new(decode_secret_key(std::str::from_utf8(&output.stdout).unwrap(), None).unwrap())
}

fn direction() -> Direction {
    Direction { cipher: CIPHER, mac: None, compressed: false }
}

const CIPHER: Cipher = Cipher::ChaCha20Poly1305;

const SERVER_LINE: &[u8] = b"SSH-2.0-test";

static HOST_KEY: LazyLock<Arc<PrivateKey>> = LazyLock::new(|| fresh_key("ED25519"));
static USER_KEY: LazyLock<Arc<PrivateKey>> = LazyLock::new(|| fresh_key("ED25519"));
