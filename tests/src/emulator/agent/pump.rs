//! From sshd to the client.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt as _,
    net::tcp::OwnedReadHalf,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Agent, Event};
use crate::emulator::{builder::Pacing, codec::payload_type, journal::count};

/// Reads until sshd closes.
pub(super) async fn run(agent: Arc<Agent>, mut read: OwnedReadHalf, events: mpsc::Sender<Event>) {
    let room = match agent.pacing {
        Pacing::Real => MESSAGE,
        Pacing::Unpaced => BULK,
    };
    let mut buffer = BytesMut::new();
    let mut next = Instant::now();
    loop {
        agent.unpaused().await;
        buffer.reserve(room);
        let mut limited = (&mut read).take(u64::try_from(room).unwrap_or(u64::MAX));
        if !matches!(limited.read_buf(&mut buffer).await, Ok(1..)) {
            break;
        }
        count(&agent.session.counters.output_bytes, buffer.len());
        while !buffer.is_empty() {
            let payload = buffer.split_to(buffer.len().min(MESSAGE)).freeze();
            agent.send(payload_type::OUTPUT, payload).await;
        }
        if agent.pacing == Pacing::Real {
            // Kept on average: the runtime's clock ticks by the millisecond.
            let now = Instant::now();
            next = if now > next + CATCH_UP { now + PERIOD } else { next + PERIOD };
            sleep_until(next).await;
        }
    }
    drop(events.send(Event::ServerClosed).await);
}

/// Most bytes of a message (`StreamDataPayloadSize`).
const MESSAGE: usize = 1_024;

/// Bytes read at once where no pause is kept: they are cut into messages all the same.
const BULK: usize = 64 * 1024;

/// From one read to the next: a pause of nominally 1 ms, and what the real agent was measured to take in all,
/// 0.69 to 0.78 MB/s (section 5).
const PERIOD: Duration = Duration::from_micros(1_350);

/// An agent that had nothing to read does not make up for it.
const CATCH_UP: Duration = Duration::from_millis(3);
