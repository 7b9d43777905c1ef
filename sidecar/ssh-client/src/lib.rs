//! An SSH client for port forwarding, as a state machine without IO.
//!
//! Nothing here reads a clock or a socket: bytes and time come in; bytes, events and deadlines come out. Only
//! random numbers are generated inside: for ephemeral keys, the cookie of each key exchange and padding. So the
//! same calls lead to the same events, though not to the same bytes.
//!
//! # What of SSH is implemented
//!
//! - Transport (RFC 4253): key exchange by `mlkem768x25519-sha256`, X25519 or ECDH on the NIST curves; AES-GCM,
//!   ChaCha20-Poly1305, or AES-CTR with HMAC-SHA-2; host keys and pins of types Ed25519, ECDSA and RSA with SHA-2;
//!   rekeying by volume, by time and on the server's request; OpenSSH's strict key exchange; `server-sig-algs`
//!   (RFC 8308).
//! - Compression `zlib@openssh.com`, which starts after the login.
//! - Authentication (RFC 4252) by `publickey` alone, with private keys in every usual format.
//! - Connection (RFC 4254): `direct-tcpip` channels with half-close, and keepalive requests.
//!
//! Not implemented: shells, commands, subsystems, remote forwarding, agents, passwords, certificates, SHA-1, CBC
//! modes, and finite-field Diffie-Hellman. Channels and requests of the server are refused.
//!
//! # Why transport and key exchange are implemented here
//!
//! One slow reader must not stall the other channels of its connection. So input is handled at once, and the
//! server gets window credit back only for what the consumer has [consumed](Client::consumed). Stock russh
//! gives credit back when bytes *arrive*, whether they were consumed or not (russh issue #770; measured with
//! 0.65.1). One slow reader then stalls all channels.
//!
//! Cryptography is left to libraries: aws-lc-rs for ciphers, MACs, hashes, key agreement (ML-KEM too),
//! randomness and the verification of RSA signatures; `ssh-key`, as russh exports it, with russh's decoder,
//! for private and public keys and all other signatures. flate2 provides zlib.
//!
//! # How it is kept safe
//!
//! - Every length, window, queue and count that the server can influence is bounded; text from the server is
//!   escaped and cut. There is no `unsafe` code, and lints forbid indexing and `unwrap`.
//! - Strict key exchange prevents prefix truncation (Terrapin, CVE-2023-48795), if the server supports it, too.
//!   Compression starts only after the login, and a packet may inflate to 256 KiB at most.
//! - It is fuzzed by three targets (`fuzz/`): input from the first byte, calls and messages after the login, and
//!   keys and pins. The tests run their corpora.
//! - `src/tests/hostile.rs` has a server that breaks the rules: each violation must end in an error, none in
//!   a panic or in growing memory.
//! - Interoperability is tested with OpenSSH's sshd and with russh's server (`tests/`): every cipher, MAC and key
//!   exchange method, in both directions, during rekeying, and with bytes changed on the way.
//!
//! # Order of calls
//!
//! Until [`Client`] returns an error or everything is closed, the caller repeats:
//!
//! 1. Give input to [`Client::handle_input`], or call [`Client::handle_timeout`] when [`Client::poll_timeout`] has
//!    passed.
//! 2. Take every [`Event`] from [`Client::poll_event`]; for each channel, [`Client::read`] data, report
//!    [`Client::consumed`] once it was passed on, and [`Client::write`] what is to be sent.
//! 3. Send what [`Client::poll_transmit`] gives, in pieces whose size suits the path below.
//!
//! After an error from any of these calls, `poll_transmit` still gives a DISCONNECT message if the server can read
//! one; nothing else works any more.
//!
//! ```text
//! identification ─▶ key exchange ─▶ authentication ─▶ connection (channels)
//!                        ▲ by volume, by time, or at the server's request │
//!                        └────────────────────────────────────────────────┘
//! ```
//!
//! # Flow control
//!
//! Each channel has its own receive window, so input can always be handled at once, and memory is bounded by the
//! windows of the open channels.
//!
//! Data that the server sends ahead on one channel delays the data of all others, since they share one stream. If
//! the caller [sets](Client::set_round_trip) the round trip of the path, the window of a channel with bulk data is
//! limited to what its own rate carries in that time: the path stays full and its queue short.
//!
//! # Modules, lowest first
//!
//! Each module imports only modules before it.
//!
//! ```text
//! basics          error wire
//! settings        pin config
//! transport       algorithms exchange cipher compression packet host_key identification negotiation transport
//! authentication  auth
//! connection      keepalive receive_window channel event connection
//! client          client
//! keys            key::der key::cost key::mend key
//! tests           fuzzing tests::server tests::exchange tests::hostile tests
//! ```

#![cfg_attr(
    any(test, fuzzing),
    expect(clippy::disallowed_methods, reason = "tests need a first instant")
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
pub use error::{Error, Login};
pub use event::Event;
pub use key::{KeyError, fingerprint, key_type, load_private_key, secret_parts};
pub use negotiation::Negotiated;
pub use pin::{HostKeyPin, PinError};
pub use russh::keys::{PrivateKey, PublicKey};
