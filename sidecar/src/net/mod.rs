//! Connections to AWS: TCP, proxy, TLS.

pub(crate) mod accept;
pub(crate) mod dial;
pub(crate) mod proxy;
pub(crate) mod tls;
