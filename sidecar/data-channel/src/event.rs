//! Events of a channel.

use crate::{error::ProtocolError, payload::PayloadType};

/// An event that [`crate::DataChannel::poll_event`] returns.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is complete: the stream flows both ways.
    Open {
        /// Version of the agent, usually four numbers.
        agent_version: String,
        /// Message for people from the session preferences of the account, often empty.
        customer_message: String,
    },
    /// The service asked to hold data (`pause_publication`).
    Paused,
    /// The pause has ended; data flows again.
    Started,
    /// The service has ended the session. Don't resume; nothing more is sent.
    Closed {
        /// Reason, for people; often empty.
        reason: String,
    },
    /// The agent has acknowledged the request to end the session. Continue until [`Event::Closed`] or the end
    /// of the socket: unacknowledged messages delay the agent's end by 2 s (docs/ssm-protocol.md, section 12).
    Terminated,
    /// The agent sent a message that is not part of the stream. At most 64 events are queued; further
    /// notices are only counted.
    Notice {
        /// Its payload type.
        payload_type: PayloadType,
        /// Its text, truncated and made printable.
        text: String,
    },
    /// The channel has failed, and the response that says so has been sent. The next
    /// [`crate::DataChannel::handle_message`] returns the same error.
    Failed(ProtocolError),
}
