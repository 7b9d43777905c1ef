//! The HTTP endpoint for probes and for metrics: `/livez`, `/readyz`, `/metrics`.
//!
//! Answers come from memory: no probe touches the session or the target. They hold no secret and no customer's name,
//! since kubelets and collectors connect from outside the pod.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use runner_protocol::ErrorCode;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tracing::{debug, info};

use super::metrics::Metrics;
use crate::{
    net::accept::Acceptor,
    runtime::{failure::ToFailure, shutdown::Shutdown},
};

/// The endpoint's address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes")]
pub(crate) struct HealthError {
    address: SocketAddr,
    #[source]
    cause: io::Error,
}

impl ToFailure for HealthError {
    fn code(&self) -> ErrorCode {
        ErrorCode::LocalListen
    }

    fn hint(&self) -> String {
        "set `health.listen` to an address of this host and a free port".to_owned()
    }
}

/// Binds `address`.
///
/// # Errors
///
/// [`HealthError`].
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, HealthError> {
    let refused = |cause| HealthError { address, cause };
    let listener = std::net::TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    info!(address = %bound, "health endpoint");
    Ok(listener)
}

/// Serves `metrics` on `listener`, from [`bind`], until the process stops. Does nothing without a listener.
///
/// # Errors
///
/// When the listener cannot be registered with the runtime.
pub(crate) fn start(
    listener: Option<std::net::TcpListener>,
    metrics: Metrics,
    shutdown: &Shutdown,
) -> io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let listener = TcpListener::from_std(listener)?;
    let tasks = shutdown.clone();
    shutdown.spawn(async move { serve(listener, metrics, &tasks).await });
    Ok(())
}

async fn serve(listener: TcpListener, metrics: Metrics, shutdown: &Shutdown) {
    let acceptor = Acceptor::new(listener, MAX_CONNECTIONS);
    loop {
        let (stream, _, permit) = acceptor.accept().await;
        let metrics = metrics.clone();
        shutdown.spawn(async move {
            if timeout(CONNECTION, serve_request(stream, metrics)).await.is_err() {
                debug!("a probe took too long");
            }
            drop(permit);
        });
    }
}

/// Answers one request.
async fn serve_request(stream: TcpStream, metrics: Metrics) {
    let answer = service_fn(move |request| {
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_REQUEST)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        debug!(%error, "a probe was not answered");
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        // The tunnel runs on the same thread: an answer proves that this thread is not blocked.
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match metrics.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => match metrics.encode() {
            Ok(page) => {
                let mut response = text(StatusCode::OK, page);
                let open_metrics = HeaderValue::from_static(OPEN_METRICS);
                response.headers_mut().insert(header::CONTENT_TYPE, open_metrics);
                response
            }
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "no metrics\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "/livez, /readyz, /metrics\n"),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Media type of the `OpenMetrics` specification 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Probes served at once; a kubelet and a collector need one each.
const MAX_CONNECTIONS: usize = 16;

/// Time from the connection to the end of the request's headers.
const HEADERS: Duration = Duration::from_secs(5);

/// Time from the connection to the end of the answer.
const CONNECTION: Duration = Duration::from_secs(10);

/// Longest request line and headers together, in bytes; hyper's smallest.
const MAX_REQUEST: usize = 8 * 1024;

/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
