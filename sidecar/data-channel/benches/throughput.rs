//! Throughput of a channel alone on one core.
//!
//! `cargo bench -p data-channel` prints MB/s each way, at several sizes of messages.
#![expect(clippy::print_stdout, reason = "prints its result")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a broken measurement stops")]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use data_channel::{
    Config, DataChannel, Message, MessageType, PayloadType, message::Envelope, payload,
};
use uuid::Uuid;

fn main() {
    for message_bytes in [1_024, 8_192, 65_536] {
        let (down, up) = (download(message_bytes), upload(message_bytes));
        println!("{message_bytes:>6} bytes a message: {down:>7.1} MB/s down, {up:>7.1} MB/s up");
    }
}

/// Frames in, payload and acknowledgements out.
fn download(message_bytes: usize) -> f64 {
    let mut channel = open(message_bytes);
    let payload = vec![7; message_bytes];
    let mut spent = Duration::ZERO;
    let mut number = 2;
    let mut read = 0;
    while spent < RUN {
        // Not part of the measured time: the agent does this work.
        let frames: Vec<Bytes> = (number..number + BATCH)
            .map(|number| output(number, PayloadType::Output, &payload))
            .collect();
        number += BATCH;
        let start = Instant::now();
        for frame in frames {
            channel.handle_message(start, frame).expect("the frame is valid");
        }
        while let Some(bytes) = channel.read() {
            read += bytes.len();
        }
        while channel.poll_transmit(start).is_some() {}
        spent += start.elapsed();
    }
    megabytes_a_second(read, spent)
}

/// Bytes in, frames out, acknowledgements in.
fn upload(message_bytes: usize) -> f64 {
    let mut channel = open(message_bytes);
    let data = vec![7; 1 << 20];
    let mut spent = Duration::ZERO;
    let mut number = 1;
    let mut passed = 0;
    while spent < RUN {
        let start = Instant::now();
        let mut messages = 0;
        channel.write(&data);
        while let Some(frame) = channel.poll_transmit(start) {
            passed += frame.len() - 120;
            messages += 1;
        }
        spent += start.elapsed();
        let acknowledgements: Vec<Bytes> =
            (number..number + messages).map(acknowledgement).collect();
        number += messages;
        let start = Instant::now();
        for frame in acknowledgements {
            channel.handle_message(start, frame).expect("the frame is valid");
        }
        spent += start.elapsed();
    }
    megabytes_a_second(passed, spent)
}

fn open(message_bytes: usize) -> DataChannel {
    let now = Instant::now();
    let config = Config { message_bytes, ..Config::default() };
    let mut channel = DataChannel::new(config, now, 1, 1);
    let request = br#"{"RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port"}}]}"#;
    for (number, kind, payload) in [
        (0, PayloadType::HandshakeRequest, &request[..]),
        (1, PayloadType::HandshakeComplete, b"{}"),
    ] {
        channel.handle_message(now, output(number, kind, payload)).expect("the frame is valid");
    }
    while channel.poll_transmit(now).is_some() {}
    channel.handle_message(now, acknowledgement(0)).expect("the frame is valid");
    assert!(channel.is_open());
    channel
}

fn output(number: i64, kind: PayloadType, payload: &[u8]) -> Bytes {
    encode(MessageType::OutputStreamData, number, kind.to_wire(), payload)
}

fn acknowledgement(number: i64) -> Bytes {
    let mut json = Vec::new();
    payload::write_acknowledgement(MessageType::InputStreamData, Uuid::nil(), number, &mut json);
    encode(MessageType::Acknowledge, 0, 0, &json)
}

fn encode(
    message_type: MessageType,
    sequence_number: i64,
    payload_type: u32,
    payload: &[u8],
) -> Bytes {
    let (created_date_ms, flags, message_id) = (1, 0, Uuid::nil());
    let mut frame = BytesMut::new();
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    let frame = frame.freeze();
    assert!(Message::decode(&frame).unwrap().is_intact());
    frame
}

#[expect(clippy::cast_precision_loss, reason = "three digits are enough")]
fn megabytes_a_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e6
}

const RUN: Duration = Duration::from_secs(1);

/// Frames that the driver of the channel handles at once.
const BATCH: i64 = 64;
