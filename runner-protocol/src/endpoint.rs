//! URLs of services, in the form that the config allows.

use std::{fmt, net::IpAddr};

/// `scheme://host[:port][/path]`. User, query and fragment are not allowed, since they could hold a secret.
#[derive(Clone, Eq, PartialEq)]
pub struct EndpointUrl {
    text: String,
    /// Length of the scheme in bytes.
    scheme: usize,
    host: String,
    has_path: bool,
}

impl EndpointUrl {
    /// Parses a URL; `None` for any other form.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let known = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_lowercase());
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let clean = |byte: u8| byte.is_ascii_graphic() && !b"?#@\\\"<>^`{|}".contains(&byte);
        if !known || !rest.bytes().all(clean) {
            return None;
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let named = authority.starts_with('[')
            || host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let reachable =
            port.is_none_or(|port| digits(port) && matches!(port.parse::<u16>(), Ok(1..)));
        (!host.is_empty() && named && reachable).then(|| Self {
            text: text.to_owned(),
            scheme: scheme.len(),
            host: host.to_owned(),
            has_path: path.len() > 1,
        })
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The scheme, such as `https`.
    pub fn scheme(&self) -> &str {
        self.text.get(..self.scheme).unwrap_or_default()
    }

    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the host is this machine: `localhost`, 127.0.0.0/8 or `::1`.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Whether the path is more than `/`.
    pub(crate) fn has_path(&self) -> bool {
        self.has_path
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "EndpointUrl({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let cases = [
            ("https://ssm.example.com", Some(("https", "ssm.example.com", false))),
            ("https://ssm.example.com/", Some(("https", "ssm.example.com", false))),
            (
                "https://vpce-0a.ssm.eu-west-1.vpce.amazonaws.com:8443/p",
                Some(("https", "vpce-0a.ssm.eu-west-1.vpce.amazonaws.com", false)),
            ),
            ("http://127.0.0.1:1", Some(("http", "127.0.0.1", true))),
            ("http://127.8.9.10:1", Some(("http", "127.8.9.10", true))),
            ("ws://[::1]:8080", Some(("ws", "::1", true))),
            ("ws://LOCALHOST", Some(("ws", "LOCALHOST", true))),
            ("http://localhost.example.com", Some(("http", "localhost.example.com", false))),
            ("http://[2001:db8::1]", Some(("http", "2001:db8::1", false))),
            ("ssm.example.com", None),
            ("HTTPS://ssm.example.com", None),
            ("https://", None),
            ("https:///p", None),
            ("https://user:secret@host", None),
            ("http://127.0.0.1@evil.example", None),
            ("http://127.0.0.1\\@evil.example", None),
            ("https://host?q", None),
            ("https://host#f", None),
            ("https://ho st", None),
            ("https://hôst", None),
            ("https://host:", None),
            ("https://host:0", None),
            ("https://host:+1", None),
            ("https://host:65536", None),
            ("https://::1", None),
            ("https://[::1", None),
            ("https://[::1]1", None),
            ("https://[127.0.0.1]", None),
        ];
        for (text, expected) in cases {
            let url = EndpointUrl::parse(text);
            let parts = url.as_ref().map(|url| (url.scheme(), url.host(), url.is_loopback()));
            assert_eq!(parts, expected, "{text}");
        }
    }
}
