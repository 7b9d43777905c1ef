//! Why a data channel cannot go on.

use crate::message::DecodeError;

/// The peer violated the protocol, or requires something that this client does not support.
///
/// Every error is final: the channel sends only outstanding acknowledgements from then on, and
/// [`crate::DataChannel::handle_message`] returns the same error for every later frame.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProtocolError {
    /// Too many damaged frames in a row: the other end does not speak this protocol.
    #[error("the service sent {frames} damaged frames in a row, the last one: {last}")]
    Damaged {
        /// Number of consecutive damaged frames.
        frames: u32,
        /// Defect of the last one.
        last: DecodeError,
    },
    /// The agent requested something unsupported in the handshake. It has been sent a response with status 3.
    #[error("the agent asks for {what}, which is not supported")]
    Unsupported {
        /// Description of the requested feature.
        what: String,
    },
    /// A handshake message that is intact but malformed.
    #[error("the agent sent a malformed handshake: {0}")]
    Handshake(DecodeError),
    /// A message that is not valid in the current state of the handshake.
    #[error("the agent sent an unexpected {message} while {state}")]
    Unexpected {
        /// Name of the payload type.
        message: &'static str,
        /// Description of the state.
        state: &'static str,
    },
}
