//! Endpoints for tests and fuzz targets.

use std::{sync::Arc, time::Duration};

use super::StreamEndpoint;
use crate::net::{
    dial::{Connector, Direct},
    proxy::Proxy,
    tls::RootCertificates,
};

/// An endpoint in `ap-northeast-1` without root certificates and proxy.
pub(crate) fn endpoint(replacement: Option<&str>, allow_loopback: bool) -> StreamEndpoint {
    StreamEndpoint {
        region: "ap-northeast-1".to_owned(),
        stream_endpoint_url: replacement.and_then(|url| url.parse().ok()),
        allow_loopback,
        connector: Connector {
            roots: RootCertificates::from_pem(b""),
            proxy: Proxy::default(),
            dial: Arc::new(Direct),
        },
        timeout: Duration::from_secs(15),
    }
}
