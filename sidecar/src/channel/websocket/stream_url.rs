//! Where a data channel may be opened: checks a `StreamUrl`, and replaces its host by the config's.
//!
//! The query's `cell-number` routes the connection and is base64: `+`, `/` and `=` must be sent as received. So nothing
//! here decodes or encodes, and no general URL parser touches path and query.

use http::{Uri, uri::PathAndQuery};

use super::StreamEndpoint;
use crate::{
    net::proxy::is_loopback,
    session::partition::{Partition, partition},
};

/// Why a `StreamUrl` is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InvalidStreamUrl {
    /// Not a URL. It is not quoted, since it is a peer's text.
    #[error("the StreamUrl is not a URL")]
    Malformed,
    /// The host is not the session service of the region.
    #[error("the StreamUrl leads to `{host}`, which is no `ssmmessages` host of AWS in `{region}`")]
    Foreign { host: String, region: String },
    /// `ws` instead of `wss`.
    #[error("the StreamUrl asks for a connection without TLS")]
    Plain,
}

/// Returns the URI to open for a `StreamUrl`: with the config's host if it names one, else unchanged.
pub(crate) fn resolve(
    stream_url: &str,
    endpoint: &StreamEndpoint,
) -> Result<Uri, InvalidStreamUrl> {
    let service: Uri = stream_url.parse().map_err(|_| InvalidStreamUrl::Malformed)?;
    // The parser keeps the bytes of path and query, but drops a fragment: refuse what it would change.
    let kept = service.path_and_query().map(PathAndQuery::as_str);
    if !kept.is_some_and(|kept| stream_url.ends_with(kept)) {
        return Err(InvalidStreamUrl::Malformed);
    }
    if let Some(replacement) = &endpoint.stream_endpoint_url {
        return replace_host(&service, replacement);
    }
    let authority = service.authority().ok_or(InvalidStreamUrl::Malformed)?;
    let host = authority.host();
    let plain = match service.scheme_str() {
        Some("wss") => false,
        Some("ws") => true,
        _ => return Err(InvalidStreamUrl::Malformed),
    };
    let foreign =
        || InvalidStreamUrl::Foreign { host: shown(host), region: endpoint.region.clone() };
    if authority.as_str().contains('@') {
        return Err(foreign());
    }
    if is_loopback(host) {
        return if endpoint.allow_loopback { Ok(service) } else { Err(foreign()) };
    }
    if !is_aws_stream_host(host, &endpoint.region) {
        return Err(foreign());
    }
    if plain {
        return Err(InvalidStreamUrl::Plain);
    }
    Ok(service)
}

/// Returns the host that the next `StreamUrl` most likely has, as a URI without path; `None` where it cannot be
/// predicted.
pub(crate) fn expected_host(endpoint: &StreamEndpoint) -> Option<Uri> {
    let region = &endpoint.region;
    if endpoint.stream_endpoint_url.is_none() && endpoint.allow_loopback {
        // An emulated service names a port of its own.
        return None;
    }
    let suffix = partition(region).suffix;
    resolve(&format!("wss://ssmmessages.{region}.{suffix}/"), endpoint).ok()
}

fn replace_host(service: &Uri, endpoint: &Uri) -> Result<Uri, InvalidStreamUrl> {
    let scheme = match endpoint.scheme_str() {
        Some("wss" | "https") => "wss",
        Some("ws" | "http") if endpoint.host().is_some_and(is_loopback) => "ws",
        Some("ws" | "http") => return Err(InvalidStreamUrl::Plain),
        _ => return Err(InvalidStreamUrl::Malformed),
    };
    let mut parts = service.clone().into_parts();
    parts.scheme = Some(scheme.parse().map_err(|_| InvalidStreamUrl::Malformed)?);
    parts.authority = endpoint.authority().cloned();
    Uri::from_parts(parts).map_err(|_| InvalidStreamUrl::Malformed)
}

/// Whether `host` belongs to AWS alone: `ssmmessages[-fips].REGION.SUFFIX`, or an interface endpoint's
/// `vpce-….ssmmessages[-fips].REGION.vpce.SUFFIX`.
///
/// Each label is compared: customers can name load balancers and buckets below AWS's domains.
fn is_aws_stream_host(host: &str, region: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let below = |suffix: &str| host.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
    let Partition { suffix, dual_stack_suffix, .. } = partition(region);
    let Some(labels) = below(suffix).or_else(|| below(dual_stack_suffix)) else { return false };
    let labels: Vec<_> = labels.split('.').collect();
    let (service, place) = match *labels.as_slice() {
        [service, place] => (service, place),
        [endpoint, service, place, "vpce"] if endpoint.starts_with("vpce-") => (service, place),
        _ => return false,
    };
    let service_fits = service == "ssmmessages" || service.starts_with("ssmmessages-");
    service_fits && place == region
}

fn shown(host: &str) -> String {
    host.chars().take(MAX_SHOWN).collect()
}

/// Longest host name (RFC 1035), in characters.
const MAX_SHOWN: usize = 253;

#[cfg(test)]
mod tests {
    use super::{super::testing::endpoint, *};

    const PATH: &str =
        "/v1/data-channel/user-0abc?role=publish_subscribe&cell-number=AAEA+b/c==&x=%2b%2F";

    fn in_region(region: &str) -> StreamEndpoint {
        StreamEndpoint { region: region.to_owned(), ..endpoint(None, false) }
    }

    fn resolved(url: &str, endpoint: &StreamEndpoint) -> Result<String, InvalidStreamUrl> {
        resolve(url, endpoint).map(|uri| uri.to_string())
    }

    #[test]
    fn stream_host_is_predicted_except_of_an_emulated_service() {
        let host = |endpoint: &StreamEndpoint| expected_host(endpoint).map(|uri| uri.to_string());
        for (endpoint, known) in [
            (endpoint(None, false), Some("wss://ssmmessages.ap-northeast-1.amazonaws.com/")),
            (in_region("cn-north-1"), Some("wss://ssmmessages.cn-north-1.amazonaws.com.cn/")),
            (in_region("eusc-de-east-1"), Some("wss://ssmmessages.eusc-de-east-1.amazonaws.eu/")),
            (endpoint(Some("https://vpce.example"), false), Some("wss://vpce.example/")),
            (endpoint(Some("ws://127.0.0.1:7"), true), Some("ws://127.0.0.1:7/")),
            (endpoint(None, true), None),
            (endpoint(Some("ws://elsewhere.example"), false), None),
        ] {
            assert_eq!(host(&endpoint).as_deref(), known, "{endpoint:?}");
        }
    }

    #[test]
    fn hosts_of_the_service_are_taken_byte_for_byte() {
        for host in [
            "ssmmessages.ap-northeast-1.amazonaws.com",
            "ssmmessages-fips.ap-northeast-1.amazonaws.com",
            "ssmmessages.ap-northeast-1.api.aws",
            "ssmmessages.ap-northeast-1.amazonaws.com:443",
            "vpce-0abc-1def.ssmmessages.ap-northeast-1.vpce.amazonaws.com",
            "SSMMESSAGES.ap-northeast-1.amazonaws.com",
        ] {
            let url = format!("wss://{host}{PATH}");
            assert_eq!(resolved(&url, &endpoint(None, false)), Ok(url));
        }
        let china = "wss://ssmmessages.cn-north-1.amazonaws.com.cn/v1/data-channel/s?role=x";
        assert_eq!(resolved(china, &in_region("cn-north-1")).as_deref(), Ok(china));
    }

    #[test]
    fn forged_hosts_are_refused() {
        for host in [
            "evil.example",
            "ssmmessages.ap-northeast-1.amazonaws.com.evil.example",
            "ssmmessages.ap-northeast-1.amazonaws.com@evil.example",
            "user:pass@ssmmessages.ap-northeast-1.amazonaws.com",
            "evil-ssmmessages.ap-northeast-1.amazonaws.com",
            "ssmmessagesx.ap-northeast-1.amazonaws.com",
            "ssmmessages-1234.ap-northeast-1.elb.amazonaws.com",
            "ssmmessages.s3.amazonaws.com",
            "ssmmessages.s3-ap-northeast-1.amazonaws.com",
            "ssmmessages.us-east-1.amazonaws.com",
            "evil.ssmmessages.ap-northeast-1.vpce.amazonaws.com",
            "ssmmessages.ap-northeast-1.evilamazonaws.com",
            "amazonaws.com",
            "127.0.0.1:8080",
            "[::1]:8080",
        ] {
            let found = resolved(&format!("wss://{host}{PATH}"), &endpoint(None, false));
            assert!(matches!(found, Err(InvalidStreamUrl::Foreign { .. })), "{host}: {found:?}");
        }
    }

    #[test]
    fn malformed_stream_urls_are_refused() {
        let host = "ssmmessages.ap-northeast-1.amazonaws.com";
        let plain = resolved(&format!("ws://{host}{PATH}"), &endpoint(None, true));
        assert_eq!(plain, Err(InvalidStreamUrl::Plain));
        for url in [
            String::new(),
            "/v1/data-channel".to_owned(),
            format!("https://{host}{PATH}"),
            format!("wss://{host}{PATH}#fragment"),
            format!("wss://{host}/a b"),
            format!("wss://{host}/a\r\nHost: evil"),
        ] {
            assert_eq!(
                resolved(&url, &endpoint(None, true)),
                Err(InvalidStreamUrl::Malformed),
                "{url:?}"
            );
        }
    }

    #[test]
    fn loopback_is_taken_only_where_the_api_is_on_loopback_too() {
        for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080"] {
            let url = format!("ws://{host}{PATH}");
            assert_eq!(resolved(&url, &endpoint(None, true)), Ok(url.clone()));
            let found = resolved(&url, &endpoint(None, false));
            assert!(matches!(found, Err(InvalidStreamUrl::Foreign { .. })), "{found:?}");
        }
    }

    #[test]
    fn the_configs_host_replaces_the_services_and_keeps_path_and_query() {
        let url = format!("wss://ssmmessages.ap-northeast-1.amazonaws.com{PATH}");
        for (replacement, expected) in [
            ("wss://vpce-1.ssmmessages.example", "wss://vpce-1.ssmmessages.example"),
            ("https://stream.example:8443/ignored", "wss://stream.example:8443"),
            ("ws://127.0.0.1:9000", "ws://127.0.0.1:9000"),
            ("http://[::1]:9000", "ws://[::1]:9000"),
        ] {
            let found = resolved(&url, &endpoint(Some(replacement), false));
            assert_eq!(found, Ok(format!("{expected}{PATH}")), "{replacement}");
        }
        let plain = resolved(&url, &endpoint(Some("ws://stream.example"), false));
        assert_eq!(plain, Err(InvalidStreamUrl::Plain));
    }
}
