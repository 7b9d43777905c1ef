//! An SSH client for port forwarding as a state machine without IO.
//!
//! Spoken are RFC 4253 (transport), RFC 8308 (`server-sig-algs`), RFC 4252 (`publickey`) and the
//! `direct-tcpip` channels of RFC 4254, with OpenSSH's strict key exchange, delayed compression and
//! keepalive. Nothing here reads a clock or a socket: bytes and time come in, bytes, events and
//! deadlines come out. Randomness it draws by itself, for ephemeral keys, the cookie of each exchange
//! and padding: the same calls lead to the same events, though not to the same bytes.
//!
//! The caller repeats, until [`Client`] reports an error or everything is closed:
//!
//! 1. give what arrived to [`Client::handle_input`], or, when [`Client::poll_timeout`] has passed,
//!    call [`Client::handle_timeout`];
//! 2. take every [`Event`] from [`Client::poll_event`], and per channel [`Client::read`] data, say
//!    [`Client::consumed`] once it has really gone on, [`Client::write`] what waits;
//! 3. send what [`Client::poll_transmit`] gives, in pieces as large as the path below wants.
//!
//! After an error from any of these calls, `poll_transmit` still gives the farewell message, if the
//! peer can still read one; nothing else works any more.
//!
//! ```text
//! identification ─▶ key exchange ─▶ authentication ─▶ connection (channels)
//!                        ▲ by volume, by time, or as the server wishes │
//!                        └──────────────────────────────────────────────┘
//! ```
//!
//! # Files, in the order in which bytes flow
//!
//! ```text
//! network ─▶ packet ──────────▶ transport ────────▶ client ─────▶ connection ─▶ channel ─▶ read
//!            cipher             identification      auth                        receive_window
//!            compression        negotiation         keepalive
//!                               exchange
//!                               host_key, pin
//! ```
//!
//! What is written goes the same way back. Below the names stand those that each of them uses; all read
//! and write their fields with `wire`. Apart from this are `key`, which reads private keys, and
//! `fuzzing`.
//!
//! # One slow reader harms only itself
//!
//! Each channel has its own receive window, and credit is given back only for what the consumer
//! has [`consumed`](Client::consumed). Input is therefore always handled at once, and memory is
//! bounded by the windows of the open channels.
//!
//! # One busy channel does not hold up the others
//!
//! What the server sends ahead on one channel stands before the data of all others in the one stream
//! below. Where the caller [says](Client::set_round_trip) what a round trip takes, a channel in bulk is
//! allowed what its own rate carries in that time: the path stays full, and the queue short.

#![cfg_attr(
    any(test, fuzzing),
    expect(clippy::disallowed_methods, reason = "tests begin at some time")
)]

mod algorithms;
mod auth;
mod channel;
mod cipher;
mod client;
mod compression;
mod config;
mod connection;
mod error;
mod event;
mod exchange;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod host_key;
mod identification;
mod keepalive;
mod key;
mod negotiation;
mod packet;
mod pin;
mod receive_window;
#[cfg(test)]
mod tests;
mod transport;
mod wire;

pub use channel::{ChannelId, OpenFailure};
pub use client::{Client, Statistics};
pub use config::{Compression, Config};
pub use error::Error;
pub use event::Event;
pub use key::{KeyError, fingerprint, key_type, load_private_key, secret_parts};
pub use negotiation::Negotiated;
pub use pin::{HostKeyPin, PinError};
pub use russh::keys::{PrivateKey, PublicKey};
