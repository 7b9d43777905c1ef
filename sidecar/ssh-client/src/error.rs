//! Errors: why a connection ended or a call was refused.

use std::time::Duration;

/// Why the connection has ended, or why a call was refused.
///
/// Text from the server is escaped and cut to 200 characters.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The server broke the SSH protocol.
    #[error("server broke the SSH protocol: {what}")]
    Protocol {
        /// The message and what was wrong with it.
        what: String,
    },
    /// A packet's authentication code was wrong: bytes were changed on the way.
    #[error("packet failed its integrity check")]
    Integrity,
    /// The peer is not an SSH 2.0 server.
    #[error("peer does not speak SSH 2.0, it sent `{received}`")]
    NotSsh {
        /// The line that should have been its identification.
        received: String,
    },
    /// Client and server have no algorithm in common.
    #[error("no common {kind}: client offers `{ours}`, server offers `{theirs}`")]
    NoCommonAlgorithm {
        /// `key exchange method`, `host key algorithm`, `cipher`, `MAC` or `compression`.
        kind: &'static str,
        /// The client's list, in order of preference.
        ours: String,
        /// The server's list, in its order of preference.
        theirs: String,
    },
    /// The server's host key is none of the pinned ones, or changed since the first key exchange.
    #[error("SSH host key is `{actual}`, expected `{expected}`")]
    HostKeyMismatch {
        /// Pinned fingerprints, or that of the first key exchange; separated by commas.
        expected: String,
        /// Fingerprint and type of the key that the server presented.
        actual: String,
    },
    /// The server's signature does not prove that it holds the private half of its host key.
    #[error("server's signature does not match its host key `{fingerprint}`")]
    HostKeyUnproven {
        /// Fingerprint of the key that the server presented.
        fingerprint: String,
    },
    /// The server accepts neither this user nor this key.
    #[error("server rejected {login}; it would accept: {}", Listed(methods))]
    AuthRejected {
        /// What was refused.
        login: Box<Login>,
        /// Authentication methods that can continue (RFC 4252 section 5.1).
        methods: Vec<String>,
    },
    /// The server accepted the key but requires a further method.
    #[error("server accepted the key but also demands: {}", Listed(methods))]
    AuthIncomplete {
        /// Authentication methods that can continue (RFC 4252 section 5.1).
        methods: Vec<String>,
    },
    /// The private key could not sign.
    #[error("private key cannot sign with {algorithm}: {why}")]
    Signing {
        /// The signature algorithm.
        algorithm: String,
        /// The reason, without key material.
        why: String,
    },
    /// The server answered a login by ending the connection.
    #[error("server rejected {login} and disconnected: `{text}` (reason {reason})")]
    LoginEnded {
        /// What was refused.
        login: Box<Login>,
        /// Reason code of RFC 4253 section 11.1.
        reason: u32,
        /// The server's description.
        text: String,
    },
    /// The server ended the connection, before a login was requested or after it was accepted.
    #[error("server disconnected: `{text}` (reason {reason})")]
    Disconnected {
        /// Reason code of RFC 4253 section 11.1.
        reason: u32,
        /// The server's description.
        text: String,
    },
    /// Nothing was received, although keepalive requests were sent.
    #[error("server has been silent for {} s", silent.as_secs())]
    KeepaliveTimeout {
        /// Time since anything was received.
        silent: Duration,
    },
    /// [`Config::max_channels`](crate::Config::max_channels) channels are open.
    #[error("{limit} channels are open already")]
    ChannelsExhausted {
        /// The limit.
        limit: usize,
    },
    /// The connection ended before this call.
    #[error("SSH connection has ended")]
    Ended,
    /// A cryptographic operation or the compressor failed, through no fault of the server.
    #[error("cryptographic operation failed: {what}")]
    Crypto {
        /// The operation.
        what: &'static str,
    },
}

/// A login that was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Signature algorithms that were tried, separated by commas.
    pub tried: String,
    /// What the server takes (`server-sig-algs` of RFC 8308 section 3.1), if it has said so and it takes none of
    /// the algorithms of this key: this is why it refuses.
    pub accepted: Option<String>,
    /// Length of the key if it is an RSA key, in bits.
    pub rsa_bits: Option<u32>,
}

impl std::fmt::Display for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "user `{}` with a key for {}", self.user, self.tried)?;
        match &self.accepted {
            Some(accepted) => write!(formatter, ", which it does not take, only `{accepted}`"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// The error for a server that broke the protocol.
    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    /// Reason code of the DISCONNECT message to send (RFC 4253 section 11.1); `None` to send none.
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
            | Self::LoginEnded { .. }
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

/// Shows a list of names in a message.
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
