//! What can go wrong, and through whose fault.

use std::time::Duration;

/// Why the connection has ended or a request was refused.
///
/// Text from the peer is escaped and cut to 200 characters before it gets here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The peer broke the SSH protocol.
    #[error("server broke the SSH protocol: {what}")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// A packet's authentication code was wrong: the path altered bytes.
    #[error("packet failed its integrity check")]
    Integrity,
    /// What answered is not an SSH 2.0 server.
    #[error("peer does not speak SSH 2.0, it sent `{received}`")]
    NotSsh {
        /// The line that should have been its identification.
        received: String,
    },
    /// Client and server have no algorithm in common.
    #[error("no common {kind}: client offers `{ours}`, server offers `{theirs}`")]
    NoCommonAlgorithm {
        /// Which kind of algorithm: key exchange, host key, cipher, MAC or compression.
        kind: &'static str,
        /// Our list, in order of preference.
        ours: String,
        /// The server's list, in its order.
        theirs: String,
    },
    /// The server's host key is none of those that were pinned.
    #[error("SSH host key is `{actual}`, expected `{expected}`")]
    HostKeyMismatch {
        /// Fingerprints that were pinned, separated by commas.
        expected: String,
        /// Fingerprint of the key that the server presented, with its type.
        actual: String,
    },
    /// The server could not prove that it holds its host key.
    #[error("server's signature does not match its host key `{fingerprint}`")]
    HostKeyUnproven {
        /// Fingerprint of the key that it presented.
        fingerprint: String,
    },
    /// The server accepts neither this user nor this key.
    #[error(
        "server rejected user `{user}` with a key for {tried}; it would accept: {}",
        Listed(methods)
    )]
    AuthRejected {
        /// Name we logged in with.
        user: String,
        /// Signature algorithms that were tried, separated by commas.
        tried: String,
        /// Methods by which the server says login can go on.
        methods: Vec<String>,
    },
    /// The server took the key but demands a further method.
    #[error("server accepted the key but also demands: {}", Listed(methods))]
    AuthIncomplete {
        /// Methods by which the server says login can go on.
        methods: Vec<String>,
    },
    /// The private key could not sign.
    #[error("private key cannot sign with {algorithm}: {why}")]
    Signing {
        /// Signature algorithm.
        algorithm: String,
        /// The reason, free of key material.
        why: String,
    },
    /// The server ended the connection.
    #[error("server disconnected: `{text}` (reason {reason})")]
    Disconnected {
        /// Reason code of RFC 4253 section 11.1.
        reason: u32,
        /// What it said.
        text: String,
    },
    /// The server has been silent although it was asked to answer.
    #[error("server has been silent for {} s", silent.as_secs())]
    KeepaliveTimeout {
        /// Time since anything was received.
        silent: Duration,
    },
    /// As many channels are open as the configuration allows.
    #[error("{limit} channels are open already")]
    ChannelsExhausted {
        /// The limit.
        limit: usize,
    },
    /// The connection has ended before this call.
    #[error("SSH connection has ended")]
    Ended,
    /// A cryptographic primitive failed for no fault of the peer's.
    #[error("cryptographic operation failed: {what}")]
    Crypto {
        /// Which.
        what: &'static str,
    },
}

impl Error {
    /// Makes the error of a peer that broke the protocol.
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    /// Reason code for our DISCONNECT (RFC 4253 section 11.1), if the peer should get one.
    pub(crate) fn disconnect_reason(&self) -> Option<u32> {
        match self {
            Self::Protocol { .. } => Some(reason::PROTOCOL_ERROR),
            Self::NoCommonAlgorithm { .. } => Some(reason::KEY_EXCHANGE_FAILED),
            Self::HostKeyMismatch { .. } | Self::HostKeyUnproven { .. } => {
                Some(reason::HOST_KEY_NOT_VERIFIABLE)
            }
            Self::AuthRejected { .. } | Self::AuthIncomplete { .. } | Self::Signing { .. } => {
                Some(reason::NO_MORE_AUTH_METHODS_AVAILABLE)
            }
            Self::KeepaliveTimeout { .. } => Some(reason::CONNECTION_LOST),
            Self::Integrity => Some(reason::MAC_ERROR),
            Self::NotSsh { .. }
            | Self::Disconnected { .. }
            | Self::ChannelsExhausted { .. }
            | Self::Ended
            | Self::Crypto { .. } => None,
        }
    }
}

/// Reason codes of RFC 4253 section 11.1.
pub(crate) mod reason {
    pub(crate) const PROTOCOL_ERROR: u32 = 2;
    pub(crate) const KEY_EXCHANGE_FAILED: u32 = 3;
    pub(crate) const MAC_ERROR: u32 = 5;
    pub(crate) const HOST_KEY_NOT_VERIFIABLE: u32 = 9;
    pub(crate) const CONNECTION_LOST: u32 = 10;
    pub(crate) const BY_APPLICATION: u32 = 11;
    pub(crate) const NO_MORE_AUTH_METHODS_AVAILABLE: u32 = 14;
}

/// A list of names as a message shows it.
struct Listed<'a>(&'a [String]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            formatter.write_str("nothing")
        } else {
            formatter.write_str(&self.0.join(", "))
        }
    }
}
