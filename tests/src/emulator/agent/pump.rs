//! The direction from sshd to the client.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt as _,
    net::tcp::OwnedReadHalf,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{Agent, Event};
use crate::emulator::{codec::payload_type, journal::count, settings::Pacing};

/// Reads until sshd closes its connection.
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
            // The period is kept on average, since the runtime's timer has a resolution of a
            // millisecond.
            let now = Instant::now();
            next = if now > next + CATCH_UP { now + PERIOD } else { next + PERIOD };
            sleep_until(next).await;
        }
    }
    drop(events.send(Event::ServerClosed).await);
}

/// Largest payload of a message, in bytes (`StreamDataPayloadSize`).
const MESSAGE: usize = 1_024;

/// Bytes per read when unpaced: they are split into messages all the same.
const BULK: usize = 64 * 1024;

/// Time from one read to the next: a pause of nominally 1 ms plus the real agent's overhead, as measured:
/// 0.69 to 0.78 MB/s (section 5).
const PERIOD: Duration = Duration::from_micros(1_350);

/// Limit on catching up: an agent that was idle does not send faster afterwards.
const CATCH_UP: Duration = Duration::from_millis(3);
