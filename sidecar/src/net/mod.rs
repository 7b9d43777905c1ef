//! Connections to AWS: addresses, proxy, TLS.

pub mod dial;
pub mod proxy;
pub mod tls;
