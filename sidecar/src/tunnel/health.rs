//! The HTTP endpoint for probes and for metrics: `/livez`, `/readyz`, `/metrics`.
//!
//! It answers from memory alone: no probe touches the session or the target, however often it comes. Nothing
//! that it says is secret or names a customer, since kubelets and collectors ask from outside the pod.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{runtime::shutdown::Shutdown, tunnel::metrics::Figures};

/// The endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes")]
pub struct HealthError {
    address: SocketAddr,
    #[source]
    cause: io::Error,
}

/// Listens at `address`.
///
/// # Errors
///
/// [`HealthError`] when the address cannot be had.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, HealthError> {
    let refused = |cause| HealthError { address, cause };
    let listener = std::net::TcpListener::bind(address).map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    info!(address = %bound, "health endpoint");
    Ok(listener)
}

/// Serves `figures` at `listener`, one of [`bind`], until the process stops; nothing where there is none.
///
/// # Errors
///
/// When it cannot be watched.
pub fn start(
    listener: Option<std::net::TcpListener>,
    figures: Figures,
    shutdown: &Shutdown,
) -> io::Result<()> {
    let Some(listener) = listener else { return Ok(()) };
    let listener = TcpListener::from_std(listener)?;
    let tasks = shutdown.clone();
    shutdown.spawn(async move { serve(listener, figures, &tasks).await });
    Ok(())
}

async fn serve(listener: TcpListener, figures: Figures, shutdown: &Shutdown) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Acquired before accepting: whoever must wait does so in the listen queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a probe could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let figures = figures.clone();
        shutdown.spawn(async move {
            if timeout(LIFE, converse(stream, figures)).await.is_err() {
                debug!("a probe took too long");
            }
            drop(permit);
        });
    }
}

/// One request, one answer.
async fn converse(stream: TcpStream, figures: Figures) {
    let answer = service_fn(move |request| {
        let response = respond(&request, &figures);
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

fn respond<B>(request: &Request<B>, figures: &Figures) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        // Whoever gets this has been answered by the one loop that everything runs on.
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match figures.not_ready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => match figures.encode() {
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

/// From the connection to the end of the request's headers.
const HEADERS: Duration = Duration::from_secs(5);

/// From the connection to the end of the answer.
const LIFE: Duration = Duration::from_secs(10);

/// Longest request line and headers together, in bytes; hyper's smallest.
const MAX_REQUEST: usize = 8 * 1024;

/// Most header fields of a request.
const MAX_HEADERS: usize = 64;

/// Pause after a failed `accept`, which would otherwise fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
