//! The connection that proved the target before `ready`, kept for the first client.
//!
//! So a server that counts connections without a login (MySQL's `max_connect_errors`) is not charged for it where a
//! client comes at once, and the first query saves a round trip. A client must never get an error from it that a fresh
//! connection would not give. What it is worth shows only when the client is there: whether its path is up, whether the
//! target has ended it or has said anything but a greeting, and how much of the server's patience is left.

use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::lane::Lane;
use crate::ssh::Channel;

/// The connection, until a client takes it or it is worth nothing.
#[derive(Debug, Default)]
pub(super) struct KeptConnection(Mutex<Option<Kept>>);

#[derive(Debug)]
struct Kept {
    lane: Arc<Lane>,
    channel: Channel,
    /// When it was requested: the server counts its patience from no earlier moment.
    requested: Instant,
}

/// Why it is not handed to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flaw {
    /// The target has sent EOF or closed it, or the lane is lost.
    Ended,
    /// The path is broken: whether the target has ended it meanwhile is not known.
    PathBroken,
    /// The target has said something that is no greeting, such as "Too many connections".
    Refused,
    /// Less of the server's patience may be left than a login needs.
    TooOld,
}

impl KeptConnection {
    pub(super) fn keep(&self, lane: Arc<Lane>, channel: Channel, requested: Instant) {
        *self.0.lock() = Some(Kept { lane, channel, requested });
    }

    /// Removes and returns the connection, with the number of its lane, if it is as good as a fresh one; closes it otherwise, and when dropped.
    ///
    /// While neither side has spoken, a refusal may be on its way: it waits for the first word. A client that has to
    /// speak first does so at once, one that waits for a greeting loses nothing.
    pub(super) async fn take(
        &self,
        client_speaks: impl Future<Output = ()>,
    ) -> Option<(Channel, u64)> {
        let kept = self.0.lock().take()?;
        tokio::select! {
            biased;
            () = poll_fn(|context| kept.channel.poll_heard(context)) => (),
            () = client_speaks => (),
            () = sleep_until(kept.requested + SILENT_LIFE) => (),
        }
        match kept.flaw() {
            None => Some((kept.channel, kept.lane.number)),
            Some(flaw) => {
                debug!(%flaw, "the connection that proved the target is not used");
                None
            }
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Closes the connection.
    pub(super) fn close(&self) {
        drop(self.0.lock().take());
    }

    /// Closes the connection when it is too old; never completes. Cancel-safe.
    pub(super) async fn expire(&self) {
        let requested = self.0.lock().as_ref().map(|kept| kept.requested);
        if let Some(requested) = requested {
            for life in [SILENT_LIFE, GREETED_LIFE] {
                sleep_until(requested + life).await;
                let flawed = self.0.lock().take_if(|kept| kept.flaw().is_some());
                drop(flawed);
            }
        }
        std::future::pending::<()>().await;
    }
}

impl Kept {
    fn flaw(&self) -> Option<Flaw> {
        let Some(unread) = self.channel.peek(LONGEST_GREETING + 1) else {
            return Some(Flaw::Ended);
        };
        if !self.lane.is_up() {
            return Some(Flaw::PathBroken);
        }
        let life = match &*unread {
            [] => SILENT_LIFE,
            greeting if is_greeting(greeting) => GREETED_LIFE,
            _ => return Some(Flaw::Refused),
        };
        (self.requested.elapsed() >= life).then_some(Flaw::TooOld)
    }
}

/// Whether this is one whole `Protocol::HandshakeV10` of MySQL or MariaDB and nothing behind it: three bytes of length,
/// a sequence number that begins with 0, and version 10 of the protocol. An error in its place has 255 for the version.
/// Of the engines that people reach through a tunnel, no other speaks before its client.
fn is_greeting(unread: &[u8]) -> bool {
    let [low, middle, high, 0, 10, ..] = *unread else { return false };
    let length = u32::from_le_bytes([low, middle, high, 0]);
    usize::try_from(length).is_ok_and(|length| unread.len() == HEADER + length)
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ended => "the target has ended it",
            Self::PathBroken => "its path is broken",
            Self::Refused => "the target has refused it",
            Self::TooOld => "it is too old",
        })
    }
}

/// How long the connection is kept after a greeting: half of the least that MySQL and MariaDB can be set to wait for a
/// login (`connect_timeout`: 2 s; 10 s by default).
const GREETED_LIFE: Duration = Duration::from_secs(1);

/// How long it is kept from a server that waits for its client's first word: half of the least that PostgreSQL can be
/// set to wait for a login (`authentication_timeout`: 1 s; 60 s by default, as `client_login_timeout` of `PgBouncer`).
const SILENT_LIFE: Duration = Duration::from_millis(500);

/// Length of a packet's header in MySQL's protocol, in bytes.
const HEADER: usize = 4;

/// More than any greeting, in bytes: 79 with MySQL 9.7, 96 with MariaDB 10.11.
const LONGEST_GREETING: usize = 1024;

#[cfg(test)]
mod tests;
