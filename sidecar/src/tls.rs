//! Whom we believe: one set of root certificates for the SDK and the WebSocket, loaded once.

use std::{fmt, sync::Arc};

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_native_certs::load_native_certs;
use tokio_rustls::TlsConnector;
use tracing::warn;

/// The root certificates that are trusted; clones share them.
#[derive(Clone)]
pub struct Trust {
    client: Arc<ClientConfig>,
    /// What the SDK builds its own store from; it takes PEM alone.
    sdk: TlsContext,
    roots: usize,
}

impl Trust {
    /// Takes the bundle named by `SSL_CERT_FILE` (and the directories of `SSL_CERT_DIR`) if set, else the
    /// system's roots. Reads files; call it before the process gives up its rights.
    ///
    /// Certificates that cannot be read are logged and left out. An empty store is no error here: a
    /// loopback endpoint needs none, and every other connection then fails with the hint to set
    /// `SSL_CERT_FILE`.
    pub fn load() -> Self {
        let found = load_native_certs();
        for error in &found.errors {
            warn!(%error, "root certificates are missing");
        }
        Self::new(found.certs)
    }

    /// Takes the certificates of a PEM text, and nothing from the system.
    pub fn from_pem(pem: &[u8]) -> Self {
        let certificates = CertificateDer::pem_slice_iter(pem).filter_map(|outcome| {
            outcome.map_err(|error| warn!(%error, "root certificate cannot be read")).ok()
        });
        Self::new(certificates)
    }

    fn new(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = RootCertStore::empty();
        let mut pem = String::new();
        for certificate in certificates {
            // The SDK panics on a certificate that is none, so it gets only what was accepted here.
            match roots.add(certificate.clone()) {
                Ok(()) => push_pem(&mut pem, &certificate),
                Err(error) => warn!(%error, "root certificate cannot be used"),
            }
        }
        let count = roots.len();
        if count == 0 {
            warn!("no root certificates: TLS will be refused");
        }
        Self { client: Arc::new(client_config(roots)), sdk: sdk_context(pem), roots: count }
    }

    /// How many root certificates there are.
    pub fn roots(&self) -> usize {
        self.roots
    }

    /// For connections of our own: HTTP/1.1, no client certificate.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.client))
    }

    /// For the SDK's HTTP client.
    pub fn sdk_context(&self) -> TlsContext {
        self.sdk.clone()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trust").field("roots", &self.roots).finish_non_exhaustive()
    }
}

/// Why a server's certificate was not believed, in words for a person.
pub fn distrust(error: &rustls::Error) -> Option<String> {
    let rustls::Error::InvalidCertificate(reason) = error else { return None };
    Some(match reason {
        CertificateError::UnknownIssuer => "its issuer is not trusted".to_owned(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, or this host's clock is wrong".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet, or this host's clock is wrong".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host".to_owned()
        }
        other => other.to_string(),
    })
}

/// What to do about [`distrust`].
pub const DISTRUST_HINT: &str = "set `SSL_CERT_FILE` to a PEM bundle that holds the issuer: where a proxy opens TLS \
     it is the proxy's own authority, in a bare image the bundle may be missing altogether";

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    #[expect(clippy::expect_used, reason = "aws-lc-rs has cipher suites for both versions")]
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .expect("TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn sdk_context(pem: String) -> TlsContext {
    let mut store = TrustStore::empty();
    if !pem.is_empty() {
        store = store.with_pem_certificate(pem);
    }
    #[expect(
        clippy::expect_used,
        reason = "fails for a broken certificate alone, and none is left"
    )]
    TlsContext::builder().with_trust_store(store).build().expect("every certificate was accepted")
}

fn push_pem(pem: &mut String, certificate: &CertificateDer<'_>) {
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = BASE64_STANDARD.encode(certificate);
    while !rest.is_empty() {
        let line: String = rest.drain(..rest.len().min(PEM_LINE)).collect();
        pem.push_str(&line);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
}

/// Characters in a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{testing::Authority, *};

    #[test]
    fn bundle_of_ssl_cert_file_replaces_the_systems_roots() {
        let path = std::env::temp_dir().join(format!("ssm-sidecar-roots-{}", std::process::id()));
        let mut bundle = Authority::new().pem().to_vec();
        bundle.extend_from_slice(Authority::new().pem());
        std::fs::write(&path, bundle).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "tls::tests::two_roots", "--ignored"]);
        let output = child.env("SSL_CERT_FILE", &path).env_remove("SSL_CERT_DIR").output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
    }

    #[test]
    #[ignore = "started by the test above, in an environment of its own"]
    fn two_roots() {
        assert_eq!(Trust::load().roots(), 2);
    }

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let good = Authority::new();
        let mut pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
        pem.extend_from_slice(good.pem());
        assert_eq!(Trust::from_pem(&pem).roots(), 1);
        assert_eq!(Trust::from_pem(b"no PEM at all").roots(), 0);
    }
}
