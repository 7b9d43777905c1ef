//! The way out through an HTTP proxy: which connections take it, and the tunnel through it.
//!
//! The same rules hold for the SDK's calls and for the WebSocket: `HTTPS_PROXY`, else `ALL_PROXY`, except
//! for the hosts of `NO_PROXY` and for loopback. Plain `http` never takes a proxy: it is loopback here,
//! or a credential service of the host.

use std::{io, sync::Arc};

use aws_smithy_http_client::proxy::ProxyConfig;
use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::warn;

/// The proxy of this process, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Proxy {
    /// With the credentials in it, so never shown.
    setting: Option<Setting>,
}

#[derive(Clone)]
struct Setting {
    url: String,
    exceptions: String,
    matcher: Arc<Matcher>,
}

/// A setting of `HTTPS_PROXY` that cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the proxy setting is not the URL of an HTTP proxy")]
pub struct InvalidProxy;

impl InvalidProxy {
    /// What to do about it.
    pub const fn hint(self) -> &'static str {
        "set `HTTPS_PROXY` to `http://[user:password@]host:port` (or `https://…`), or unset it; other \
         kinds of proxy, such as SOCKS, are not supported"
    }
}

impl Proxy {
    /// Reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or their lower-case forms.
    ///
    /// An `ALL_PROXY` of another kind, as set for programs that speak SOCKS, is passed over with a warning.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] for an `HTTPS_PROXY` that is anything but an HTTP proxy.
    pub fn from_env() -> Result<Self, InvalidProxy> {
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
            warn!("`ALL_PROXY` is no HTTP proxy and not used; set `HTTPS_PROXY` if one is needed");
            Self::new(None, None)
        })
    }

    /// Takes the values of `HTTPS_PROXY` and `NO_PROXY`.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] for anything but an HTTP proxy.
    pub fn new(url: Option<&str>, exceptions: Option<&str>) -> Result<Self, InvalidProxy> {
        let Some(url) = url else { return Ok(Self::default()) };
        // A setting without scheme means plain HTTP, as in curl.
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        ProxyConfig::https(url.as_str()).map_err(|_| InvalidProxy)?;
        let exceptions = match exceptions {
            Some(exceptions) => format!("{exceptions},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let matcher = Matcher::builder().https(url.as_str()).no(exceptions.as_str()).build().into();
        Ok(Self { setting: Some(Setting { url, exceptions, matcher }) })
    }

    /// For the SDK's HTTP client.
    pub fn sdk_config(&self) -> ProxyConfig {
        let Some(setting) = &self.setting else { return ProxyConfig::disabled() };
        match ProxyConfig::https(setting.url.as_str()) {
            Ok(config) => config.no_proxy(&setting.exceptions),
            Err(_) => ProxyConfig::disabled(), // was checked in `new`
        }
    }

    /// The proxy that a TLS connection to `host` has to take, `None` for the direct way.
    pub(crate) fn towards(&self, host: &str) -> Option<Via> {
        let setting = self.setting.as_ref()?;
        let destination = Uri::builder().scheme("https").authority(host).path_and_query("/");
        let intercept = setting.matcher.intercept(&destination.build().ok()?)?;
        let uri = intercept.uri();
        let tls = uri.scheme_str() == Some("https");
        Some(Via {
            tls,
            host: bare_host(uri.host()?).to_owned(),
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

/// A proxy on the way to a host.
#[derive(Clone, Debug)]
pub(crate) struct Via {
    /// Whether the proxy itself is spoken to over TLS.
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Marked sensitive by who makes it, so not shown by `Debug`.
    authorization: Option<HeaderValue>,
}

/// Why the proxy did not open the tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TunnelError {
    /// It answered something other than 2xx.
    #[error("the proxy answered {0}")]
    Refused(u16),
    /// What it answered is not HTTP.
    #[error("the proxy's answer is not HTTP")]
    NotHttp,
    /// The connection to it broke.
    #[error("the connection to the proxy broke")]
    Io(#[source] Arc<io::Error>),
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl Via {
    /// Asks the proxy for a tunnel to `host:port`; afterwards `stream` leads there.
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

/// Reads up to the empty line and not a byte further: what follows belongs to the tunnel.
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
pub(crate) fn bare_host(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether a connection to `host`, as it stands in a URI, stays on this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = bare_host(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Never through a proxy, which would look for it on its own machine.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Longest answer to CONNECT that is read; such answers have a few hundred bytes.
const MAX_HEAD: usize = 8 * 1024;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    fn via(url: &str, exceptions: Option<&str>, host: &str) -> Option<String> {
        let via = Proxy::new(Some(url), exceptions).unwrap().towards(host)?;
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
        let shown = format!("{proxy:?} {:?}", proxy.towards("a.example"));
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
        assert_eq!(proxy.towards("a.example").unwrap().host, "proxy.example");
        assert!(proxy.towards("excepted.example").is_none());
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
            let via = Via { tls: false, host: String::new(), port: 0, authorization: None };
            let found = match via.open_tunnel(&mut near, "a.example", 443).await {
                Ok(()) => "ok".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{answer:?}");
        }
    }
}
