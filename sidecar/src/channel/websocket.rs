//! The WebSocket below a data channel: opened, with a signature where that is allowed, then frames both ways.
//!
//! Use [`WebSocket`] from one task, by its `poll_*` methods or through `StreamExt` and `SinkExt`. Feed what there is to
//! send and flush once, instead of flushing each frame: that saves a quarter of the CPU time. Reading and writing are
//! independent and lose nothing when cancelled.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod preconnect;
mod stream_url;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream};
use http::{HeaderName, HeaderValue, Request, Uri, header};
use runner_protocol::ErrorCode;
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message,
        handshake::client::generate_key,
        protocol::{WebSocketConfig, frame::CloseFrame},
    },
};
use tracing::{debug, warn};

use crate::{
    config::Aws,
    net::dial::{ConnectError, Connector, Transport, unreachable_hint},
    runtime::failure::ToFailure,
    session::{IamAction, SessionApi, SignedHeaders},
};

pub(crate) use preconnect::Preconnect;
pub(crate) use stream_url::{InvalidStreamUrl, expected_host, resolve};

/// The service's stream host, and how to connect to it.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the config's names")]
pub(crate) struct StreamEndpoint {
    /// `aws.region`, to which a `StreamUrl` must belong.
    pub(crate) region: String,
    /// `aws.stream_endpoint_url`: replaces the host of a `StreamUrl`; its own path is ignored.
    pub(crate) stream_endpoint_url: Option<Uri>,
    /// Whether a `StreamUrl` may be at loopback: only where `aws.endpoint_url` is.
    pub(crate) allow_loopback: bool,
    pub(crate) connector: Connector,
    /// Time limit for one opening as a whole, from the signature to the sent opening message.
    pub(crate) timeout: Duration,
}

impl StreamEndpoint {
    /// The endpoint of the config's `aws` section, with 15 s for an opening.
    pub(crate) fn new(aws: &Aws, connector: Connector) -> Self {
        Self {
            region: aws.region.clone(),
            stream_endpoint_url: aws.stream_endpoint_url.clone(),
            allow_loopback: aws.is_loopback,
            connector,
            timeout: OPEN_TIMEOUT,
        }
    }
}

/// How the accepted opening was signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum OpeningSignature {
    /// With the config's credentials.
    Signed,
    /// Unsigned: the service refused the signed opening with 403 and accepted the unsigned one. The credentials lack
    /// `ssmmessages:OpenDataChannel`.
    UnsignedAfterRefusal,
    /// Without signing headers: there were no credentials, or the URL itself is signed.
    NotSigned,
}

/// Why no WebSocket was opened. Free of secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WebSocketOpenError {
    /// The `StreamUrl` is malformed, or does not lead to AWS.
    #[error(transparent)]
    Url(#[from] InvalidStreamUrl),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The upgrade was answered with another status than 101.
    #[error("`{host}` refuses the data channel: HTTP {status}")]
    Refused {
        host: String,
        status: u16,
        /// Whether a signed opening was refused with 403 before.
        signature_refused: bool,
    },
    /// The connection ended during the upgrade, or while the opening message was sent.
    #[error("the opening of the data channel at `{host}` broke: {cause}")]
    Broken { host: String, cause: String },
    #[error("`{host}` did not open the data channel within {} s", .within.as_secs())]
    TimedOut {
        host: String,
        /// [`StreamEndpoint::timeout`].
        within: Duration,
    },
}

impl WebSocketOpenError {
    /// Whether the same opening may succeed later.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Url(_) => false,
            Self::Connect(error) => error.is_transient(),
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Broken { .. } | Self::TimedOut { .. } => true,
        }
    }

    /// The IAM action that is not allowed, if that is why.
    pub(crate) const fn denied_action(&self) -> Option<IamAction> {
        match self {
            Self::Refused { signature_refused: true, status: 401 | 403, .. } => {
                Some(IamAction::OpenDataChannel)
            }
            _ => None,
        }
    }
}

impl ToFailure for WebSocketOpenError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Url(_) => ErrorCode::SessionProtocol,
            Self::Connect(error) => error.code(),
            Self::Refused { status: 401 | 403, .. } => ErrorCode::AwsAccessDenied,
            Self::Refused { status: 429, .. } => ErrorCode::AwsThrottled,
            Self::Refused { status: 500.., .. } => ErrorCode::AwsInternal,
            Self::Refused { .. } | Self::Broken { .. } => ErrorCode::SessionLost,
            Self::TimedOut { .. } => ErrorCode::TimeoutSession,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Url(_) => "set `aws.stream_endpoint_url` if the host is yours, and check \
                             `aws.endpoint_url` if it is not"
                .to_owned(),
            Self::Connect(error) => error.hint(),
            Self::TimedOut { host, .. } => unreachable_hint(host),
            Self::Refused { signature_refused: true, status: 401 | 403, .. } => format!(
                "allow `{}` on one's own sessions (`ssm-sidecar policy` prints \
                 the statement), and check that credentials and clock are right",
                IamAction::OpenDataChannel
            ),
            Self::Refused { status: 401 | 403, .. } => format!(
                "give credentials that can sign the opening, and allow them `{}`; if `ssmmessages` is reached \
                 through a VPC endpoint, allow it in that endpoint's policy, too",
                IamAction::OpenDataChannel
            ),
            Self::Refused { status: 429, .. } => {
                "start fewer sessions at once in this account, and try again later".to_owned()
            }
            Self::Refused { status: 500.., .. } => {
                "try again; see the AWS Health Dashboard".to_owned()
            }
            Self::Refused { .. } | Self::Broken { .. } => {
                "try again; look for a proxy on the way that does not let WebSockets pass"
                    .to_owned()
            }
        }
    }
}

/// Opens the data channel's WebSocket at `stream_url` and sends `opening`, the message with the token.
///
/// `api` signs the opening. When the service refuses it with 403, one unsigned opening follows, since customers need
/// not grant more than `ssm:StartSession`. The connection of `preconnect` is used if it is to the same host.
/// Cancel-safe: the connection is dropped.
///
/// # Errors
///
/// [`WebSocketOpenError`]. The session itself stays as it was.
pub(crate) async fn open(
    endpoint: &StreamEndpoint,
    api: &dyn SessionApi,
    stream_url: &str,
    opening: String,
    preconnect: Preconnect<'_>,
) -> Result<WebSocket, WebSocketOpenError> {
    let uri = resolve(stream_url, endpoint)?;
    let within = endpoint.timeout;
    match timeout(within, open_in_time(endpoint, api, &uri, opening, preconnect)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(WebSocketOpenError::TimedOut { host: host_of(&uri), within }),
    }
}

async fn open_in_time(
    endpoint: &StreamEndpoint,
    api: &dyn SessionApi,
    uri: &Uri,
    opening: String,
    mut preconnect: Preconnect<'_>,
) -> Result<WebSocket, WebSocketOpenError> {
    let headers = match preconnect.drive_while(api.sign_opening(uri)).await {
        Ok(headers) => headers,
        Err(error) => {
            warn!(%error, "the data channel is opened without signature");
            SignedHeaders::new()
        }
    };
    let signed = !headers.is_empty();
    let connected = preconnect.take(uri).await;
    let (mut inner, signature) = match upgrade(endpoint, uri, headers, connected).await {
        Err(WebSocketOpenError::Refused { status: 403, host, .. }) if signed => {
            debug!(host, "the signed opening was refused; retrying without signature");
            let retried = upgrade(endpoint, uri, SignedHeaders::new(), None).await;
            let inner = retried.map_err(|error| match error {
                WebSocketOpenError::Refused { host, status, .. } => {
                    WebSocketOpenError::Refused { host, status, signature_refused: true }
                }
                error => error,
            })?;
            (inner, OpeningSignature::UnsignedAfterRefusal)
        }
        Err(error) => return Err(error),
        Ok(inner) if signed => (inner, OpeningSignature::Signed),
        Ok(inner) => (inner, OpeningSignature::NotSigned),
    };
    debug!(?signature, "WebSocket open");
    let sent = inner.send(Message::text(opening)).await;
    sent.map_err(|error| WebSocketOpenError::Broken {
        host: host_of(uri),
        cause: error.to_string(),
    })?;
    Ok(WebSocket { inner, signature })
}

/// Upgrades the connection that is `connected` already, or a new one if that one turns out to be closed.
async fn upgrade(
    endpoint: &StreamEndpoint,
    uri: &Uri,
    headers: SignedHeaders,
    connected: Option<Box<dyn Transport>>,
) -> Result<Inner, WebSocketOpenError> {
    if let Some(transport) = connected {
        match upgrade_on(transport, uri, headers.clone()).await {
            Err(WebSocketOpenError::Broken { cause, .. }) => {
                debug!(cause, "the early connection is unusable");
            }
            outcome => return outcome,
        }
    }
    let transport = endpoint.connector.connect(uri).await?;
    upgrade_on(transport, uri, headers).await
}

async fn upgrade_on(
    transport: Box<dyn Transport>,
    uri: &Uri,
    headers: SignedHeaders,
) -> Result<Inner, WebSocketOpenError> {
    let host = || host_of(uri);
    let broken = |cause: String| WebSocketOpenError::Broken { host: host(), cause };
    let request = request(uri, headers).map_err(|error| broken(error.to_string()))?;
    match client_async_with_config(request, transport, Some(config())).await {
        Ok((inner, _)) => Ok(inner),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status().as_u16();
            Err(WebSocketOpenError::Refused { host: host(), status, signature_refused: false })
        }
        Err(error) => Err(broken(error.to_string())),
    }
}

fn request(uri: &Uri, headers: SignedHeaders) -> Result<Request<()>, http::Error> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::get(uri.clone())
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .body(())?;
    request.headers_mut().extend(
        headers.into_iter().map(|(name, value): (HeaderName, HeaderValue)| (Some(name), value)),
    );
    Ok(request)
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

fn host_of(uri: &Uri) -> String {
    uri.authority().map_or("", |authority| authority.as_str()).to_owned()
}

type Inner = WebSocketStream<Box<dyn Transport>>;

/// An open WebSocket: a stream and a sink of [`Frame`]s.
///
/// The next flush or read answers a ping of the service. After a close frame the stream ends once the service has
/// closed the connection.
pub(crate) struct WebSocket {
    inner: Inner,
    signature: OpeningSignature,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    /// A message of the data channel: sent as binary, accepted as binary or text.
    Message(Bytes),
    /// At most 125 bytes.
    Ping(Bytes),
    /// The answer to a ping; tungstenite answers the service's pings.
    Pong(Bytes),
    Close {
        /// 1000 is the normal code; 1005 if the peer sent none.
        code: u16,
        /// The peer's text, at most 123 bytes.
        reason: String,
    },
}

/// Why an open WebSocket is lost.
#[derive(Debug, thiserror::Error)]
#[error("the WebSocket broke: {0}")]
pub(crate) struct SocketError(tungstenite::Error);

impl WebSocket {
    pub(crate) fn signature(&self) -> OpeningSignature {
        self.signature
    }
}

impl Stream for WebSocket {
    type Item = Result<Frame, SocketError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let item = std::task::ready!(Pin::new(&mut self.inner).poll_next(context));
            return Poll::Ready(match item {
                None => None,
                Some(Err(error)) => Some(Err(SocketError(error))),
                Some(Ok(message)) => match Frame::incoming(message) {
                    Some(frame) => Some(Ok(frame)),
                    None => continue,
                },
            });
        }
    }
}

impl Sink<Frame> for WebSocket {
    type Error = SocketError;

    fn poll_ready(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SocketError>> {
        Pin::new(&mut self.inner).poll_ready(context).map_err(SocketError)
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Frame) -> Result<(), SocketError> {
        Pin::new(&mut self.inner).start_send(frame.outgoing()).map_err(SocketError)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SocketError>> {
        Pin::new(&mut self.inner).poll_flush(context).map_err(SocketError)
    }

    fn poll_close(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), SocketError>> {
        Pin::new(&mut self.inner).poll_close(context).map_err(SocketError)
    }
}

impl fmt::Debug for WebSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WebSocket")
            .field("signature", &self.signature)
            .finish_non_exhaustive()
    }
}

impl Frame {
    fn incoming(message: Message) -> Option<Self> {
        Some(match message {
            Message::Binary(bytes) => Self::Message(bytes),
            Message::Text(text) => Self::Message(text.into()),
            Message::Ping(bytes) => Self::Ping(bytes),
            Message::Pong(bytes) => Self::Pong(bytes),
            Message::Close(Some(CloseFrame { code, reason })) => {
                Self::Close { code: code.into(), reason: reason.as_str().to_owned() }
            }
            Message::Close(None) => Self::Close { code: NO_STATUS, reason: String::new() },
            // Never received, only sent.
            Message::Frame(_) => return None,
        })
    }

    fn outgoing(self) -> Message {
        match self {
            Self::Message(bytes) => Message::Binary(bytes),
            Self::Ping(bytes) => Message::Ping(bytes),
            Self::Pong(bytes) => Message::Pong(bytes),
            Self::Close { code, reason } => {
                Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
            }
        }
    }
}

/// Time for an opening as a whole. The official plugin dials for 45 s; a token is valid for seconds only.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A close frame without status (RFC 6455, section 7.1.5).
const NO_STATUS: u16 = 1005;

/// Read from the connection at once, in bytes.
const READ_BUFFER: usize = 32 * 1024;

/// Buffered before the connection is written to without a flush, in bytes.
const WRITE_BUFFER: usize = 32 * 1024;

/// Limit of what is buffered for a connection that accepts nothing, in bytes. It is not reached: the sink stops being
/// ready long before.
const MAX_WRITE_BUFFER: usize = 1024 * 1024;

/// Largest accepted message, in bytes. Agents send 1,024 bytes of payload; AWS documents no limit.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

#[cfg(test)]
pub(super) mod tests;
