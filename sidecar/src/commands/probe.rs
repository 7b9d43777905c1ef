//! `probe URL`: asks a health endpoint once, for exec probes in an image without shell.

use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime, time::timeout};

/// Why a probe has failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not `http://host[:port]/path`.
    #[error("`{0}` is no http URL with a host, such as http://127.0.0.1:9090/readyz")]
    Url(Uri),
    /// Nobody listens there, or what listens does not speak HTTP.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The time is used up.
    #[error("no answer within {} s", LIMIT.as_secs())]
    TimedOut,
    /// It says that it is not well.
    #[error("it answers {0}")]
    Unwell(StatusCode),
}

/// Succeeds when `url` answers 200 within 3 s. Blocks.
///
/// # Errors
///
/// [`ProbeError`].
pub fn run(url: &Uri) -> Result<(), ProbeError> {
    let host = url.host().filter(|host| !host.is_empty());
    let (Some("http"), Some(host)) = (url.scheme_str(), host) else {
        return Err(ProbeError::Url(url.clone()));
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ProbeError::Unanswered(error.to_string()))?;
    let status = runtime.block_on(async { timeout(LIMIT, ask(url, host)).await });
    // A name that is still being looked up must not hold up the exit.
    runtime.shutdown_background();
    match status.map_err(|_| ProbeError::TimedOut)?.map_err(ProbeError::Unanswered)? {
        StatusCode::OK => Ok(()),
        status => Err(ProbeError::Unwell(status)),
    }
}

async fn ask(url: &Uri, host: &str) -> Result<StatusCode, String> {
    let address = (host.trim_matches(['[', ']']), url.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = url.authority().map_or("", http::uri::Authority::as_str);
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    // Polled together: the connection carries what the request waits for, and may end with the answer in hand.
    let (response, _ended) =
        tokio::join!(async move { sender.send_request(request).await }, connection);
    response.map(|response| response.status()).map_err(|error| error.to_string())
}

/// For the whole probe. A kubelet's own limit is a second by default.
const LIMIT: Duration = Duration::from_secs(3);
