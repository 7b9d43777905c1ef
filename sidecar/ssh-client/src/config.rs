//! Settings of a connection.

use std::{sync::Arc, time::Duration};

use russh::keys::PrivateKey;

use crate::pin::HostKeyPin;

/// Settings of one connection.
#[derive(Clone, Debug)]
pub struct Config {
    /// User name for the login.
    pub user: String,
    /// Private key for the login.
    pub key: Arc<PrivateKey>,
    /// Accepted host keys. If empty, the default, every key is accepted, and the caller decides by
    /// [`Event::HostKey`](crate::Event::HostKey).
    pub pins: Vec<HostKeyPin>,
    /// Whether to compress after the login; [`Compression::Auto`] by default.
    pub compression: Compression,
    /// Largest receive window of each channel, in bytes: also the most memory that a channel with unread data
    /// takes. 512 KiB by default, at least 1 byte.
    pub window: u32,
    /// Most data that the server may send in one packet, in bytes; 4 KiB by default, 1 byte to 128 KiB. Data
    /// can be used only when its packet is complete, so on a slow path large packets make the server wait for
    /// window credit.
    pub max_packet: u32,
    /// Bytes in either direction after which keys are exchanged again; 1 GiB by default (RFC 4253 section 9),
    /// at least 4 KiB.
    pub rekey_bytes: u64,
    /// Time after which keys are exchanged again; one hour by default (RFC 4253 section 9), 10 ms to a year.
    pub rekey_interval: Duration,
    /// Time without input after which a keepalive request is sent, a fifth of it after something was sent, 10 ms to a
    /// year; `None`, the default, sends
    /// none. OpenSSH's `ServerAliveInterval`.
    pub keepalive_interval: Option<Duration>,
    /// Unanswered keepalive requests after which the connection fails with
    /// [`Error::KeepaliveTimeout`](crate::Error::KeepaliveTimeout); 3 by default, as OpenSSH's
    /// `ServerAliveCountMax`.
    pub keepalive_max: u32,
    /// Bytes that [`Client::write`](crate::Client::write) queues for each channel; 256 KiB by default, at least
    /// 1 byte.
    pub send_queue_bytes: usize,
    /// Most channels that may be open at once; 256 by default.
    pub max_channels: usize,
    /// Host key algorithms to offer, in order of preference; `None`, the default, offers all known ones.
    /// Unknown names are ignored, and algorithms of pinned keys still come first.
    pub host_key_algorithms: Option<Vec<String>>,
}

impl Config {
    /// Makes settings with the defaults given at the fields.
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

/// Compression of the connection after the login: `zlib@openssh.com` (OpenSSH's PROTOCOL section 1.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// Compresses if the server supports it.
    #[default]
    Auto,
    /// Compresses; a server without it is refused with
    /// [`Error::NoCommonAlgorithm`](crate::Error::NoCommonAlgorithm).
    On,
    /// Does not compress.
    Off,
}
