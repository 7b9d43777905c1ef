//! The SSM Session Manager data channel as a state machine without IO.
//!
//! A data channel carries one byte stream each way between a client and the SSM agent of an instance.
//! The service between them passes messages on, may lose some, and closes each WebSocket
//! about once an hour; the channel numbers its messages, acknowledges and sends again, and lives on over
//! the next WebSocket. This crate is the client's side of a port session as `AWS-StartSSHSession` opens
//! it. It does no IO, has no clock and no randomness: time, frames and a seed come in, frames, bytes,
//! events and deadlines come out.
//!
//! ```text
//!              handle_message ──▶ ┌─────────────┐ ──▶ read, poll_event
//! WebSocket                       │ DataChannel │                          stream above
//!              poll_transmit  ◀── └─────────────┘ ◀── write, terminate
//!                     handle_timeout ──▶  ──▶ poll_timeout
//! ```
//!
//! # Order of calls
//!
//! 1. [`DataChannel::new`]; open a WebSocket; send [`DataChannel::opening`] as its first frame, as text.
//! 2. Then, in any order: [`DataChannel::handle_message`] for each frame,
//!    [`DataChannel::handle_timeout`] when [`DataChannel::poll_timeout`] is due, [`DataChannel::write`].
//! 3. After each of them: [`DataChannel::poll_transmit`] until `None` or the socket is full,
//!    [`DataChannel::poll_event`] and [`DataChannel::read`] until `None`.
//! 4. When the WebSocket is lost: [`DataChannel::on_disconnected`]; open the next one; send `opening`
//!    with its token; [`DataChannel::on_resumed`]; go on with 2.
//! 5. Over after [`Event::Closed`], after an error of `handle_message`, or when resuming fails.
//!
//! # States
//!
//! ```text
//! AwaitingRequest ──▶ AwaitingComplete ──▶ Open ──▶ (terminate, acknowledged) ──▶ Closed
//!        │ not supported                    handshake and stream errors ──▶ Failed
//!        └──▶ Refused ──answer sent──▶ Failed
//! ```
//!
//! Acknowledgements are sent in all of them but `Closed`. Beside that state runs the path's: up, paused
//! by the service, or down.
//!
//! # What never happens
//!
//! Bytes are never delivered twice, out of order or with a gap; a message is never acknowledged before it
//! is stored, and never dropped after; nothing but acknowledgements and the handshake response is sent
//! before the agent has completed the handshake, since it throws such input away.

mod channel;
mod config;
mod encoder;
mod error;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod handshake;
mod identifiers;
mod in_flight;
mod incoming;
pub mod message;
mod outgoing;
mod pacing;
pub mod payload;
#[cfg(test)]
mod random;
mod rtt;
mod sequence;
mod statistics;
mod timers;
mod window;

#[cfg(test)]
mod tests;

pub use channel::DataChannel;
pub use config::Config;
pub use error::ProtocolError;
pub use event::Event;
pub use message::{DecodeError, Message, MessageType};
pub use payload::{Flag, PayloadType};
pub use sequence::SequenceNumber;
pub use statistics::Statistics;
