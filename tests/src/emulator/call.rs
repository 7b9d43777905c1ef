//! A call of the API or of STS: the request, its caller, and the error response.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, request::Parts};

use super::{
    credentials::{AuthError, Principal},
    service::Service,
    sigv4::Received,
};

/// The error response of a failed call.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new(400, "ValidationException", message)
    }
}

/// A request with its whole body.
pub(crate) struct Call {
    pub(crate) parts: Parts,
    headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn new(parts: Parts, body: Bytes) -> Self {
        let headers = plain(&parts.headers);
        Self { parts, headers, body }
    }

    /// The caller, if the request is correctly signed for this service.
    pub(crate) fn caller(
        &self,
        service: &Service,
        name: &str,
    ) -> Result<Arc<Principal>, AuthError> {
        let uri = &self.parts.uri;
        let received = Received {
            method: self.parts.method.as_str(),
            path: uri.path(),
            query: uri.query().unwrap_or_default(),
            headers: &self.headers,
            body: &self.body,
        };
        service.keys.authenticate(&received, name, &service.settings.region)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

fn plain(headers: &HeaderMap) -> Vec<(String, String)> {
    let plain = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    headers.iter().map(plain).collect()
}
