//! Parts in isolation: encoding, decoding and acknowledging messages; digests; compression.
//!
//! `cargo bench --bench parts`; with `--report` or `--quick`, which are options of the other bench, each
//! part runs once.

use std::{env, hint::black_box, time::Instant};

use bytes::{Bytes, BytesMut};
use data_channel::{
    Config, DataChannel, Message, MessageType, PayloadType, message::Envelope, payload,
};
use divan::{Bencher, counter::BytesCount};
use flate2::{Compress, Compression, FlushCompress};
use uuid::Uuid;

fn main() {
    let foreign = |argument: String| ["--report", "--quick"].contains(&argument.as_str());
    if env::args().any(foreign) {
        divan::Divan::default().sample_count(1).sample_size(1).main();
    } else {
        divan::main();
    }
}

const SIZES: [usize; 3] = [1_024, 8_192, 65_536];

/// Messages between two polls by the driver.
const BATCH: i64 = 64;

#[divan::bench(args = SIZES)]
fn encode(bencher: Bencher<'_, '_>, size: usize) {
    let payload = vec![7; size];
    bencher.counter(BytesCount::new(size)).bench(|| output(3, PayloadType::Output, &payload));
}

#[divan::bench(args = SIZES)]
fn decode_and_verify(bencher: Bencher<'_, '_>, size: usize) {
    let frame = output(3, PayloadType::Output, &vec![7; size]);
    bencher
        .counter(BytesCount::new(size))
        .bench(|| Message::decode(black_box(&frame)).is_ok_and(|message| message.is_intact()));
}

/// Frames in, payload and acknowledges out.
#[divan::bench(args = SIZES)]
fn channel_down(bencher: Bencher<'_, '_>, size: usize) {
    let payload = vec![7; size];
    let mut channel = open(size);
    let mut number = 2;
    let messages = usize::try_from(BATCH).unwrap_or_default();
    bencher
        .counter(BytesCount::new(size * messages))
        .with_inputs(|| {
            let frames: Vec<Bytes> = (number..number + BATCH)
                .map(|number| output(number, PayloadType::Output, &payload))
                .collect();
            number += BATCH;
            frames
        })
        .bench_local_values(|frames| {
            let now = Instant::now();
            for frame in frames {
                drop(black_box(channel.handle_message(now, frame)));
            }
            while let Some(bytes) = channel.read() {
                black_box(bytes);
            }
            while let Some(frame) = channel.poll_transmit(now) {
                black_box(frame);
            }
        });
}

/// Bytes in, frames out, acknowledges in.
#[divan::bench(args = SIZES)]
fn channel_up(bencher: Bencher<'_, '_>, size: usize) {
    let mut channel = open(size);
    let messages = usize::try_from(BATCH).unwrap_or_default();
    let data = vec![7; size * messages / 2];
    let mut number = 1;
    bencher.counter(BytesCount::new(data.len())).bench_local(|| {
        let now = Instant::now();
        channel.write(&data);
        let mut sent = 0;
        while let Some(frame) = channel.poll_transmit(now) {
            black_box(frame);
            sent += 1;
        }
        for number in number..number + sent {
            drop(black_box(channel.handle_message(now, acknowledge(number))));
        }
        number += sent;
    });
}

#[divan::bench(args = ["random", "text"])]
fn compress(bencher: Bencher<'_, '_>, data: &str) {
    let line =
        b"4711\tAoi Tanaka\taoi.tanaka@example.com\t2024-05-06 07:08:09\tshipped\t12800.00\tJPY\n";
    let input: Vec<u8> = match data {
        "text" => line.iter().copied().cycle().take(32_768).collect(),
        _ => tests::fixtures::pattern(32_768),
    };
    let mut state = Compress::new(Compression::new(6), true);
    let mut packed = Vec::with_capacity(2 * input.len());
    bencher.counter(BytesCount::new(input.len())).bench_local(|| {
        packed.clear();
        state.compress_vec(black_box(&input), &mut packed, FlushCompress::Partial)
    });
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
        drop(channel.handle_message(now, output(number, kind, payload)));
    }
    while channel.poll_transmit(now).is_some() {}
    drop(channel.handle_message(now, acknowledge(0)));
    assert!(channel.is_open(), "the handshake is done");
    channel
}

fn output(number: i64, kind: PayloadType, payload: &[u8]) -> Bytes {
    frame(MessageType::OutputStreamData, number, kind.to_wire(), payload)
}

fn acknowledge(number: i64) -> Bytes {
    let mut json = Vec::new();
    payload::write_acknowledgement(MessageType::InputStreamData, Uuid::nil(), number, &mut json);
    frame(MessageType::Acknowledge, 0, 0, &json)
}

fn frame(
    message_type: MessageType,
    sequence_number: i64,
    payload_type: u32,
    payload: &[u8],
) -> Bytes {
    let (created_date_ms, flags, message_id) = (1, 0, Uuid::nil());
    let mut frame = BytesMut::new();
    Envelope { message_type, created_date_ms, sequence_number, flags, message_id, payload_type }
        .encode(payload, &mut frame);
    frame.freeze()
}
