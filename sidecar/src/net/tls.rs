//! Whom we believe: one set of root certificates for the SDK and the WebSocket, read once.
//!
//! Reading must be done before a process gives up its files and costs little; making sense of 150 certificates
//! takes milliseconds, and is left to when a connection needs them.

use std::{
    env, fmt,
    sync::{Arc, OnceLock},
};

use aws_smithy_http_client::tls::{TlsContext, TrustStore};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use tokio_rustls::TlsConnector;
use tracing::warn;

/// The root certificates that are trusted; clones share them.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    /// As they were read; not all of them need be certificates.
    found: Vec<CertificateDer<'static>>,
    client: OnceLock<Arc<ClientConfig>>,
}

impl Trust {
    /// Takes the bundle named by `SSL_CERT_FILE` (and the directories of `SSL_CERT_DIR`) if set, else the
    /// system's roots. Reads files; call it before the process gives up its rights.
    ///
    /// Certificates that cannot be read are logged and left out. An empty store is no error here: a
    /// loopback endpoint needs none, and every other connection then fails with the hint to set
    /// `SSL_CERT_FILE`.
    pub fn load() -> Self {
        let read = bundle().filter(|read| !read.certs.is_empty()).unwrap_or_else(load_native_certs);
        for error in &read.errors {
            warn!(%error, "root certificates are missing");
        }
        Self::new(read.certs)
    }

    /// Takes the certificates of a PEM text, and nothing from the system.
    pub fn from_pem(pem: &[u8]) -> Self {
        let certificates = CertificateDer::pem_slice_iter(pem).filter_map(|outcome| {
            outcome.map_err(|error| warn!(%error, "root certificate cannot be read")).ok()
        });
        Self::new(certificates.collect())
    }

    fn new(found: Vec<CertificateDer<'static>>) -> Self {
        if found.is_empty() {
            warn!("no root certificates: TLS will be refused");
        }
        Self(Arc::new(Inner { found, client: OnceLock::new() }))
    }

    /// For connections of our own: HTTP/1.1, no client certificate.
    pub fn connector(&self) -> TlsConnector {
        let client = self.0.client.get_or_init(|| Arc::new(client_config(self.accepted().0)));
        TlsConnector::from(Arc::clone(client))
    }

    /// For the SDK's HTTP client. Takes a few milliseconds, each time.
    pub fn sdk_context(&self) -> TlsContext {
        let mut pem = String::new();
        // The SDK takes PEM alone, and panics on a certificate that is none.
        for certificate in self.accepted().1 {
            push_pem(&mut pem, certificate);
        }
        sdk_context(pem)
    }

    /// What can be used of what was found.
    fn accepted(&self) -> (RootCertStore, Vec<&CertificateDer<'static>>) {
        let mut roots = RootCertStore::empty();
        let accept = |certificate: &&CertificateDer<'static>| {
            let added = roots.add((*certificate).clone());
            added.inspect_err(|error| warn!(%error, "root certificate cannot be used")).is_ok()
        };
        let accepted = self.0.found.iter().filter(accept).collect();
        (roots, accepted)
    }
}

/// The system's certificates from the one file that holds them all. The directory beside it holds the same
/// ones, each in a file of its own: to read both takes ten times as long. One that was put there by hand
/// is found with `SSL_CERT_DIR`. `None` where the environment names what to read, or there is no such file.
#[cfg(target_os = "linux")]
fn bundle() -> Option<CertificateResult> {
    if [BUNDLE, DIRECTORY].iter().any(|name| env::var_os(name).is_some()) {
        return None;
    }
    let file = openssl_probe::probe().cert_file?;
    Some(load_certs_from_paths(Some(&file), None))
}

/// Elsewhere the system has other ways.
#[cfg(not(target_os = "linux"))]
fn bundle() -> Option<CertificateResult> {
    None
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trust").field("found", &self.0.found.len()).finish_non_exhaustive()
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

/// Names a file of certificates in place of the system's, as with OpenSSL.
const BUNDLE: &str = "SSL_CERT_FILE";

/// Names directories of them.
const DIRECTORY: &str = "SSL_CERT_DIR";

/// Characters in a line of PEM (RFC 7468, section 2).
const PEM_LINE: usize = 64;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::{testing::Authority, *};

    #[test]
    fn bundle_of_ssl_cert_file_replaces_the_systems_roots() {
        let path = env::temp_dir().join(format!("ssm-sidecar-roots-{}", std::process::id()));
        let mut bundle = Authority::new().pem().to_vec();
        bundle.extend_from_slice(Authority::new().pem());
        std::fs::write(&path, bundle).unwrap();
        in_environment("two_roots", Some(&path));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    #[ignore = "started by the test above, in an environment of its own"]
    fn two_roots() {
        assert_eq!(Trust::load().accepted().1.len(), 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn roots_of_the_system_come_from_its_bundle() {
        in_environment("roots_of_the_bundle", None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[ignore = "started by the test above, in an environment of its own"]
    fn roots_of_the_bundle() {
        let (bundle, whole) = (bundle().unwrap(), load_native_certs());
        assert!(!bundle.certs.is_empty() && bundle.errors.is_empty());
        assert!(bundle.certs.iter().all(|each| whole.certs.contains(each)));
    }

    /// Runs another test with `bundle` as `SSL_CERT_FILE`.
    fn in_environment(test: &str, bundle: Option<&Path>) {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", &format!("net::tls::tests::{test}"), "--ignored"]);
        child.env_remove(BUNDLE).env_remove(DIRECTORY);
        child.envs(bundle.map(|bundle| (BUNDLE, bundle)));
        let output = child.output().unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
    }

    #[test]
    fn what_is_no_certificate_is_left_out() {
        let good = Authority::new();
        let mut pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
        pem.extend_from_slice(good.pem());
        assert_eq!(Trust::from_pem(&pem).accepted().1.len(), 1);
        assert_eq!(Trust::from_pem(b"no PEM at all").accepted().1.len(), 0);
    }
}
