//! The SDK's HTTP client, with the same connections as the WebSocket: root certificates, proxy, and errors.
//!
//! The SDK's own connector (seen with `aws-smithy-http-client` 1.5.2) leads through hyper-util's proxy tunnel, which
//! hides why a proxy refuses.

use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use aws_sdk_ssm::config::{
    HttpClient, RuntimeComponents, SharedHttpClient, timeout::TimeoutConfig,
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
};
use aws_smithy_types::body::SdkBody;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use tokio::time::timeout;
use tower_service::Service;

use crate::net::{
    dial::{ConnectError, Connector, Direct, Transport},
    proxy::Proxy,
    tls::RootCertificates,
};

/// Builds the client; opens no connection.
pub(super) fn client(roots: &RootCertificates, proxy: &Proxy) -> SharedHttpClient {
    let connector =
        Connector { roots: roots.clone(), proxy: proxy.clone(), dial: Arc::new(Direct) };
    SharedHttpClient::new(ConnectionPools { connector, pools: Mutex::default() })
}

/// The time limits of every call.
pub(super) fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build()
}

/// A pool of connections for each time limit that calls have for connecting: those of the services have one, those of
/// the instance metadata another.
#[derive(Debug)]
struct ConnectionPools {
    connector: Connector,
    pools: Mutex<HashMap<Duration, Pool>>,
}

type HyperClient = Client<ConnectInTime, SdkBody>;

#[derive(Clone)]
struct Pool(HyperClient);

impl HttpClient for ConnectionPools {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let within = settings.connect_timeout().unwrap_or(CONNECT);
        let mut pools = self.pools.lock();
        let pool = pools.entry(within).or_insert_with(|| {
            let connector = ConnectInTime { connector: self.connector.clone(), within };
            let mut builder = Client::builder(TokioExecutor::new());
            Pool(builder.pool_timer(TokioTimer::new()).build(connector))
        });
        let answer_within = settings.read_timeout();
        SharedHttpConnector::new(OneCall { pool: pool.clone(), answer_within })
    }
}

#[derive(Debug)]
struct OneCall {
    pool: Pool,
    /// Time until the head of the answer.
    answer_within: Option<Duration>,
}

impl HttpConnector for OneCall {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (Pool(client), within) = (self.pool.clone(), self.answer_within);
        HttpConnectorFuture::new(async move {
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let call = client.request(request);
            let outcome = match within {
                None => call.await,
                Some(within) => {
                    let late = |_| {
                        ConnectorError::timeout(io::Error::from(io::ErrorKind::TimedOut).into())
                    };
                    timeout(within, call).await.map_err(late)?
                }
            };
            let answer = outcome.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Pool(..)")
    }
}

/// Opens connections for a pool.
#[derive(Clone)]
struct ConnectInTime {
    connector: Connector,
    /// For TCP, proxy and TLS together.
    within: Duration,
}

impl Service<Uri> for ConnectInTime {
    type Response = ApiStream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<ApiStream, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { connector, within } = self.clone();
        Box::pin(async move {
            if let Ok(connected) = timeout(within, connector.connect(&uri)).await {
                return Ok(ApiStream(TokioIo::new(connected?)));
            }
            let (host, _, route) = connector.first_hop(&uri);
            let cause = format!("no connection within {} s", within.as_secs());
            Err(ConnectError::Unreachable { host, is_proxy: route.is_some(), cause }.into())
        })
    }
}

/// A connection in the form that hyper wants.
struct ApiStream(TokioIo<Box<dyn Transport>>);

impl Connection for ApiStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for ApiStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Time for TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);

/// Time for one call, from connecting to the last byte of the answer.
pub(super) const ATTEMPT: Duration = Duration::from_secs(20);
