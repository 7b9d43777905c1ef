//! What the client is told.

use std::{sync::Arc, time::Duration};

use russh::keys::PrivateKey;

use crate::pin::HostKeyPin;

/// Settings of one connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name to log in with.
    pub user: String,
    /// Key to log in with.
    pub key: Arc<PrivateKey>,
    /// Host keys that are accepted; none accepts every key and leaves the judgement to whoever
    /// reads [`Event::HostKey`](crate::Event::HostKey).
    pub pins: Vec<HostKeyPin>,
    /// Whether to compress after login; [`Compression::Auto`] by default.
    pub compression: Compression,
    /// Largest receive window of each channel in bytes, which is also the most memory that an unread
    /// channel takes; 512 KiB by default, at least 1.
    pub window: u32,
    /// Largest payload of data that the server may send in one packet, in bytes; 4 KiB by default, 1 byte
    /// to 128 KiB. A packet is worth nothing before it is complete, so on a slow path a large one makes the
    /// server wait for credit.
    pub max_packet: u32,
    /// Bytes in either direction after which keys are exchanged anew; 1 GiB by default, at least
    /// 4 KiB.
    pub rekey_bytes: u64,
    /// Time after which keys are exchanged anew; one hour by default, 10 ms to a year.
    pub rekey_interval: Duration,
    /// Silence after which the server is asked for a sign of life; `None`, the default, never asks;
    /// 10 ms to a year.
    pub keepalive_interval: Option<Duration>,
    /// Questions without an answer after which the server is given up; 3 by default.
    pub keepalive_max: u32,
    /// Bytes that [`Client::write`](crate::Client::write) takes ahead of the network, for each
    /// channel; 256 KiB by default.
    pub send_queue_bytes: usize,
    /// Channels that may be open at once; 256 by default.
    pub max_channels: usize,
    /// Host key algorithms to offer, in order of preference; `None`, the default, offers all that are known.
    /// Unknown names are left out, and types that are pinned still come first.
    pub host_key_algorithms: Option<Vec<String>>,
}

impl Config {
    /// Makes a configuration with the defaults above.
    pub fn new(user: impl Into<String>, key: Arc<PrivateKey>) -> Self {
        Self {
            user: user.into(),
            key,
            pins: Vec::new(),
            compression: Compression::Auto,
            window: 512 * 1024,
            max_packet: 4 * 1024,
            rekey_bytes: 1 << 30,
            rekey_interval: Duration::from_hours(1),
            keepalive_interval: None,
            keepalive_max: 3,
            send_queue_bytes: 256 * 1024,
            max_channels: 256,
            host_key_algorithms: None,
        }
    }
}

/// Compression of the connection after login (`zlib@openssh.com`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// Compresses if the server can.
    #[default]
    Auto,
    /// Compresses, and refuses a server that cannot.
    On,
    /// Does not compress.
    Off,
}
