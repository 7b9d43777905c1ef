//! The agent's own WebSocket to the gateway: how it breaks, and when the agent is back.
//!
//! The real agent writes a payload to sshd, then acknowledges it, and only then expects the next one. If its
//! channel breaks between the first two, the acknowledge fails, and the client's retransmission is written to
//! sshd again (`handleStreamDataMessage` in its `datachannel.go`).

use std::time::Duration;

use tokio::time::Instant;

use crate::emulator::settings::{AgentBreak, AgentSettings};

/// The agent's end of its channel.
#[derive(Debug)]
pub(super) struct Channel {
    state: State,
    lifetime: Duration,
    reconnect: Duration,
}

#[derive(Debug)]
enum State {
    /// Open until the service closes it.
    Open(Instant),
    /// Breaks with the next payload that is written to sshd, or at this time without one.
    Breaking(Option<Instant>),
    /// Closed until this time.
    Closed(Instant),
}

/// What has happened to the channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    Closed,
    Opened,
}

impl Channel {
    pub(super) fn open(settings: &AgentSettings, now: Instant) -> Self {
        let (lifetime, reconnect) = (settings.channel_lifetime, settings.reconnect_delay);
        Self { state: State::Open(now + lifetime), lifetime, reconnect }
    }

    /// Begins to break, unless it is closed.
    pub(super) fn begin_to_break(&mut self, how: AgentBreak, now: Instant) {
        if !self.is_closed() {
            self.state = State::Breaking(match how {
                AgentBreak::AtOnce => Some(now + AMID),
                AgentBreak::WithNextPayload => None,
            });
        }
    }

    /// Breaks now.
    pub(super) fn close(&mut self, now: Instant) {
        self.state = State::Closed(now + self.reconnect);
    }

    pub(super) fn is_breaking(&self) -> bool {
        matches!(self.state, State::Breaking(_))
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed(_))
    }

    /// When [`Channel::review`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Open(due) | State::Closed(due) => Some(due),
            State::Breaking(due) => due,
        }
    }

    /// Does what is due by time.
    pub(super) fn review(&mut self, now: Instant) -> Option<Change> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        match self.state {
            State::Open(_) => {
                self.begin_to_break(AgentBreak::AtOnce, now);
                None
            }
            State::Breaking(_) => {
                self.close(now);
                Some(Change::Closed)
            }
            State::Closed(_) => {
                self.state = State::Open(now + self.lifetime);
                Some(Change::Opened)
            }
        }
    }
}

/// A payload that arrives within this time of a break meets it between write and acknowledge, so that the odds
/// follow the client's rate. Amid fast uploads four of five breaks of the real agent did.
const AMID: Duration = Duration::from_millis(1);
