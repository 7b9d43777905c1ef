//! The events of a tunnel other than `phase`, for the lines on stdout that only `"events": true` brings.

use runner_protocol::{Line, Summary};
use serde::{Deserialize, Serialize};

/// An event of the tunnel. The monitor writes it on stdout as a [`Line`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Event {
    /// `SHA256:…` of the bastion's host key.
    HostKey(String),
    /// No lane carries bytes, so connections wait. Holds the reason.
    Degraded(String),
    /// A lane carries bytes again.
    Recovered,
    /// The job was stopped on request. Holds its summary.
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
