//! What a runner that asked for `events` reads between `phase` and the end.

use runner_protocol::{Line, Summary};
use serde::{Deserialize, Serialize};

/// A line of the tunnel's life.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Event {
    /// `SHA256:…` of the bastion's host key.
    HostKey(String),
    /// No lane carries bytes, and connections wait; the reason.
    Degraded(String),
    /// A lane carries bytes again.
    Recovered,
    /// The summary of a job that ended as it was asked to.
    Closed(Summary),
}

impl From<Event> for Line {
    fn from(event: Event) -> Self {
        match event {
            Event::HostKey(fingerprint) => Self::HostKey(fingerprint),
            Event::Degraded(reason) => Self::Degraded(reason),
            Event::Recovered => Self::Recovered,
            Event::Closed(summary) => Self::Closed(summary),
        }
    }
}
