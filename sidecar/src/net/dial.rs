//! Connections to AWS: TCP to both address families, through the proxy where one is set, with TLS.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::Uri;
use runner_protocol::ErrorCode;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::sleep,
};
use tracing::debug;

use super::{
    proxy::{Proxy, ProxyRoute, TunnelError, unbracketed},
    tls::{CERTIFICATE_HINT, RootCertificates, certificate_error},
};
use crate::runtime::failure::ToFailure;

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
    #[error("`{host}` cannot be reached: {cause}")]
    Unreachable {
        /// The host, or the proxy if that was not reached.
        host: String,
        /// From the operating system or the TLS library.
        cause: String,
    },
    #[error("the proxy `{host}` does not open a tunnel: {cause}")]
    Proxy {
        host: String,
        #[source]
        cause: TunnelError,
    },
    #[error("the certificate of `{host}` is not accepted: {reason}")]
    Untrusted { host: String, reason: String },
}

impl ConnectError {
    /// Whether the same attempt may succeed later.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Proxy { .. } => true,
            Self::Untrusted { .. } => false,
        }
    }
}

impl ToFailure for ConnectError {
    fn code(&self) -> ErrorCode {
        ErrorCode::AwsUnreachable
    }

    fn hint(&self) -> String {
        match self {
            Self::Unreachable { host, .. } => unreachable_hint(host),
            Self::Proxy { cause: TunnelError::Refused(407), .. } => {
                "put the proxy's user and password into `HTTPS_PROXY`".to_owned()
            }
            Self::Proxy { .. } => {
                "let the proxy of `HTTPS_PROXY` pass CONNECT to the `ssmmessages` host, or \
                                   except that host in `NO_PROXY`"
                    .to_owned()
            }
            Self::Untrusted { .. } => CERTIFICATE_HINT.to_owned(),
        }
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
    /// Connects to the host of `uri`, with TLS where its scheme is `wss`. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub(crate) async fn connect(&self, uri: &Uri) -> Result<Box<dyn Transport>, ConnectError> {
        let tls = uri.scheme_str() == Some("wss");
        let host = uri.host().unwrap_or_default();
        let (first, port, route) = self.first_hop(uri);
        let stream = self.dial.dial(uri, &first, port).await;
        let stream = stream
            .map_err(|error| ConnectError::Unreachable { host: first, cause: error.to_string() })?;
        let Some(route) = route else {
            return if tls { self.with_tls(stream, host).await } else { Ok(stream) };
        };
        debug!(proxy = route.host, "connecting through the proxy");
        let mut stream = if route.tls { self.with_tls(stream, &route.host).await? } else { stream };
        route
            .open_tunnel(&mut stream, host, port_of(uri))
            .await
            .map_err(|cause| ConnectError::Proxy { host: route.host.clone(), cause })?;
        self.with_tls(stream, host).await
    }

    /// Returns host and port of the first hop to `uri`, with the route through the proxy if that hop is the proxy.
    pub(crate) fn first_hop(&self, uri: &Uri) -> (String, u16, Option<ProxyRoute>) {
        let tls = uri.scheme_str() == Some("wss");
        let host = uri.host().unwrap_or_default();
        match if tls { self.proxy.route_for(host) } else { None } {
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
        let unreachable =
            |cause: String| ConnectError::Unreachable { host: host.to_owned(), cause };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| unreachable(error.to_string()))?;
        match self.roots.connector().connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                Err(match inner.and_then(certificate_error) {
                    Some(reason) => ConnectError::Untrusted { host: host.to_owned(), reason },
                    None => unreachable(error.to_string()),
                })
            }
        }
    }
}

fn port_of(uri: &Uri) -> u16 {
    let default = if uri.scheme_str() == Some("wss") { 443 } else { 80 };
    uri.port_u16().unwrap_or(default)
}

/// Connects to the address of `host` that answers first. Cancel-safe.
pub(crate) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await?;
    let stream = race(alternate(addresses.collect())).await?;
    // Acknowledgements are small and must not wait for more to send.
    stream.set_nodelay(true)?;
    Ok(stream)
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
