//! The WebSocket below a data channel: opened with a signature where that is allowed, then frames both ways.
//!
//! Use [`WebSocket`] from one task, by its `poll_*` methods or through `StreamExt` and `SinkExt`: feed what
//! there is to send and flush when it runs dry, instead of flushing each frame (a quarter of the
//! processor time). Reading and writing are independent and lose nothing when cancelled.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod preconnect;
mod stream_url;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
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
    net::{
        proxy::{Proxy, TunnelError},
        tls::{DISTRUST_HINT, Trust},
    },
    session::{SessionApi, SignedHeaders},
};

pub use preconnect::Ahead;
pub use stream_url::InvalidStreamUrl;
pub(crate) use stream_url::{expected, resolve};

use crate::net::dial::{self, Dial, Direct, Transport};

/// How to reach the service's stream host.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `aws.region`: the `StreamUrl` must lead there.
    pub region: String,
    /// `aws.stream_endpoint_url`: host to use in place of the `StreamUrl`'s; its own path is ignored.
    pub stream_endpoint_url: Option<Uri>,
    /// Whether a `StreamUrl` may lead to loopback: only where `aws.endpoint_url` does.
    pub allow_loopback: bool,
    /// Whose certificates are believed.
    pub trust: Trust,
    /// The way out.
    pub proxy: Proxy,
    /// Who makes connections.
    pub dial: Arc<dyn Dial>,
    /// For one opening as a whole, from signing to the sent opening message.
    pub timeout: Duration,
}

impl Settings {
    /// What a document says.
    pub fn of(aws: &Aws, trust: Trust, proxy: Proxy) -> Self {
        let mut settings = Self::new(aws.region.clone(), trust, proxy);
        settings.stream_endpoint_url.clone_from(&aws.stream_endpoint_url);
        settings.allow_loopback = aws.is_loopback;
        settings
    }

    /// Public endpoints of `region` and 15 s for an opening.
    pub fn new(region: impl Into<String>, trust: Trust, proxy: Proxy) -> Self {
        Self {
            region: region.into(),
            stream_endpoint_url: None,
            allow_loopback: false,
            trust,
            proxy,
            dial: Arc::new(Direct),
            timeout: DEFAULT_TIMEOUT,
        }
    }
}

/// How the opening was signed in the end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpeningSignature {
    /// With our credentials.
    Signed,
    /// The service refused the signature with 403 and took the opening without: the caller lacks
    /// `ssmmessages:OpenDataChannel`.
    UnsignedAfterRefusal,
    /// There was nothing to sign with, or the URL was signed itself.
    NotSigned,
}

/// Why no WebSocket was opened; free of secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The service named an address that is not its own.
    #[error(transparent)]
    Url(#[from] InvalidStreamUrl),
    /// No connection to the stream host, or to the proxy before it.
    #[error("`{host}` cannot be reached: {cause}")]
    Unreachable {
        /// Whom we tried to reach.
        host: String,
        /// What the operating system or the TLS library says.
        cause: String,
    },
    /// The proxy does not let us through.
    #[error("the proxy `{host}` does not open a tunnel: {cause}")]
    Proxy {
        /// The proxy.
        host: String,
        /// What it did instead.
        #[source]
        cause: TunnelError,
    },
    /// The certificate is not accepted.
    #[error("the certificate of `{host}` is not accepted: {reason}")]
    Untrusted {
        /// Whose certificate it is.
        host: String,
        /// Why.
        reason: String,
    },
    /// The service answered the upgrade with another status than 101.
    #[error("`{host}` refuses the data channel: HTTP {status}")]
    Refused {
        /// The stream host.
        host: String,
        /// Its answer.
        status: u16,
        /// Whether a signed opening was refused with 403 before.
        signature_refused: bool,
    },
    /// The upgrade, or the frame after it, failed otherwise.
    #[error("the opening of the data channel at `{host}` broke: {cause}")]
    Broken {
        /// The stream host.
        host: String,
        /// What went wrong.
        cause: String,
    },
    /// It took too long.
    #[error("`{host}` did not open the data channel within {} s", .within.as_secs())]
    TimedOut {
        /// The stream host.
        host: String,
        /// [`Settings::timeout`].
        within: Duration,
    },
}

impl OpenError {
    /// The code of the contract.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Url(_) => ErrorCode::SessionProtocol,
            Self::Unreachable { .. } | Self::Proxy { .. } | Self::Untrusted { .. } => {
                ErrorCode::AwsUnreachable
            }
            Self::Refused { status: 401 | 403, .. } => ErrorCode::AwsAccessDenied,
            Self::Refused { status: 429, .. } => ErrorCode::AwsThrottled,
            Self::Refused { status: 500.., .. } => ErrorCode::AwsInternal,
            Self::Refused { .. } | Self::Broken { .. } => ErrorCode::SessionLost,
            Self::TimedOut { .. } => ErrorCode::TimeoutSession,
        }
    }

    /// What to do about it, in the imperative.
    pub fn hint(&self) -> String {
        match self {
            Self::Url(_) => "set `aws.stream_endpoint_url` if the host is yours, and check \
                             `aws.endpoint_url` if it is not"
                .to_owned(),
            Self::Unreachable { host, .. } | Self::TimedOut { host, .. } => format!(
                "allow outgoing HTTPS to `{host}`, or name a proxy in `HTTPS_PROXY`; for a private endpoint \
                 set `aws.stream_endpoint_url`"
            ),
            Self::Proxy { cause: TunnelError::Refused(407), .. } => {
                "put the proxy's user and password into `HTTPS_PROXY`".to_owned()
            }
            Self::Proxy { .. } => "let the proxy of `HTTPS_PROXY` pass CONNECT to the `ssmmessages` host, or \
                                   except that host in `NO_PROXY`"
                .to_owned(),
            Self::Untrusted { .. } => DISTRUST_HINT.to_owned(),
            Self::Refused { signature_refused: true, status: 401 | 403, .. } => {
                "allow `ssmmessages:OpenDataChannel` on one's own sessions (`ssm-sidecar policy` prints \
                 the statement), and check that credentials and clock are right"
                    .to_owned()
            }
            Self::Refused { status: 429, .. } => {
                "start fewer sessions at once in this account, and try again later".to_owned()
            }
            Self::Refused { status: 500.., .. } => {
                "try again; see the AWS Health Dashboard".to_owned()
            }
            Self::Refused { .. } | Self::Broken { .. } => {
                "try again; look for a proxy on the way that does not let WebSockets pass".to_owned()
            }
        }
    }

    /// Whether the same opening may succeed in a while.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Url(_) | Self::Untrusted { .. } => false,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            Self::Unreachable { .. }
            | Self::Proxy { .. }
            | Self::Broken { .. }
            | Self::TimedOut { .. } => true,
        }
    }
}

/// Opens the data channel's WebSocket at `stream_url` and sends `opening`, the message with the token.
///
/// The opening is signed by `api`; when the service refuses that with 403 it is tried once without, since
/// customers need not grant more than `ssm:StartSession`. A connection that was made `ahead` is used if it leads
/// there. Cancel-safe: the connection is dropped.
///
/// # Errors
///
/// [`OpenError`]; the session itself is not harmed by any of them.
pub async fn open(
    settings: &Settings,
    api: &dyn SessionApi,
    stream_url: &str,
    opening: String,
    ahead: Ahead<'_>,
) -> Result<WebSocket, OpenError> {
    let uri = resolve(stream_url, settings)?;
    let within = settings.timeout;
    match timeout(within, open_in_time(settings, api, &uri, opening, ahead)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(OpenError::TimedOut { host: host_of(&uri), within }),
    }
}

async fn open_in_time(
    settings: &Settings,
    api: &dyn SessionApi,
    uri: &Uri,
    opening: String,
    mut ahead: Ahead<'_>,
) -> Result<WebSocket, OpenError> {
    let headers = match ahead.during(api.sign_opening(uri)).await {
        Ok(headers) => headers,
        Err(error) => {
            warn!(%error, "the data channel is opened without signature");
            SignedHeaders::new()
        }
    };
    let signed = !headers.is_empty();
    let made = ahead.take(uri).await;
    let (mut inner, signature) = match upgrade(settings, uri, headers, made).await {
        Err(OpenError::Refused { status: 403, host, .. }) if signed => {
            debug!(host, "the signed opening was refused; trying once without signature");
            let retried = upgrade(settings, uri, SignedHeaders::new(), None).await;
            let inner = retried.map_err(|error| match error {
                OpenError::Refused { host, status, .. } => {
                    OpenError::Refused { host, status, signature_refused: true }
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
    sent.map_err(|error| OpenError::Broken { host: host_of(uri), cause: error.to_string() })?;
    Ok(WebSocket { inner, signature })
}

/// Asks for the WebSocket on the connection that is there already, and on a new one if that carries no answer.
async fn upgrade(
    settings: &Settings,
    uri: &Uri,
    headers: SignedHeaders,
    made: Option<Box<dyn Transport>>,
) -> Result<Inner, OpenError> {
    if let Some(transport) = made {
        match upgrade_on(transport, uri, headers.clone()).await {
            Err(OpenError::Broken { cause, .. }) => {
                debug!(cause, "the connection made ahead is of no use");
            }
            outcome => return outcome,
        }
    }
    let transport = dial::connect(uri, settings).await?;
    upgrade_on(transport, uri, headers).await
}

async fn upgrade_on(
    transport: Box<dyn Transport>,
    uri: &Uri,
    headers: SignedHeaders,
) -> Result<Inner, OpenError> {
    let host = || host_of(uri);
    let broken = |cause: String| OpenError::Broken { host: host(), cause };
    let request = request(uri, headers).map_err(|error| broken(error.to_string()))?;
    match client_async_with_config(request, transport, Some(config())).await {
        Ok((inner, _)) => Ok(inner),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status().as_u16();
            Err(OpenError::Refused { host: host(), status, signature_refused: false })
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
/// A ping of the service is answered by the next flush or read. After a close frame the stream ends,
/// as soon as the service has closed the connection.
pub struct WebSocket {
    inner: Inner,
    signature: OpeningSignature,
}

/// What travels on a [`WebSocket`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Frame {
    /// A message of the data channel: sent as binary, taken as binary or text.
    Message(Bytes),
    /// Asks the peer for a sign of life; at most 125 bytes.
    Ping(Bytes),
    /// The answer to a ping; those to the service's pings are sent without our doing.
    Pong(Bytes),
    /// The end.
    Close {
        /// 1000 is the normal one; 1005 if the peer gave none.
        code: u16,
        /// The peer's words, at most 123 bytes.
        reason: String,
    },
}

/// Why an open WebSocket is lost.
#[derive(Debug, thiserror::Error)]
#[error("the WebSocket broke: {0}")]
pub struct SocketError(tungstenite::Error);

impl WebSocket {
    /// How its opening was signed.
    pub fn signature(&self) -> OpeningSignature {
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
            // Never read, only written.
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

/// For an opening as a whole. The official plugin dials for 45 s; a token is good for seconds only.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A close frame without status (RFC 6455, section 7.1.5).
const NO_STATUS: u16 = 1005;

/// Read from the connection at once, in bytes.
const READ_BUFFER: usize = 32 * 1024;

/// Collected before the connection is written to without a flush, in bytes.
const WRITE_BUFFER: usize = 32 * 1024;

/// Kept for a connection that takes nothing, in bytes: the sink is not ready long before.
const MAX_WRITE_BUFFER: usize = 1024 * 1024;

/// Largest message that is taken, in bytes. Agents send 1,024 bytes of payload; AWS gives no limit.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests;
