//! The HTTP proxy: which connections use it, and the CONNECT tunnel through it.
//!
//! The same rules hold for the SDK's calls and for the WebSocket: `HTTPS_PROXY`, else `ALL_PROXY`, except for the
//! hosts of `NO_PROXY` and for loopback. Plain `http` never uses a proxy: here it is loopback, or the host's own
//! credential service.
//!
//! The SDK's calls go through hyper-util's `Tunnel`; the WebSocket's CONNECT is implemented here. `Tunnel` (seen with
//! hyper-util 0.1.21) hides the proxy's status, which the error and its hint name, takes only 200 for success, and
//! discards bytes of the tunnel that it has read together with the response.

use std::{io, sync::Arc};

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use runner_protocol::ErrorCode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::warn;

use crate::runtime::failure::ToFailure;

/// The proxy settings of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxy {
    setting: Option<Setting>,
}

#[derive(Clone)]
struct Setting {
    /// May hold the proxy's password: left out of `Debug`.
    url: String,
    exceptions: String,
    matcher: Arc<Matcher>,
}

/// `HTTPS_PROXY` is not the URL of an HTTP proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the proxy setting is not the URL of an HTTP proxy")]
pub(crate) struct InvalidProxy;

impl ToFailure for InvalidProxy {
    fn code(&self) -> ErrorCode {
        ErrorCode::AwsUnreachable
    }

    fn hint(&self) -> String {
        "set `HTTPS_PROXY` to `http://[user:password@]host:port` (or `https://…`), or unset it; other \
         kinds of proxy, such as SOCKS, are not supported"
            .to_owned()
    }
}

impl Proxy {
    /// Reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or their lower-case forms.
    ///
    /// An `ALL_PROXY` of another kind, such as SOCKS, is ignored with a warning.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] for an `HTTPS_PROXY` that is not an HTTP proxy.
    pub(crate) fn from_env() -> Result<Self, InvalidProxy> {
        let first = |names: [&str; 2]| {
            names
                .into_iter()
                .filter_map(|name| std::env::var(name).ok())
                .find(|value| !value.is_empty())
        };
        let exceptions = first(["NO_PROXY", "no_proxy"]);
        if let Some(url) = first(["HTTPS_PROXY", "https_proxy"]) {
            return Self::new(Some(&url), exceptions.as_deref());
        }
        let url = first(["ALL_PROXY", "all_proxy"]);
        Self::new(url.as_deref(), exceptions.as_deref()).or_else(|InvalidProxy| {
            warn!("`ALL_PROXY` is not an HTTP proxy and is ignored; set `HTTPS_PROXY` if one is needed");
            Self::new(None, None)
        })
    }

    /// Parses the values of `HTTPS_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] where `url` is not the URL of an HTTP proxy.
    pub(crate) fn new(url: Option<&str>, exceptions: Option<&str>) -> Result<Self, InvalidProxy> {
        let Some(url) = url else { return Ok(Self::default()) };
        // Without a scheme it is plain HTTP, as in curl.
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        if !is_http_url(&url) {
            return Err(InvalidProxy);
        }
        let exceptions = match exceptions {
            Some(exceptions) => format!("{exceptions},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let matcher = Matcher::builder().https(url.as_str()).no(exceptions.as_str()).build().into();
        Ok(Self { setting: Some(Setting { url, exceptions, matcher }) })
    }

    /// The proxy's URL, with its password, and the exceptions in the form of `NO_PROXY`; `None` without a proxy.
    pub(crate) fn url_and_exceptions(&self) -> Option<(&str, &str)> {
        self.setting.as_ref().map(|setting| (&*setting.url, &*setting.exceptions))
    }

    /// The proxy for a TLS connection to `host`; `None` for a direct connection.
    pub(crate) fn route_for(&self, host: &str) -> Option<ProxyRoute> {
        let setting = self.setting.as_ref()?;
        let destination = Uri::builder().scheme("https").authority(host).path_and_query("/");
        let intercept = setting.matcher.intercept(&destination.build().ok()?)?;
        let uri = intercept.uri();
        let tls = uri.scheme_str() == Some("https");
        Some(ProxyRoute {
            tls,
            host: unbracketed(uri.host()?).to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authorization: intercept.basic_auth().cloned(),
        })
    }
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Setting")
            .field("exceptions", &self.exceptions)
            .finish_non_exhaustive()
    }
}

/// The proxy that one connection goes through.
#[derive(Clone, Debug)]
pub(crate) struct ProxyRoute {
    /// Whether the connection to the proxy itself uses TLS.
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Marked as sensitive, so that `Debug` does not show it.
    authorization: Option<HeaderValue>,
}

/// Why the proxy did not open a tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// A status other than 2xx.
    #[error("the proxy answered {0}")]
    Refused(u16),
    /// The answer is not HTTP, or its head is longer than [`MAX_HEAD`].
    #[error("the proxy's answer is not HTTP")]
    NotHttp,
    #[error("the connection to the proxy broke")]
    Io(#[source] Arc<io::Error>),
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl ProxyRoute {
    /// Sends CONNECT for `host:port` and reads the proxy's answer; then `stream` carries the connection to `host`. Not
    /// cancel-safe: afterwards `stream` cannot be used.
    pub(crate) async fn open_tunnel<S>(
        &self,
        stream: &mut S,
        host: &str,
        port: u16,
    ) -> Result<(), TunnelError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut request =
            format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await?;
        stream.flush().await?;
        let head = read_head(stream).await?;
        match status(&head) {
            Some(200..=299) => Ok(()),
            Some(status) => Err(TunnelError::Refused(status)),
            None => Err(TunnelError::NotHttp),
        }
    }
}

/// Reads byte by byte up to the empty line, and not a byte further: what follows belongs to the tunnel.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Vec<u8>, TunnelError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(TunnelError::NotHttp);
        }
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// Whether `url` is `http://` or `https://` with a host.
fn is_http_url(url: &str) -> bool {
    url.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
    })
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|&byte| byte == b'\r').next()?).ok()?;
    let (version, rest) = line.split_once(' ')?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    let digits = rest.get(..3)?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

/// The host of a URI without the brackets of an IPv6 address.
pub(crate) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether a connection to `host`, as it stands in a URI, stays on this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = unbracketed(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Exceptions that always hold: a proxy would connect to its own loopback.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Longest answer to CONNECT, in bytes; usual ones have a few hundred.
const MAX_HEAD: usize = 8 * 1024;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    fn via(url: &str, exceptions: Option<&str>, host: &str) -> Option<String> {
        let via = Proxy::new(Some(url), exceptions).unwrap().route_for(host)?;
        Some(format!("{}:{}{}", via.host, via.port, if via.tls { " tls" } else { "" }))
    }

    #[test]
    fn hosts_take_the_proxy_unless_excepted() {
        let host = "ssmmessages.ap-northeast-1.amazonaws.com";
        let proxy = "http://proxy.example:3128";
        for (exceptions, expected) in [
            (None, true),
            (Some("example.com, localhost"), true),
            (Some("amazonaws.com"), false),
            (Some(".amazonaws.com"), false),
            (Some("other,.ap-northeast-1.amazonaws.com"), false),
            (Some("*"), false),
            (Some("zonaws.com"), true),
        ] {
            assert_eq!(via(proxy, exceptions, host).is_some(), expected, "NO_PROXY={exceptions:?}");
        }
    }

    #[test]
    fn loopback_never_takes_the_proxy() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "localhost:8443"] {
            assert_eq!(via("http://proxy.example:3128", None, host), None, "{host}");
        }
    }

    #[test]
    fn proxy_urls_are_understood() {
        for (url, expected) in [
            ("http://proxy.example:3128", "proxy.example:3128"),
            ("proxy.example:3128", "proxy.example:3128"),
            ("http://user:p%40ss@proxy.example", "proxy.example:80"),
            ("https://proxy.example", "proxy.example:443 tls"),
            ("http://[2001:db8::7]:8080", "2001:db8::7:8080"),
        ] {
            assert_eq!(via(url, None, "a.example").as_deref(), Some(expected), "{url}");
        }
        for url in ["socks5://proxy.example:1080", "http://", "ftp://proxy.example", "http://a b"] {
            assert_eq!(Proxy::new(Some(url), None).err(), Some(InvalidProxy), "{url}");
        }
    }

    #[test]
    fn the_proxys_password_is_not_shown() {
        let proxy = Proxy::new(Some("http://user:hunter2@proxy.example:3128"), None).unwrap();
        let shown = format!("{proxy:?} {:?}", proxy.route_for("a.example"));
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
        // base64 of user:hunter2
        assert!(!shown.contains("dXNlcjpodW50ZXIy"), "{shown}");
    }

    #[test]
    fn environment_is_read_in_the_usual_order() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "net::proxy::tests::from_environment", "--ignored"])
            .env("HTTPS_PROXY", "http://proxy.example:1")
            .env("https_proxy", "http://lower.example:2")
            .env("ALL_PROXY", "socks5://socks.example:3")
            .env("HTTP_PROXY", "http://plain.example:4")
            .env("NO_PROXY", "")
            .env("no_proxy", "excepted.example");
        let output = child.output().unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
    }

    #[test]
    #[ignore = "started by the test above, in an environment of its own"]
    fn from_environment() {
        let proxy = Proxy::from_env().unwrap();
        assert_eq!(proxy.route_for("a.example").unwrap().host, "proxy.example");
        assert!(proxy.route_for("excepted.example").is_none());
    }

    #[tokio::test]
    async fn answers_of_a_proxy_are_judged_by_their_status() {
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n", "ok"),
            ("HTTP/1.0 200\r\n\r\n", "ok"),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy answered 407"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the proxy's answer is not HTTP"),
            ("HTTP/1.1 2\r\n\r\n", "the proxy's answer is not HTTP"),
            ("HTTP/1.1 200 Connection est", "the connection to the proxy broke"),
        ] {
            let (mut near, mut far) = tokio::io::duplex(1024);
            far.write_all(answer.as_bytes()).await.unwrap();
            far.shutdown().await.unwrap();
            let via = ProxyRoute { tls: false, host: String::new(), port: 0, authorization: None };
            let found = match via.open_tunnel(&mut near, "a.example", 443).await {
                Ok(()) => "ok".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{answer:?}");
        }
    }
}
