//! The client's side of the SSM Session Manager data channel, as a state machine without IO.
//!
//! A data channel carries one byte stream each way between a client and the SSM agent of an instance.
//! The service between them forwards messages, may lose some, and closes a WebSocket now and then, so the
//! channel numbers its messages, acknowledges them, sends them again, and continues on the next WebSocket.
//! This crate implements sessions of the document `AWS-StartSSHSession`. It does no IO and has neither clock
//! nor randomness: time, frames and a seed are arguments; frames, bytes, events and deadlines are results.
//!
//! [docs/ssm-protocol.md](../docs/ssm-protocol.md) specifies the protocol and says how far each statement is
//! proven. Comments cite its sections.
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
//!    with its token; [`DataChannel::on_resumed`]; continue with 2.
//! 5. The channel has ended after [`Event::Closed`], after an error of `handle_message`, or when resuming
//!    fails.
//!
//! # States
//!
//! ```text
//! AwaitingRequest ──▶ AwaitingComplete ──▶ Open ──▶ (terminate, acknowledged) ──▶ Closed
//!        │ not supported                    handshake and stream errors ──▶ Failed
//!        └──▶ Refused ──response sent──▶ Failed
//! ```
//!
//! Acknowledgements are sent in all states but `Closed`. The path has a state of its own: up, paused by the
//! service, or down.
//!
//! # Rules for a faulty path
//!
//! Neither path nor peer is trusted. Each fault has a rule:
//!
//! | fault | reaction |
//! | --- | --- |
//! | an outgoing message is lost | sent again, unchanged, after its time-out: 200 ms to 3 s, doubling; overdue messages oldest first and paced; the window halves |
//! | an outgoing acknowledgement is lost | the agent repeats its message, and each repetition is acknowledged, without limit |
//! | an incoming acknowledgement is lost | the message is sent again; for an agent that never repeats an acknowledgement (before 3.2.1041.0) it is set aside after five time-outs, where it blocks nothing |
//! | a message comes twice | delivered once, acknowledged each time |
//! | messages come out of order | early ones are stored and acknowledged at once, within the bounds of [`Config`]; beyond those they are dropped unacknowledged, so that they come again |
//! | a delay, also one that grows | the time-out follows the measured round trip; repeated messages are not measured |
//! | a digest that does not match; a payload cut short | dropped unacknowledged and counted, so that the message comes again |
//! | a frame without a whole header, header length or date 0, a blank type, a negative number, malformed JSON in an acknowledgement | dropped and counted as damaged |
//! | 64 damaged frames in a row | the channel fails ([`ProtocolError::Damaged`]): TLS excludes damage on the way, so the sender is at fault |
//! | an unknown type, or a type that only clients send, of any size | dropped and counted; the WebSocket bounds the size |
//! | a stream message with a payload type that has no use here | acknowledged, and kept out of the stream; text for people becomes [`Event::Notice`] |
//! | a number far ahead | beyond the reorder buffer: dropped unacknowledged |
//! | an acknowledgement of a message never sent, or a repeated one | ignored and counted |
//! | the handshake request again, under its number | a duplicate like any other |
//! | a second handshake under a new number, or stream bytes before it is complete | the channel fails ([`ProtocolError::Unexpected`]) |
//! | `pause_publication` | everything but acknowledgements is held, and clocks stand still, until `start_publication`; since that may get lost, at the latest until 2 s after the last message in flight was acknowledged, and until 10 s after the first request, however often it is repeated. Then less is sent, see `congestion.rs` |
//! | a close soon after a pause, or during a fast upload | the next path is filled slowly, from 16 messages on |
//! | `channel_closed`, at any moment, damaged or not | the end: nothing more is sent, bytes received before it can be read |
//! | silence | messages in flight are sent again from time to time; whether the path is dead is for the caller to decide, which sees every frame |
//! | the WebSocket is lost | nothing is sent, clocks stand still, bytes are accepted up to the bound; on the next one everything unacknowledged is sent in order and at once |
//! | dates of the peer that run backwards, a process that was stopped for an hour | no effect: dates of the peer are not used, and overdue work is done once |
//! | numbers up to the end of the field | like any other; after the last one, 9 zettabytes on, nothing is accepted |
//!
//! A forged message that is valid in every respect is not detected: TLS has to exclude it.
//! `src/tests/faulty_path.rs` combines all faults, on thousands of seeds.
//!
//! # Invariants
//!
//! Bytes are never delivered twice, out of order or with a gap. A message is never acknowledged before it
//! is stored, and never dropped afterwards. Before the agent has completed the handshake nothing is sent but
//! acknowledgements and the handshake response, since the agent discards such input (section 6).

#![cfg_attr(
    any(test, fuzzing),
    expect(clippy::disallowed_methods, reason = "tests need a start time")
)]

mod channel;
mod config;
mod congestion;
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
mod send_rate;
mod sequence;
mod statistics;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timers;
mod upload_limits;
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
pub use upload_limits::UploadLimits;
