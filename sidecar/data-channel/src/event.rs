//! What a channel tells its caller.

use crate::{error::ProtocolError, payload::PayloadType};

/// What happened on a channel.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is complete: the stream flows both ways.
    Open {
        /// Version of the agent, four numbers.
        agent_version: String,
        /// Message for people from the session preferences of the account, often empty.
        customer_message: String,
    },
    /// The service asks to hold data back: the agent is away.
    Paused,
    /// Data flows again.
    Started,
    /// The service has ended the session. Don't resume; nothing more is sent.
    Closed {
        /// Why, for people; often empty.
        reason: String,
    },
    /// The agent has acknowledged the request to end the session. Go on until [`Event::Closed`] or the end
    /// of the socket: unacknowledged messages keep the agent from ending for 2 s.
    Terminated,
    /// The agent said something that is not part of the stream. At most a few wait to be polled; more are
    /// only counted.
    Notice {
        /// How it was marked.
        payload_type: PayloadType,
        /// What it said, cut and made printable.
        text: String,
    },
    /// The channel cannot go on, and what there was to say about it has been sent. The next
    /// [`crate::DataChannel::handle_message`] returns the same error.
    Failed(ProtocolError),
}
