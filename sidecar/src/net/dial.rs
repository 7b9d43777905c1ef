//! The connection below the WebSocket: both address families, through the proxy if need be, with TLS.

use std::{fmt, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::Uri;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::sleep,
};
use tracing::debug;

use crate::{
    channel::websocket::{OpenError, Settings},
    net::{
        proxy::{Via, bare_host},
        tls::distrust,
    },
};

/// Any byte stream that leads to the service.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Makes TCP connections: where there are two processes, not the one that parses what comes over them.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects to `host`, the first on the way to the data channel at `uri`. Cancel-safe.
    fn dial<'a>(
        &'a self,
        uri: &'a Uri,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>>;
}

/// Connects by itself.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Dial for Direct {
    fn dial<'a>(
        &'a self,
        _: &'a Uri,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(connect_tcp(host, port))
    }
}

/// Host and port that a connection to `uri` is made to, and whether it is the proxy's.
pub(crate) fn first_hop(uri: &Uri, settings: &Settings) -> (String, u16, Option<Via>) {
    let tls = uri.scheme_str() == Some("wss");
    let host = uri.host().unwrap_or_default();
    match if tls { settings.proxy.towards(host) } else { None } {
        Some(via) => (via.host.clone(), via.port, Some(via)),
        None => (bare_host(host).to_owned(), port_of(uri), None),
    }
}

fn port_of(uri: &Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("wss") { 443 } else { 80 };
    uri.port_u16().unwrap_or(usual)
}

/// Connects to the host of `uri`, up to and with TLS where it is `wss`.
pub(crate) async fn connect(
    uri: &Uri,
    settings: &Settings,
) -> Result<Box<dyn Transport>, OpenError> {
    let tls = uri.scheme_str() == Some("wss");
    let host = uri.host().unwrap_or_default();
    let (first, port, via) = first_hop(uri, settings);
    let stream = settings.dial.dial(uri, &first, port).await;
    let stream =
        stream.map_err(|error| OpenError::Unreachable { host: first, cause: error.to_string() })?;
    let Some(via) = via else {
        return if tls { with_tls(stream, host, settings).await } else { Ok(Box::new(stream)) };
    };
    debug!(proxy = via.host, "going through the proxy");
    if via.tls {
        let stream = with_tls(stream, &via.host, settings).await?;
        through(&via, stream, host, port_of(uri), settings).await
    } else {
        through(&via, stream, host, port_of(uri), settings).await
    }
}

async fn through<S: Transport + 'static>(
    via: &Via,
    mut stream: S,
    host: &str,
    port: u16,
    settings: &Settings,
) -> Result<Box<dyn Transport>, OpenError> {
    via.open_tunnel(&mut stream, host, port)
        .await
        .map_err(|cause| OpenError::Proxy { host: via.host.clone(), cause })?;
    with_tls(stream, host, settings).await
}

async fn with_tls<S: Transport + 'static>(
    stream: S,
    host: &str,
    settings: &Settings,
) -> Result<Box<dyn Transport>, OpenError> {
    let host = bare_host(host);
    let unreachable = |cause: String| OpenError::Unreachable { host: host.to_owned(), cause };
    let name =
        ServerName::try_from(host.to_owned()).map_err(|error| unreachable(error.to_string()))?;
    match settings.trust.connector().connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            Err(match inner.and_then(distrust) {
                Some(reason) => OpenError::Untrusted { host: host.to_owned(), reason },
                None => unreachable(error.to_string()),
            })
        }
    }
}

/// Connects to whichever address of `host` answers first. Cancel-safe.
pub(crate) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await?;
    let stream = race(alternate(addresses.collect())).await?;
    // Acknowledgements are small and must not wait for more to send.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sorts addresses so that the families take turns, beginning with the resolver's first choice
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

/// Connects to whichever address answers first; the next one is tried when one fails, or has not answered
/// within [`STAGGER`].
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
    fn address_families_take_turns() {
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
    async fn an_address_that_refuses_does_not_keep_from_the_next() {
        // Bound, so that nobody else listens there, and silent itself.
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
