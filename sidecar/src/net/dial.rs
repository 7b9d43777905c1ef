//! Connections to AWS: TCP to both address families, through the proxy where one is set, with TLS.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    thread,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::Uri;
use runner_protocol::ErrorCode;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    time::sleep,
};
use tracing::debug;

use super::{
    proxy::{Proxy, ProxyRoute, TunnelError, unbracketed},
    tls::{RootCertificates, UntrustedCertificate},
};
use crate::runtime::{failure::ToFailure, resources::MissingResource};

/// A connected byte stream.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Opens TCP connections. In the worker, the monitor opens them on request, and sends the sockets.
pub(crate) trait Dial: fmt::Debug + Send + Sync {
    /// Connects to `host`, the first hop towards `uri`. Cancel-safe.
    fn dial<'a>(
        &'a self,
        uri: &'a Uri,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Transport>>>;
}

/// Opens TCP connections from this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct;

impl Dial for Direct {
    fn dial<'a>(
        &'a self,
        _: &'a Uri,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let stream: Box<dyn Transport> = Box::new(connect_tcp(host, port).await?);
            Ok(stream)
        })
    }
}

/// Opens connections to URIs.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) roots: RootCertificates,
    pub(crate) proxy: Proxy,
    pub(crate) dial: Arc<dyn Dial>,
}

/// Why no connection was opened. Free of secrets.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{}`{host}` cannot be reached: {cause}", if *.is_proxy { "the proxy " } else { "" })]
    Unreachable {
        host: String,
        /// Whether that is the proxy.
        is_proxy: bool,
        /// From the operating system or the TLS library.
        cause: String,
    },
    #[error("the proxy `{host}` does not open a tunnel to `{destination}`")]
    Proxy {
        host: String,
        /// Host and port.
        destination: String,
        #[source]
        cause: TunnelError,
    },
    #[error("the certificate of `{host}` is not trusted: {cause}")]
    Untrusted { host: String, cause: UntrustedCertificate },
    #[error(transparent)]
    Resources(#[from] MissingResource),
}

impl ConnectError {
    /// Whether the same attempt may succeed later.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Resources(_) => true,
            Self::Proxy { cause, .. } => cause.is_transient(),
            Self::Untrusted { .. } => false,
        }
    }

    /// The hint, with `unreachable` for a host that does not answer.
    pub(crate) fn hint_or(&self, unreachable: impl FnOnce(&str) -> String) -> String {
        match self {
            Self::Unreachable { is_proxy: true, .. } => {
                "start the proxy, or correct its host and port in `HTTPS_PROXY`".to_owned()
            }
            Self::Unreachable { host, .. } => unreachable(host),
            Self::Proxy { destination, cause, .. } => cause.hint(destination),
            Self::Untrusted { cause, .. } => cause.hint(),
            Self::Resources(missing) => missing.hint(),
        }
    }
}

impl ToFailure for ConnectError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unreachable { .. } => ErrorCode::AwsUnreachable,
            Self::Proxy { cause, .. } if cause.is_transient() => ErrorCode::AwsUnreachable,
            Self::Proxy { .. } => ErrorCode::LocalProxy,
            Self::Untrusted { .. } => ErrorCode::AwsUntrusted,
            Self::Resources(missing) => missing.code(),
        }
    }

    fn hint(&self) -> String {
        self.hint_or(unreachable_hint)
    }
}

/// The hint for a stream `host` that does not answer.
pub(crate) fn unreachable_hint(host: &str) -> String {
    format!(
        "allow outgoing HTTPS to `{host}`, or name a proxy in `HTTPS_PROXY`; for a private endpoint \
         set `aws.stream_endpoint_url`"
    )
}

impl Connector {
    /// Connects to the host of `uri`, with TLS where its scheme is `wss` or `https`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub(crate) async fn connect(&self, uri: &Uri) -> Result<Box<dyn Transport>, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let (first, port, route) = self.first_hop(uri);
        let stream = self.dial.dial(uri, &first, port).await;
        let stream = stream.map_err(|error| match MissingResource::of(&error) {
            Some(missing) => missing.into(),
            None => ConnectError::Unreachable {
                host: first,
                is_proxy: route.is_some(),
                cause: error.to_string(),
            },
        })?;
        let Some(route) = route else {
            return if is_tls(uri) { self.with_tls(stream, host).await } else { Ok(stream) };
        };
        debug!(proxy = route.host, "connecting through the proxy");
        let port = port_of(uri);
        let refused = |cause| ConnectError::Proxy {
            host: route.host.clone(),
            destination: format!("{host}:{port}"),
            cause,
        };
        let mut stream = if route.tls {
            self.handshake(stream, &route.host).await.map_err(|error| match error {
                TlsError::NotTls => refused(TunnelError::NotTls),
                other => other.of_host(&route.host, true),
            })?
        } else {
            stream
        };
        route.open_tunnel(&mut stream, host, port).await.map_err(refused)?;
        self.with_tls(stream, host).await
    }

    /// Returns host and port of the first hop to `uri`, with the route through the proxy if that hop is the proxy.
    pub(crate) fn first_hop(&self, uri: &Uri) -> (String, u16, Option<ProxyRoute>) {
        let host = uri.host().unwrap_or_default();
        match if is_tls(uri) { self.proxy.route_for(host) } else { None } {
            Some(route) => (route.host.clone(), route.port, Some(route)),
            None => (unbracketed(host).to_owned(), port_of(uri), None),
        }
    }

    async fn with_tls(
        &self,
        stream: Box<dyn Transport>,
        host: &str,
    ) -> Result<Box<dyn Transport>, ConnectError> {
        let host = unbracketed(host);
        self.handshake(stream, host).await.map_err(|error| error.of_host(host, false))
    }

    async fn handshake(
        &self,
        stream: Box<dyn Transport>,
        host: &str,
    ) -> Result<Box<dyn Transport>, TlsError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| TlsError::Other(error.to_string()))?;
        match self.roots.connector().connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                Err(match inner {
                    Some(rustls::Error::InvalidMessage(_)) => TlsError::NotTls,
                    Some(inner) if let Some(cause) = UntrustedCertificate::of(inner) => {
                        TlsError::Untrusted(cause)
                    }
                    _ => TlsError::Other(error.to_string()),
                })
            }
        }
    }
}

/// Why a TLS handshake failed.
enum TlsError {
    /// What answers does not speak TLS.
    NotTls,
    Untrusted(UntrustedCertificate),
    Other(String),
}

impl TlsError {
    fn of_host(self, host: &str, is_proxy: bool) -> ConnectError {
        let host = host.to_owned();
        let cause = match self {
            Self::Untrusted(cause) => return ConnectError::Untrusted { host, cause },
            Self::NotTls => "what answers there does not speak TLS".to_owned(),
            Self::Other(cause) => cause,
        };
        ConnectError::Unreachable { host, is_proxy, cause }
    }
}

fn is_tls(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("wss" | "https"))
}

fn port_of(uri: &Uri) -> u16 {
    let default = if is_tls(uri) { 443 } else { 80 };
    uri.port_u16().unwrap_or(default)
}

/// Connects to the address of `host` that answers first. Cancel-safe.
pub(crate) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = race(alternate(look_up(host, port).await?)).await?;
    // Acknowledgements are small and must not wait for more to send.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Looks up the addresses of `host` on a thread of its own: tokio's look-up panics where the host gives no thread.
/// Cancel-safe; the thread ends by itself.
async fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = oneshot::channel();
    let host = host.to_owned();
    let look_up = move || {
        let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // Nobody waits for it if the connection is not wanted any more.
        drop(sender.send(found));
    };
    let thread = thread::Builder::new().name("lookup".to_owned()).spawn(look_up);
    thread.map_err(|error| MissingResource::thread(&error))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the look-up ended")))
}

/// Sorts addresses so that the families alternate, beginning with the family of the resolver's first address
/// (RFC 8305, section 4).
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut sorted = Vec::new();
    for address in first {
        sorted.push(address);
        sorted.extend(second.next());
    }
    sorted.extend(second);
    sorted
}

/// Connects to the address that answers first. The next one is tried when one fails, or has not answered within
/// [`STAGGER`].
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut addresses = addresses.into_iter();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = addresses.next();
        let more = next.is_some();
        attempts.extend(next.map(TcpStream::connect));
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = sleep(STAGGER), if more => (),
        }
    }
}

/// Time for an address to answer before the next one is tried beside it (RFC 8305, section 8).
const STAGGER: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[test]
    fn address_families_alternate() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|address| address.parse().unwrap()).collect()
        };
        let sorted = alternate(parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]));
        assert_eq!(sorted, parse(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]));
        let sorted = alternate(parse(&["1.1.1.1:1", "[::1]:1", "[::2]:1"]));
        assert_eq!(sorted, parse(&["1.1.1.1:1", "[::1]:1", "[::2]:1"]));
        assert_eq!(alternate(Vec::new()), []);
    }

    #[tokio::test]
    async fn after_an_address_that_refuses_the_next_is_tried() {
        // Bound but not listening.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refusing = silent.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let stream = race(vec![refusing, refusing, open]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        let error = race(vec![refusing, refusing]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(race(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
