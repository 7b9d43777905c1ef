//! `probe URL`: one request to a health endpoint, for exec probes in an image without shell.

use std::{panic::resume_unwind, process::ExitCode, time::Duration};

use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::runtime::{executor, terminal};

/// Why a probe has failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// Not `http://host[:port]/path`.
    #[error("`{0}` is no http URL with a host, such as http://127.0.0.1:9090/readyz")]
    Url(Uri),
    /// Nothing listens there, or it does not speak HTTP.
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("no answer within {} s", LIMIT.as_secs())]
    TimedOut,
    /// A status other than 200.
    #[error("it answers {0}")]
    Status(StatusCode),
}

/// Runs the command of the command line: status 0 when `url` answers 200 within 3 s, else 1. Blocks.
pub fn command(url: &Uri) -> ExitCode {
    match probe(url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::print_line(&format!("ssm-sidecar probe: {url}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn probe(url: &Uri) -> Result<(), ProbeError> {
    let host = url.host().filter(|host| !host.is_empty());
    let (Some("http"), Some(host)) = (url.scheme_str(), host) else {
        return Err(ProbeError::Url(url.clone()));
    };
    let outcome = executor::block_on(async { timeout(LIMIT, ask(url, host)).await });
    let outcome = outcome.map_err(|error| ProbeError::NoAnswer(error.to_string()))?;
    let status = outcome.unwrap_or_else(|panic| resume_unwind(panic));
    match status.map_err(|_| ProbeError::TimedOut)?.map_err(ProbeError::NoAnswer)? {
        StatusCode::OK => Ok(()),
        status => Err(ProbeError::Status(status)),
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
    // Polled together: the response arrives on the connection, which may end with it.
    let (response, _ended) =
        tokio::join!(async move { sender.send_request(request).await }, connection);
    response.map(|response| response.status()).map_err(|error| error.to_string())
}

/// For the whole probe. A kubelet's own limit is a second by default.
const LIMIT: Duration = Duration::from_secs(3);
