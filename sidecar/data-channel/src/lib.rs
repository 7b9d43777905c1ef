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
//! # Rules for a faulty path
//!
//! A peer, or whoever stands between, may do anything. What it does meets one of these:
//!
//! | what comes, or does not | what is done about it |
//! | --- | --- |
//! | a message of ours is lost | sent again, unchanged, when its time-out has passed: 200 ms to 3 s, doubling; overdue ones oldest first and paced; the window halves |
//! | an acknowledgement of ours is lost | the agent repeats its message, and each repetition is acknowledged, for ever if need be |
//! | the agent's acknowledgement is lost | our message is sent again; an agent that never says so again (before 3.2.1041.0) has it set aside after five time-outs, where it blocks nothing |
//! | a message comes twice | delivered once, acknowledged each time |
//! | messages overtake each other | early ones are stored and acknowledged at once, within the bounds of [`Config`]; beyond those they are dropped unacknowledged and come again |
//! | a delay, also one that grows | the time-out follows the measured round trip; nothing that was sent again is measured |
//! | a digest that does not match; a payload cut short | dropped unacknowledged and counted, so that it comes again |
//! | a frame without a whole header, header length or date 0, a blank type, a negative number, broken JSON in an acknowledgement | dropped and counted as damaged |
//! | 64 damaged frames in a row | the channel is over ([`ProtocolError::Damaged`]): TLS lets none through, so they were sent so |
//! | an unknown type, or a client's own, of any size | dropped and counted; the WebSocket bounds the size |
//! | an unknown or foreign payload type in its turn | acknowledged, and kept out of the stream; what is meant for people becomes [`Event::Notice`] |
//! | a number far ahead | beyond the reorder buffer: dropped unacknowledged |
//! | an acknowledgement of what was never sent, or once more | ignored and counted |
//! | the handshake request once more, under its number | a duplicate like any other |
//! | a second handshake under a new number, or stream bytes before it is complete | the channel is over ([`ProtocolError::Unexpected`]) |
//! | `pause_publication` | new bytes wait, clocks stand still, acknowledgements go on; any stream message, acknowledgement or `start_publication` ends it, at the latest 10 s after the first request, however often it is repeated |
//! | `channel_closed`, at any moment, damaged or not | the end: nothing more is sent, what came before it can be read |
//! | nothing at all | sent again now and then; whether the path is dead is the caller's to judge, who sees every frame |
//! | the WebSocket is gone | nothing is sent, clocks stand still, up to the bounds bytes are still accepted; afterwards everything unacknowledged goes out in order at once |
//! | dates of the peer that run backwards, a process that was stopped for an hour | nothing: no date of the peer is looked at, and what is due is due once |
//! | numbers up to the end of the field | like any other; after the last one, 9 zettabytes on, nothing is accepted |
//!
//! What follows the rules to the letter cannot be told from the truth: that is for TLS to keep out.
//! `tests/faulty_path.rs` lets all of it happen at once, on thousands of seeds.
//!
//! # What never happens
//!
//! Bytes are never delivered twice, out of order or with a gap; a message is never acknowledged before it
//! is stored, and never dropped after; nothing but acknowledgements and the handshake response is sent
//! before the agent has completed the handshake, since it throws such input away.

#![cfg_attr(
    any(test, fuzzing),
    expect(clippy::disallowed_methods, reason = "tests begin at some time")
)]

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
