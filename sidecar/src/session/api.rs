//! [`SessionApi`]: the calls to AWS that a tunnel needs. The monitor makes them with the AWS SDK; the worker requests
//! them from the monitor.

use std::fmt;

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::ApiError;

/// The control plane of one bastion.
pub(crate) trait SessionApi: Send + Sync + fmt::Debug {
    /// Starts a session that leads to the bastion's sshd.
    ///
    /// Not cancel-safe: a call whose future was dropped may still start a session. Use
    /// [`SessionStarter`](super::SessionStarter).
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>>;

    /// Requests a new token for a session whose WebSocket was lost. Cancel-safe.
    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>>;

    /// Terminates a session. One that is over already counts as terminated. Cancel-safe.
    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>>;

    /// Returns the headers that sign the opening of the data channel at `uri`; none where the URI itself is signed
    /// (`X-Amz-…` in its query). Valid for minutes: sign each opening. Cancel-safe.
    fn sign_opening<'a>(&'a self, uri: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>>;

    /// Returns the ARN of the credentials' owner (`sts:GetCallerIdentity`). Cancel-safe.
    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>>;

    /// Notes that a session is over, so that it needs no `TerminateSession`.
    fn session_ended(&self, session_id: &str);
}

/// Headers to add to a request; empty for an unsigned one.
pub(crate) type SignedHeaders = Vec<(HeaderName, HeaderValue)>;

/// The answer to `StartSession`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Started {
    /// Up to 96 characters.
    pub(crate) session_id: String,
    /// Where the data channel is opened. Used byte for byte as received.
    pub(crate) stream_url: String,
    /// Authenticates the opening message to the stream host; valid for seconds.
    pub(crate) token: Token,
}

/// The answer to `ResumeSession`.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Resumed {
    /// `None`: the URL used before is still valid.
    pub(crate) stream_url: Option<String>,
    /// `None` when the session is over.
    pub(crate) token: Option<Token>,
}

/// A session's token: shown by no `Debug`, wiped when dropped.
#[derive(Clone)]
pub(crate) struct Token(Zeroizing<String>);

impl Token {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl Serialize for Token {
    /// Only for the socket between monitor and worker, whose frames are wiped.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

/// An AWS access key. Secret and session token are wiped when dropped.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: Zeroizing<String>,
    /// Only for temporary keys.
    pub(crate) session_token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keys")
            .field("temporary", &self.session_token.is_some())
            .finish_non_exhaustive()
    }
}
