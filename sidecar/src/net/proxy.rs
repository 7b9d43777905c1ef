//! The HTTP proxy: which connections use it, and the CONNECT tunnel through it.
//!
//! The same rules hold for the SDK's calls and for the WebSocket: `HTTPS_PROXY`, else `ALL_PROXY`, except for the
//! hosts of `NO_PROXY` and for loopback. Plain `http` never uses a proxy: here it is loopback, or the host's own
//! credential service.
//!
//! CONNECT is implemented here ([`connect`]). hyper-util's `Tunnel` (seen with 0.1.21) hides the proxy's status, which
//! the error and its hint name, takes only 200 for success, and discards bytes of the tunnel that it has read together
//! with the response.

mod connect;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;
use runner_protocol::ErrorCode;
use tracing::warn;

use crate::runtime::failure::ToFailure;

pub(crate) use connect::TunnelError;

/// The proxy settings of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxy {
    setting: Option<Setting>,
}

#[derive(Clone)]
struct Setting {
    exceptions: String,
    /// May hold the proxy's password: left out of `Debug`.
    matcher: Arc<Matcher>,
}

/// What is wrong with the proxy setting. Its value is never quoted: it may hold a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InvalidProxy {
    /// Another scheme than `http` and `https`.
    #[error("the proxy setting is not the URL of an HTTP proxy")]
    Kind,
    #[error("the proxy setting has more than one `@`")]
    SecondAt,
    /// The `@` stands behind a `/`, `?` or `#`, which end the part with user and host.
    #[error("the proxy setting has a `/`, `?` or `#` before its `@`")]
    Unescaped,
    #[error("the proxy setting is not a URL with a host, and a port from 1 to 65535 if it has one")]
    Malformed,
}

impl ToFailure for InvalidProxy {
    fn code(&self) -> ErrorCode {
        ErrorCode::LocalProxy
    }

    fn hint(&self) -> String {
        let form = "`http://[user:password@]host:port` (or `https://…`)";
        match self {
            Self::Kind => format!(
                "set `HTTPS_PROXY` to {form}, or unset it; other kinds of proxy, such as SOCKS, are not supported"
            ),
            Self::SecondAt => {
                "in `HTTPS_PROXY`, write an `@` of the proxy's user or password as `%40`".to_owned()
            }
            Self::Unescaped => {
                "in `HTTPS_PROXY`, write `/` of the proxy's user or password as `%2F`, `?` as `%3F`, `#` as `%23`"
                    .to_owned()
            }
            Self::Malformed => format!("set `HTTPS_PROXY` to {form}, or unset it"),
        }
    }
}

impl Proxy {
    /// Reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or their lower-case forms.
    ///
    /// An `ALL_PROXY` of another kind, such as SOCKS, is ignored with a warning.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] for an `HTTPS_PROXY` that is not an HTTP proxy, and for an `ALL_PROXY` that is damaged.
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
        Self::new(url.as_deref(), exceptions.as_deref()).or_else(|error| {
            if error != InvalidProxy::Kind {
                return Err(error);
            }
            warn!("`ALL_PROXY` is not an HTTP proxy and is ignored; set `HTTPS_PROXY` if one is needed");
            Ok(Self::default())
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
        check(&url)?;
        let exceptions = match exceptions {
            Some(exceptions) => format!("{exceptions},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let matcher = Matcher::builder().https(url.as_str()).no(exceptions.as_str()).build().into();
        Ok(Self { setting: Some(Setting { exceptions, matcher }) })
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

/// Checks that `url` is that of an HTTP proxy. The parsers below cut a URL with a character that is not escaped at a
/// wrong place, instead of refusing it.
fn check(url: &str) -> Result<(), InvalidProxy> {
    let (scheme, rest) = url.split_once("://").ok_or(InvalidProxy::Malformed)?;
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(InvalidProxy::Kind);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match rest.matches('@').count() {
        1 if path.contains('@') => return Err(InvalidProxy::Unescaped),
        0 | 1 => (),
        _ => return Err(InvalidProxy::SecondAt),
    }
    let host_and_port = authority.rsplit('@').next().unwrap_or_default();
    let behind_address = host_and_port.rsplit_once(']').map_or(host_and_port, |(_, rest)| rest);
    let port_fits = match behind_address.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().is_ok_and(|port| port > 0),
        None => true,
    };
    let parsed = url.parse::<Uri>().ok();
    let has_host = parsed.is_some_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    if port_fits && has_host { Ok(()) } else { Err(InvalidProxy::Malformed) }
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
        for (url, expected) in [
            ("socks5://proxy.example:1080", InvalidProxy::Kind),
            ("ftp://proxy.example", InvalidProxy::Kind),
            ("http://", InvalidProxy::Malformed),
            ("http://a b", InvalidProxy::Malformed),
            ("http://proxy.example:99999", InvalidProxy::Malformed),
            ("http://proxy.example:port", InvalidProxy::Malformed),
            ("http://user:p@ss@proxy.example:3128", InvalidProxy::SecondAt),
            ("user@corp.example:pass@proxy.example", InvalidProxy::SecondAt),
            ("http://user:p/ss@proxy.example:3128", InvalidProxy::Unescaped),
            ("http://user:p#ss@proxy.example:3128", InvalidProxy::Unescaped),
        ] {
            let found = Proxy::new(Some(url), None).err();
            assert_eq!(found, Some(expected), "{url}");
            let shown = format!("{expected} {}", expected.hint());
            assert!(!shown.contains("ss@proxy"), "{shown}");
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
}
