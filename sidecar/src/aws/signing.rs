//! The signature of a data channel's opening (signature version 4, service `ssmmessages`).

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use http::{HeaderName, HeaderValue, Uri};

use super::sdk_error::unsigned;
use crate::session::{ApiError, SignedHeaders};

/// Whether the query of `uri` holds a signature; then headers must not sign it again.
pub(super) fn is_signed(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| {
        query.split('&').any(|pair| {
            pair.get(..PRESIGNED.len()).is_some_and(|start| start.eq_ignore_ascii_case(PRESIGNED))
        })
    })
}

/// Signs a GET without body: host, date and session token, none of the WebSocket's own headers.
pub(super) fn sign_opening(
    uri: &Uri,
    region: &str,
    credentials: Credentials,
) -> Result<SignedHeaders, ApiError> {
    sign_at(SystemTime::now(), uri, region, credentials)
        .map_err(|error| unsigned(&error.to_string()))
}

fn sign_at(
    time: SystemTime,
    uri: &Uri,
    region: &str,
    credentials: Credentials,
) -> Result<SignedHeaders, Box<dyn std::error::Error + Send + Sync>> {
    let identity = credentials.into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("ssmmessages")
        .time(time)
        .settings(SigningSettings::default())
        .build()?
        .into();
    // The signer has a default port for `https` and none for `wss`: so the host is given as it is sent.
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let text = uri.to_string();
    let request =
        SignableRequest::new("GET", text, [("host", host)].into_iter(), SignableBody::empty())?;
    let (instructions, _) = sign(request, &parameters)?.into_parts();
    let (headers, _) = instructions.into_parts();
    headers
        .into_iter()
        .map(|header| {
            let mut value = HeaderValue::from_str(header.value())?;
            value.set_sensitive(true);
            Ok((HeaderName::from_static(header.name()), value))
        })
        .collect()
}

/// Prefix of the signature's parameters in a query.
const PRESIGNED: &str = "X-Amz-";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_presigned_url_is_recognised() {
        for (query, expected) in [
            ("role=publish_subscribe", false),
            ("role=publish_subscribe&X-Amz-Signature=abc", true),
            ("x-amz-credential=a", true),
            ("role=X-Amz-", false),
            ("", false),
        ] {
            let uri = format!("wss://host.example/v1?{query}").parse().unwrap();
            assert_eq!(is_signed(&uri), expected, "{query}");
        }
    }

    #[test]
    fn the_signature_covers_host_date_and_session_token() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_000_000);
        let uri = "wss://ssmmessages.ap-northeast-1.amazonaws.com/v1/data-channel/s-1\
                   ?role=publish_subscribe&cell-number=AA+/=="
            .parse()
            .unwrap();
        let keys = |token: Option<&str>| {
            Credentials::new("AKIDEXAMPLE", "secret", token.map(str::to_owned), None, "test")
        };
        let headers = sign_at(time, &uri, "ap-northeast-1", keys(Some("token"))).unwrap();
        let value = |name: &str| {
            let found = headers.iter().find(|(each, _)| each == name);
            found.map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(value("x-amz-date"), Some("20261014T174640Z"));
        assert_eq!(value("x-amz-security-token"), Some("token"));
        let authorization = value("authorization").unwrap();
        let scope = "AKIDEXAMPLE/20261014/ap-northeast-1/ssmmessages/aws4_request";
        assert!(authorization.contains(scope), "{authorization}");
        let signed = "SignedHeaders=host;x-amz-date;x-amz-security-token,";
        assert!(authorization.contains(signed), "{authorization}");
        assert_eq!(headers.len(), 3);

        let again = sign_at(time, &uri, "ap-northeast-1", keys(Some("token"))).unwrap();
        assert_eq!(headers, again, "the same input gives the same signature");
        let other = sign_at(time, &uri, "ap-northeast-1", keys(None)).unwrap();
        assert_eq!(other.len(), 2);
    }
}
