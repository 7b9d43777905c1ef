//! Why a data channel cannot go on.

use crate::message::DecodeError;

/// The peer broke the protocol, or asked for something that this client does not do.
///
/// Each is final: the channel sends nothing but outstanding acknowledgements any more, and every later
/// frame meets the same error.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// So many frames in a row could not be used that the other end speaks another language.
    #[error("the service sent {frames} damaged frames in a row, the last one: {last}")]
    Damaged {
        /// How many came without a good one between them.
        frames: u32,
        /// What was wrong with the last one.
        last: DecodeError,
    },
    /// The agent asked for something in the handshake, and was told that it is not supported.
    #[error("the agent asks for {what}, which is not supported")]
    Unsupported {
        /// What it asked for.
        what: String,
    },
    /// A handshake message that is intact but makes no sense.
    #[error("the agent sent a malformed handshake: {0}")]
    Handshake(DecodeError),
    /// A message that has no meaning at this point of the handshake.
    #[error("the agent sent an unexpected {message} while {state}")]
    Unexpected {
        /// Name of the payload type.
        message: &'static str,
        /// What the channel was doing.
        state: &'static str,
    },
}
