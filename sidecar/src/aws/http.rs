//! The SDK's HTTP client, with the same root certificates and proxy as the WebSocket.

use std::time::Duration;

use aws_sdk_ssm::config::{RuntimeComponents, SharedHttpClient, timeout::TimeoutConfig};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use pem_rfc7468::LineEnding;

use crate::net::{proxy::Proxy, tls::RootCertificates};

/// Builds the client; opens no connection. Takes a few milliseconds to parse the roots.
pub(super) fn client(roots: &RootCertificates, proxy: &Proxy) -> SharedHttpClient {
    let (tls, proxy) = (tls_context(roots), proxy_config(proxy));
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls.clone())
            .proxy_config(proxy.clone())
            .enable_tcp_nodelay(true);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    })
}

/// The time limits of every call.
pub(super) fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build()
}

/// The SDK takes its roots as PEM only, and panics on an unusable certificate.
fn tls_context(roots: &RootCertificates) -> TlsContext {
    let certificates = roots.usable().1;
    let encoded = certificates
        .into_iter()
        .filter_map(|der| pem_rfc7468::encode_string("CERTIFICATE", LineEnding::LF, der).ok());
    let pem: String = encoded.collect();
    let mut store = TrustStore::empty();
    if !pem.is_empty() {
        store = store.with_pem_certificate(pem);
    }
    #[expect(clippy::expect_used, reason = "fails only for an unusable certificate")]
    TlsContext::builder().with_trust_store(store).build().expect("usable certificates")
}

fn proxy_config(proxy: &Proxy) -> ProxyConfig {
    let Some((url, exceptions)) = proxy.url_and_exceptions() else {
        return ProxyConfig::disabled();
    };
    match ProxyConfig::https(url) {
        Ok(config) => config.no_proxy(exceptions),
        // `Proxy` accepts no URL that the SDK refuses.
        Err(_) => ProxyConfig::disabled(),
    }
}

/// Time for TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);

/// Time for one call, from connecting to the last byte of the answer.
pub(super) const ATTEMPT: Duration = Duration::from_secs(20);
