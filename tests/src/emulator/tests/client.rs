//! A minimal client of the protocol: one connection, no retransmission, every message acknowledged.

use std::{collections::BTreeMap, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use uuid::Uuid;

use crate::emulator::codec::{
    ACKNOWLEDGE, CHANNEL_CLOSED, INPUT, Message, OUTPUT, PAUSE_PUBLICATION, START_PUBLICATION,
    SYN_FIN, payload_type,
};

/// Limit of every step, on a loaded machine.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A client's side of a data channel.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    pub(super) id: Uuid,
    /// Sequence number of the next input.
    pub(super) next: i64,
    /// Sequence number of the next output.
    expected: i64,
    early: BTreeMap<i64, Message>,
    /// Sequence numbers acknowledged by the agent, in the order of arrival.
    pub(super) acknowledged: Vec<i64>,
    /// Whether to acknowledge.
    pub(super) acknowledges: bool,
}

/// What the service sends.
#[derive(Debug)]
pub(super) enum Event {
    Message(Message),
    Pong,
    Close(u16, String),
    End,
}

impl Client {
    /// Upgrades the connection, with these additional headers; the error is the response's status.
    pub(super) async fn connect(url: &str, headers: &[(String, String)]) -> Result<Self, u16> {
        let (authority, target) = url.strip_prefix("ws://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(authority).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut request = format!(
            "GET /{target} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0, "no answer");
            if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8(buffer.split_to(end).to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status != 101 {
            return Err(status);
        }
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        Ok(Self {
            stream,
            buffer,
            id: Uuid::new_v4(),
            next: 0,
            expected: 0,
            early: BTreeMap::new(),
            acknowledged: Vec::new(),
            acknowledges: true,
        })
    }

    /// Sends the message that opens the data channel.
    pub(super) async fn open(&mut self, token: &str) {
        let text = format!(
            "{{\"MessageSchemaVersion\":\"1.0\",\"RequestId\":\"{}\",\"TokenValue\":\"{token}\",\
             \"ClientId\":\"{}\",\"ClientVersion\":\"1.2.764.0\"}}",
            Uuid::new_v4(),
            self.id
        );
        self.frame(1, text.as_bytes()).await;
    }

    /// Opens a new connection in place of the current one.
    pub(super) async fn resume(&mut self, url: &str, token: &str) {
        let other = Self::connect(url, &[]).await.unwrap();
        self.stream = other.stream;
        self.buffer = other.buffer;
        self.open(token).await;
    }

    pub(super) async fn frame(&mut self, opcode: u8, payload: &[u8]) {
        let frame = Self::masked(opcode, payload);
        // An error here means that the service closed the connection, which the next read reports.
        drop(self.stream.write_all(&frame).await);
    }

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode, 0x80 | 127];
        frame.extend(u64::try_from(payload.len()).unwrap().to_be_bytes());
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        frame.extend(mask);
        let start = frame.len();
        frame.extend_from_slice(payload);
        for chunk in frame[start..].chunks_mut(4) {
            for (byte, mask) in chunk.iter_mut().zip(mask) {
                *byte ^= mask;
            }
        }
        frame
    }

    /// Sends the next input.
    pub(super) async fn send(&mut self, payload_type: u32, payload: &[u8]) -> Message {
        let payload = Bytes::copy_from_slice(payload);
        let mut message = Message::new(INPUT, self.next, payload_type, payload);
        message.id = Uuid::new_v4();
        self.next += 1;
        self.frame(2, &message.encode()).await;
        message
    }

    pub(super) async fn acknowledge(&mut self, of: &Message) {
        self.acknowledge_all(std::slice::from_ref(of)).await;
    }

    /// Acknowledges messages with a single write.
    pub(super) async fn acknowledge_all(&mut self, messages: &[Message]) {
        let mut frames = Vec::new();
        for message in messages {
            frames.extend_from_slice(&Self::acknowledge_frame(message));
        }
        drop(self.stream.write_all(&frames).await);
    }

    fn acknowledge_frame(of: &Message) -> Vec<u8> {
        let body = format!(
            "{{\"AcknowledgedMessageType\":\"{OUTPUT}\",\"AcknowledgedMessageId\":\"{}\",\
             \"AcknowledgedMessageSequenceNumber\":{},\"IsSequentialMessage\":true}}",
            of.id, of.sequence
        );
        let mut message = Message::new(ACKNOWLEDGE, 0, 0, body.into());
        message.flags = SYN_FIN;
        // Random enough, without a system call per message.
        message.id = of.id;
        Self::masked(2, &message.encode())
    }

    /// Whether more data has already arrived.
    pub(super) fn has_more(&self) -> bool {
        self.buffer.len() > 1_200
    }

    /// The next event of any kind.
    pub(super) async fn event(&mut self) -> Event {
        timeout(LIMIT, self.read()).await.expect("something comes")
    }

    async fn read(&mut self) -> Event {
        loop {
            if let Some((opcode, payload)) = self.take() {
                match opcode {
                    2 => return Event::Message(Message::decode(&payload).unwrap()),
                    10 => return Event::Pong,
                    8 => {
                        let mut payload = payload;
                        let code = payload.get_u16();
                        return Event::Close(code, String::from_utf8(payload.to_vec()).unwrap());
                    }
                    other => panic!("frame with opcode {other}"),
                }
            }
            if !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return Event::End;
            }
        }
    }

    fn take(&mut self) -> Option<(u8, Bytes)> {
        let [first, second, rest @ ..] = self.buffer.as_ref() else { return None };
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (length, header) = match second {
            126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
            127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).unwrap(), 10),
            length => (usize::from(*length), 2),
        };
        if self.buffer.len() < header + length {
            return None;
        }
        let opcode = first & 0x0f;
        self.buffer.advance(header);
        Some((opcode, self.buffer.split_to(length).freeze()))
    }

    /// The next output in order; acknowledges every intact message, duplicates and early ones included.
    pub(super) async fn output(&mut self) -> Result<Message, Event> {
        loop {
            if let Some(message) = self.early.remove(&self.expected) {
                self.expected += 1;
                return Ok(message);
            }
            match self.event().await {
                Event::Message(message) if message.kind == OUTPUT => {
                    if !message.is_intact() {
                        continue;
                    }
                    if self.acknowledges {
                        self.acknowledge(&message).await;
                    }
                    if message.sequence >= self.expected {
                        self.early.insert(message.sequence, message);
                    }
                }
                Event::Message(message) if message.kind == ACKNOWLEDGE => {
                    if message.is_intact() {
                        let body: serde_json::Value =
                            serde_json::from_slice(&message.payload).unwrap();
                        let number = &body["AcknowledgedMessageSequenceNumber"];
                        self.acknowledged.push(number.as_i64().unwrap());
                    }
                }
                Event::Message(message) if message.kind == CHANNEL_CLOSED => {
                    return Err(Event::Message(message));
                }
                Event::Message(_) | Event::Pong => {}
                end => return Err(end),
            }
        }
    }

    /// Answers the handshake and waits for its completion.
    pub(super) async fn handshake(&mut self) {
        let request = self.output().await.unwrap();
        assert_eq!(request.payload_type, payload_type::HANDSHAKE_REQUEST);
        assert_eq!((request.sequence, request.flags), (0, 1));
        self.send(payload_type::HANDSHAKE_RESPONSE, RESPONSE.as_bytes()).await;
        let complete = self.output().await.unwrap();
        assert_eq!(complete.payload_type, payload_type::HANDSHAKE_COMPLETE);
    }

    /// Reads exactly this many bytes of the stream.
    pub(super) async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let message = self.output().await.unwrap();
            assert_eq!(message.payload_type, payload_type::OUTPUT);
            bytes.extend_from_slice(&message.payload);
        }
        bytes
    }

    /// Waits until the agent has acknowledged an input.
    pub(super) async fn acknowledged(&mut self, number: i64) {
        while !self.acknowledged.contains(&number) {
            let Event::Message(message) = self.event().await else { panic!("closed") };
            if message.kind == ACKNOWLEDGE {
                let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                self.acknowledged.push(body["AcknowledgedMessageSequenceNumber"].as_i64().unwrap());
            } else if message.kind == OUTPUT && self.acknowledges {
                self.acknowledge(&message).await;
                self.early.insert(message.sequence, message);
            }
        }
    }

    /// Sends an input repeatedly until the agent has acknowledged it.
    pub(super) async fn deliver(&mut self, payload_type: u32, payload: &[u8]) {
        let message = self.send(payload_type, payload).await;
        self.again(&message).await;
    }

    /// Sends a message repeatedly until the agent has acknowledged it.
    pub(super) async fn again(&mut self, message: &Message) {
        while !self.acknowledged.contains(&message.sequence) {
            let acknowledged = self.acknowledged(message.sequence);
            if timeout(Duration::from_millis(50), acknowledged).await.is_err() {
                self.frame(2, &message.encode()).await;
            }
        }
    }

    /// Reads to the end of the session and returns the text of `channel_closed`.
    pub(super) async fn end(&mut self) -> String {
        loop {
            match self.output().await {
                Ok(_) => {}
                Err(Event::Message(closed)) => {
                    let body: serde_json::Value = serde_json::from_slice(&closed.payload).unwrap();
                    assert!(matches!(self.event().await, Event::Close(1000, _)));
                    return body["Output"].as_str().unwrap().to_owned();
                }
                Err(end) => panic!("no channel_closed before {end:?}"),
            }
        }
    }
}

/// The kind of the next pause or start.
pub(super) async fn signal(client: &mut Client) -> String {
    loop {
        match client.event().await {
            Event::Message(message)
                if [PAUSE_PUBLICATION, START_PUBLICATION].contains(&message.kind.as_str()) =>
            {
                return message.kind;
            }
            Event::Message(_) | Event::Pong => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The official plugin's answer.
pub(super) const RESPONSE: &str = r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
