//! The upper bound of the rate: a client of the data channel that acknowledges all messages and discards them.
//!
//! Without SSH: the emulated agent dials the source of bytes directly.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_sdk_ssm::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::Builder as HttpBuilder;
use bytes::{Bytes, BytesMut};
use data_channel::{
    Message, MessageType, PayloadType,
    message::{ACKNOWLEDGE_FLAGS, Envelope},
    payload,
};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, time::Instant};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use uuid::Uuid;

use super::{
    Outcome,
    world::{ACCESS_KEY_ID, INSTANCE, SECRET_ACCESS_KEY, World},
};

/// A session with `port` of the instance.
pub(crate) struct Acker {
    socket: WebSocketStream<TcpStream>,
    next: i64,
    acknowledges: Vec<Bytes>,
}

impl Acker {
    pub(crate) async fn open(world: &World, port: u16) -> Outcome<Self> {
        let started = start(world, port).await?;
        let url = started.stream_url.ok_or("no StreamUrl")?;
        let path = url.splitn(4, '/').nth(3).ok_or("no path in the StreamUrl")?.to_owned();
        let base = world.stream_url();
        let authority = base.trim_start_matches("ws://");
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let (mut socket, _) = client_async(format!("{base}/{path}"), stream).await?;
        let token = started.token_value.ok_or("no TokenValue")?;
        let opening = format!(
            "{{\"MessageSchemaVersion\":\"1.0\",\"RequestId\":\"{}\",\"TokenValue\":\"{token}\",\
             \"ClientId\":\"{}\",\"ClientVersion\":\"1.2.764.0\"}}",
            Uuid::new_v4(),
            Uuid::new_v4(),
        );
        socket.send(tungstenite::Message::text(opening)).await?;
        let mut acker = Self { socket, next: 0, acknowledges: Vec::new() };
        loop {
            let message = acker.output().await?;
            acker.acknowledge().await?;
            if message.payload_type == PayloadType::HandshakeRequest.to_wire() {
                let answer = HANDSHAKE.as_bytes();
                acker.send(PayloadType::HandshakeResponse, answer).await?;
            } else if message.payload_type == PayloadType::HandshakeComplete.to_wire() {
                // The agent discards data that arrives immediately after its `HandshakeComplete`.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return Ok(acker);
            }
        }
    }

    /// Payload bytes a second, over `window` after `warm_up`.
    pub(crate) async fn download(&mut self, warm_up: Duration, window: Duration) -> Outcome<f64> {
        let start = Instant::now() + warm_up;
        while Instant::now() < start {
            self.batch().await?;
        }
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < window {
            bytes += self.batch().await?;
        }
        Ok(crate::load::per_second(bytes, start.elapsed()))
    }

    /// Runs this many echo clients: each sends `payload` again as soon as its answer is complete, until
    /// `count` answers have arrived; returns their times.
    pub(crate) async fn echoes(
        &mut self,
        payload: &[u8],
        clients: usize,
        count: usize,
    ) -> Outcome<Vec<Duration>> {
        let mut asked = VecDeque::new();
        let (mut took, mut received) = (Vec::new(), 0);
        loop {
            while asked.len() < clients {
                asked.push_back(Instant::now());
                self.send(PayloadType::Output, payload).await?;
            }
            received += self.batch().await?;
            // The echo server answers in order.
            while received >= payload.len()
                && let Some(asked) = asked.pop_front()
            {
                received -= payload.len();
                took.push(asked.elapsed());
            }
            if took.len() >= count {
                return Ok(took);
            }
        }
    }

    /// Waits for messages, takes all that have arrived, and acknowledges them with one write.
    async fn batch(&mut self) -> Outcome<usize> {
        let mut bytes = self.output().await?.payload.len();
        for _ in 1..BATCH {
            let Some(next) = self.output().now_or_never() else { break };
            bytes += next?.payload.len();
        }
        self.acknowledge().await?;
        Ok(bytes)
    }

    /// Sends the acknowledges that `output` has left, with one write.
    async fn acknowledge(&mut self) -> Outcome<()> {
        for acknowledge in self.acknowledges.drain(..) {
            self.socket.feed(tungstenite::Message::Binary(acknowledge)).await?;
        }
        Ok(self.socket.flush().await?)
    }

    /// The next stream message; its acknowledge is not sent yet. Cancel-safe.
    async fn output(&mut self) -> Outcome<Message> {
        loop {
            let frame = match self.socket.next().await.ok_or("the gateway has closed")?? {
                tungstenite::Message::Binary(frame) => frame,
                tungstenite::Message::Close(close) => return Err(format!("{close:?}").into()),
                _ => continue,
            };
            let message = Message::decode(&frame)?;
            if message.message_type == MessageType::OutputStreamData {
                let mut json = Vec::new();
                payload::write_acknowledgement(
                    message.message_type,
                    message.message_id,
                    message.sequence_number,
                    &mut json,
                );
                let acknowledge = encode(MessageType::Acknowledge, 0, 0, message.message_id, &json);
                self.acknowledges.push(acknowledge);
                return Ok(message);
            }
        }
    }

    async fn send(&mut self, payload_type: PayloadType, payload: &[u8]) -> Outcome<()> {
        let kind = MessageType::InputStreamData;
        let frame = encode(kind, self.next, payload_type.to_wire(), Uuid::new_v4(), payload);
        self.next += 1;
        Ok(self.socket.send(tungstenite::Message::Binary(frame)).await?)
    }
}

/// Starts a session with `port` of the instance by the AWS SDK.
pub(crate) async fn start(
    world: &World,
    port: u16,
) -> Outcome<aws_sdk_ssm::operation::start_session::StartSessionOutput> {
    let credentials = Credentials::new(ACCESS_KEY_ID, SECRET_ACCESS_KEY, None, None, "bench");
    let config = aws_sdk_ssm::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(world.api_url())
        .credentials_provider(credentials)
        .http_client(HttpBuilder::new().build_http());
    let started = aws_sdk_ssm::Client::from_conf(config.build())
        .start_session()
        .target(INSTANCE)
        .document_name("AWS-StartSSHSession")
        .parameters("portNumber", vec![port.to_string()])
        .send();
    Ok(Box::pin(started).await?)
}

fn encode(
    message_type: MessageType,
    sequence_number: i64,
    payload_type: u32,
    message_id: Uuid,
    payload: &[u8],
) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created_date_ms = u64::try_from(now.as_millis()).unwrap_or_default();
    let flags = match message_type {
        MessageType::Acknowledge => ACKNOWLEDGE_FLAGS,
        _ => 0,
    };
    let mut frame = BytesMut::new();
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    frame.freeze()
}

pub(crate) const REGION: &str = "ap-northeast-1";

/// Maximum number of acknowledges in one write.
const BATCH: usize = 64;

/// The official plugin's answer.
const HANDSHAKE: &str = r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""}],"Errors":null}"#;
