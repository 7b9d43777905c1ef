//! CONNECT: asks a proxy for a tunnel, and reads why it refuses.

use std::{fmt, io, sync::Arc};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::ProxyRoute;

/// Why the proxy did not open a tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// A status other than 2xx.
    #[error("the proxy answered {0}")]
    Refused(Refusal),
    /// The answer is not HTTP, or its head is longer than [`MAX_HEAD`].
    #[error("what answers there is no HTTP proxy{}", .0.guess())]
    NotHttp(Speaks),
    /// The setting says `https://`, but what answers does not speak TLS.
    #[error("what answers there does not speak TLS")]
    NotTls,
    #[error("the connection to the proxy broke")]
    Io(#[source] Arc<io::Error>),
}

/// A proxy's answer other than 2xx.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    status: u16,
    /// The words behind the status, shortened, without control characters; may be empty.
    reason: String,
    /// The ways to log in that `Proxy-Authenticate` names, such as `Basic` and `NTLM`.
    offers: Vec<String>,
    /// Whether a user and a password were sent.
    logged_in: bool,
}

/// What a peer that is no HTTP proxy seems to speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Speaks {
    Tls,
    Unknown,
}

impl TunnelError {
    /// Whether the same attempt may succeed later.
    pub(crate) const fn is_transient(&self) -> bool {
        match self {
            Self::Refused(refusal) => matches!(refusal.status, 408 | 425 | 429 | 500..),
            Self::NotHttp(_) | Self::NotTls => false,
            Self::Io(_) => true,
        }
    }

    /// `destination`: host and port that the tunnel was to lead to.
    pub(crate) fn hint(&self, destination: &str) -> String {
        let except = "or except that host in `NO_PROXY`";
        match self {
            Self::Refused(refusal) if refusal.status == 407 => refusal.login_hint(except),
            Self::Refused(refusal) if refusal.status >= 500 => format!(
                "try again; look into the proxy of `HTTPS_PROXY`: it must reach `{destination}`"
            ),
            Self::Refused(_) => {
                format!("let the proxy of `HTTPS_PROXY` pass CONNECT to `{destination}`, {except}")
            }
            Self::NotHttp(Speaks::Tls) => {
                "write `https://` in place of `http://` in `HTTPS_PROXY`: the proxy expects TLS".to_owned()
            }
            Self::NotHttp(Speaks::Unknown) => {
                "set `HTTPS_PROXY` to the host and port of an HTTP proxy; other kinds, such as SOCKS, are not \
                 supported"
                    .to_owned()
            }
            Self::NotTls => {
                "write `http://` in place of `https://` in `HTTPS_PROXY`, if the proxy does not expect TLS".to_owned()
            }
            Self::Io(_) => format!(
                "look into the proxy of `HTTPS_PROXY`: it closed the connection without an answer; it must be an HTTP \
                 proxy that passes CONNECT to `{destination}`"
            ),
        }
    }
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl Refusal {
    /// `head`: the status line and the headers of an answer with this status.
    fn new(status: u16, head: &[u8], logged_in: bool) -> Self {
        let head = String::from_utf8_lossy(head);
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        let reason = first.splitn(3, ' ').nth(2).unwrap_or_default();
        let mut offers = Vec::new();
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            if !name.eq_ignore_ascii_case("proxy-authenticate") {
                continue;
            }
            // Parameters are `name=value`; what stands alone, or before one behind a blank, is a scheme.
            for part in value.split(',') {
                let scheme = part.split_whitespace().next().unwrap_or_default();
                let is_scheme = !scheme.is_empty()
                    && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
                if is_scheme
                    && offers.len() < MAX_OFFERS
                    && !offers.iter().any(|offer| offer == scheme)
                {
                    offers.push(shortened(scheme));
                }
            }
        }
        Self { status, reason: shortened(reason), offers, logged_in }
    }

    fn login_hint(&self, except: &str) -> String {
        let basic = self.offers.is_empty()
            || self.offers.iter().any(|offer| offer.eq_ignore_ascii_case("basic"));
        match (basic, self.logged_in) {
            (true, false) => {
                "put the proxy's user and password into `HTTPS_PROXY`: `http://user:password@host:port`".to_owned()
            }
            (true, true) => {
                "correct user and password in `HTTPS_PROXY`; write special characters in them as `%` and two \
                 hexadecimal digits (`@` is `%40`)"
                    .to_owned()
            }
            (false, _) => format!(
                "let the proxy of `HTTPS_PROXY` offer `Basic`, the only login that the sidecar knows, let it pass this \
                 host without a login, {except}"
            ),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, reason, offers, .. } = self;
        match reason.as_str() {
            "" => write!(formatter, "{status}")?,
            reason => write!(formatter, "`{status} {reason}`")?,
        }
        for (index, offer) in offers.iter().enumerate() {
            let before = if index == 0 { ", with a login by" } else { "," };
            write!(formatter, "{before} `{offer}`")?;
        }
        Ok(())
    }
}

impl Speaks {
    /// `first`: the first byte that is not HTTP's.
    const fn of(first: u8) -> Self {
        // The record types "alert" and "handshake" (RFC 8446, section 5.1).
        if matches!(first, 0x15 | 0x16) { Self::Tls } else { Self::Unknown }
    }

    const fn guess(self) -> &'static str {
        match self {
            Self::Tls => ", but speaks TLS",
            Self::Unknown => "",
        }
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
            Some(status) => {
                Err(TunnelError::Refused(Refusal::new(status, &head, self.authorization.is_some())))
            }
            None => Err(TunnelError::NotHttp(Speaks::Unknown)),
        }
    }
}

/// Reads byte by byte up to the empty line, and not a byte further: what follows belongs to the tunnel. An answer that
/// does not begin as HTTP is refused at once.
pub(super) async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Vec<u8>, TunnelError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MAX_HEAD {
            return Err(TunnelError::NotHttp(Speaks::Unknown));
        }
        let byte = stream.read_u8().await?;
        if VERSION.get(head.len()).is_some_and(|expected| *expected != byte) {
            return Err(TunnelError::NotHttp(Speaks::of(*head.first().unwrap_or(&byte))));
        }
        head.push(byte);
    }
    Ok(head)
}

pub(super) fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|&byte| byte == b'\r').next()?).ok()?;
    let (_, rest) = line.split_once(' ')?;
    let digits = rest.get(..3)?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

fn shortened(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c });
    plain.take(MAX_REASON).collect::<String>().trim().to_owned()
}

/// How every answer begins.
const VERSION: &[u8] = b"HTTP/1.";

/// Longest answer to CONNECT, in bytes; usual ones have a few hundred.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// Longest text of a proxy in a message, in characters.
const MAX_REASON: usize = 100;

/// Most ways to log in that a message lists.
const MAX_OFFERS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// Message, whether it is transient, and hint.
    async fn found(
        answer: &[u8],
        password: Option<&'static str>,
    ) -> Result<(), (String, bool, String)> {
        let (mut near, mut far) = tokio::io::duplex(1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        let authorization = password.map(http::HeaderValue::from_static);
        let via = ProxyRoute { tls: false, host: String::new(), port: 0, authorization };
        let outcome = via.open_tunnel(&mut near, "a.example", 443).await;
        outcome
            .map_err(|error| (error.to_string(), error.is_transient(), error.hint("a.example:443")))
    }

    #[tokio::test]
    async fn answers_of_a_proxy_are_judged_by_their_status() {
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n", None),
            ("HTTP/1.0 200\r\n\r\n", None),
            (
                "HTTP/1.1 403 Forbidden by `policy`\r\n\r\n",
                Some(("the proxy answered `403 Forbidden by  policy`", false)),
            ),
            (
                "HTTP/1.1 302\r\nLocation: http://login.example\r\n\r\n",
                Some(("the proxy answered 302", false)),
            ),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some(("the proxy answered `503 Busy`", true))),
            ("HTTP/1.1 429 Slow down\r\n\r\n", Some(("the proxy answered `429 Slow down`", true))),
            ("SSH-2.0-OpenSSH_9.2\r\n", Some(("what answers there is no HTTP proxy", false))),
            ("\u{5}\u{ff}", Some(("what answers there is no HTTP proxy", false))),
            (
                "\u{15}\u{3}\u{1}\0\u{2}\u{2}\n",
                Some(("what answers there is no HTTP proxy, but speaks TLS", false)),
            ),
            ("HTTP/1.1 2\r\n\r\n", Some(("what answers there is no HTTP proxy", false))),
            ("HTTP/1.1 200 Connection est", Some(("the connection to the proxy broke", true))),
            ("", Some(("the connection to the proxy broke", true))),
        ] {
            let found = found(answer.as_bytes(), None).await.err();
            let found = found.as_ref().map(|(text, transient, _)| (text.as_str(), *transient));
            assert_eq!(found, expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn login_that_the_proxy_wants_is_told_by_what_it_offers() {
        let refused = "HTTP/1.1 407 Proxy Authentication Required\r\n";
        for (headers, password, message, hint) in [
            ("", None, "", "put the proxy's user and password"),
            (
                "Proxy-Authenticate: Basic realm=\"a, b\"\r\n",
                None,
                ", with a login by `Basic`",
                "put the proxy's user and password",
            ),
            (
                "Proxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM, Basic realm=\"x\"\r\n",
                Some("Basic dTpw"),
                ", with a login by `Negotiate`, `NTLM`, `Basic`",
                "correct user and password",
            ),
            (
                "Proxy-Authenticate: NTLM\r\n",
                Some("Basic dTpw"),
                ", with a login by `NTLM`",
                "let the proxy of `HTTPS_PROXY` offer `Basic`",
            ),
        ] {
            let answer = format!("{refused}{headers}\r\n");
            let (text, transient, advice) = found(answer.as_bytes(), password).await.unwrap_err();
            let expected =
                format!("the proxy answered `407 Proxy Authentication Required`{message}");
            assert_eq!((text.as_str(), transient), (expected.as_str(), false));
            assert!(advice.starts_with(hint), "{headers}: {advice}");
        }
    }
}
