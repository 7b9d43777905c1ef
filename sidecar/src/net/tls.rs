//! Root certificates for the SDK and the WebSocket, and the TLS client configuration.
//!
//! The files are read before the process is sandboxed. Parsing 150 certificates takes milliseconds, and is left to the
//! first connection.

mod verifier;

use std::{
    env, fmt,
    sync::{Arc, OnceLock},
};

use rustls::{CertificateError, ClientConfig, RootCertStore, pki_types::CertificateDer};
use rustls_native_certs::{CertificateResult, load_certs_from_paths, load_native_certs};
use tokio_rustls::TlsConnector;
use tracing::{debug, info, warn};

/// Trusted root certificates. Clones share them.
#[derive(Clone)]
pub(crate) struct RootCertificates(Arc<Inner>);

struct Inner {
    /// As they were read, not parsed yet: some may be unusable.
    found: Vec<CertificateDer<'static>>,
    client: OnceLock<Arc<ClientConfig>>,
}

impl RootCertificates {
    /// Reads the bundle of `SSL_CERT_FILE` (and the directories of `SSL_CERT_DIR`) if set, else the system's roots.
    /// Call it before the process is sandboxed.
    ///
    /// Unreadable certificates are logged and left out. An empty set is no error: a loopback endpoint needs none, and
    /// every other connection then fails with the hint to set `SSL_CERT_FILE`.
    pub(crate) fn load() -> Self {
        let read = bundle().filter(|read| !read.certs.is_empty()).unwrap_or_else(load_native_certs);
        for error in &read.errors {
            warn!(%error, "root certificates cannot be read");
        }
        Self::new(read.certs)
    }

    /// Parses a PEM text, without the system's certificates.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn from_pem(pem: &[u8]) -> Self {
        use rustls::pki_types::pem::PemObject as _;

        let certificates = CertificateDer::pem_slice_iter(pem).filter_map(|outcome| {
            outcome.map_err(|error| warn!(%error, "root certificate cannot be read")).ok()
        });
        Self::new(certificates.collect())
    }

    fn new(found: Vec<CertificateDer<'static>>) -> Self {
        if found.is_empty() {
            warn!("no root certificates: every TLS connection will fail");
        }
        Self(Arc::new(Inner { found, client: OnceLock::new() }))
    }

    /// Returns the connector for HTTP/1.1 without client certificate.
    pub(crate) fn connector(&self) -> TlsConnector {
        let client = self.0.client.get_or_init(|| Arc::new(client_config(self.usable())));
        TlsConnector::from(Arc::clone(client))
    }

    /// Parses the certificates. Takes a few milliseconds.
    fn usable(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let is_usable = |certificate: &&CertificateDer<'static>| {
            let added = roots.add((*certificate).clone());
            added.inspect_err(|error| debug!(%error, "root certificate cannot be used")).is_ok()
        };
        let usable = self.0.found.iter().filter(is_usable).count();
        let unusable = self.0.found.len() - usable;
        if unusable > 0 && usable == 0 {
            warn!(unusable, "no root certificate can be used: every TLS connection will fail");
        } else if unusable > 0 {
            // In order: a system's bundle may hold old ones.
            info!(unusable, "some root certificates cannot be used");
        }
        roots
    }
}

/// Reads the system's certificates from its one bundle file. The directory beside it holds the same certificates as
/// single files, and reading both takes ten times as long; a certificate that is only in the directory needs
/// `SSL_CERT_DIR`. `None` where the environment names what to read, or there is no such file.
#[cfg(target_os = "linux")]
fn bundle() -> Option<CertificateResult> {
    if [BUNDLE, DIRECTORY].iter().any(|name| env::var_os(name).is_some()) {
        return None;
    }
    let file = openssl_probe::probe().cert_file?;
    Some(load_certs_from_paths(Some(&file), None))
}

/// Other systems have no such file; `load_native_certs` reads their trust store.
#[cfg(not(target_os = "linux"))]
fn bundle() -> Option<CertificateResult> {
    None
}

impl fmt::Debug for RootCertificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RootCertificates")
            .field("found", &self.0.found.len())
            .finish_non_exhaustive()
    }
}

/// Why a server's certificate is not trusted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}{}", issuer.as_ref().map(|name| format!("; the issuer is `{name}`")).unwrap_or_default())]
pub(crate) struct UntrustedCertificate {
    reason: String,
    /// Which of the hints fits.
    flaw: Flaw,
    /// The issuer that the certificate names.
    issuer: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flaw {
    Issuer,
    Time,
    Host,
    Other,
}

impl UntrustedCertificate {
    /// `None` where `error` is about something else than the certificate.
    pub(crate) fn of(error: &rustls::Error) -> Option<Self> {
        let rustls::Error::InvalidCertificate(error) = error else { return None };
        let (error, issuer) = match verifier::named(error) {
            Some((inner, issuer)) => (inner, Some(issuer.to_owned())),
            None => (error, None),
        };
        let (flaw, reason) = match error {
            CertificateError::UnknownIssuer => (Flaw::Issuer, "its issuer is unknown".to_owned()),
            // As after a proxy's authority was made anew under its old name.
            CertificateError::BadSignature => {
                (Flaw::Issuer, "the trusted issuer of that name has not signed it".to_owned())
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                (Flaw::Time, "it has expired, or this host's clock is wrong".to_owned())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                (Flaw::Time, "it is not valid yet, or this host's clock is wrong".to_owned())
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                (Flaw::Host, "it is for another host".to_owned())
            }
            other => (Flaw::Other, other.to_string()),
        };
        Some(Self { reason, flaw, issuer })
    }

    pub(crate) fn hint(&self) -> String {
        let issuer = self.issuer.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default();
        match self.flaw {
            Flaw::Issuer | Flaw::Other => format!(
                "set `SSL_CERT_FILE` to a PEM bundle that holds the issuer{issuer} beside the public authorities: where \
                 a proxy opens TLS it is the proxy's own authority, in a bare image the bundle may be missing altogether"
            ),
            Flaw::Time => format!(
                "set this host's clock (NTP); if it is right, let the issuer{issuer} renew the certificate: where a proxy \
                 opens TLS it is the proxy's"
            ),
            Flaw::Host => format!(
                "look for what answers in place of that host (DNS, proxy, VPC endpoint), and check `aws.endpoint_url` and \
                 `aws.stream_endpoint_url`: the certificate of the issuer{issuer} names another one"
            ),
        }
    }
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    #[expect(clippy::expect_used, reason = "aws-lc-rs has cipher suites for both versions")]
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .expect("TLS 1.2 and 1.3");
    let mut config = verifier::install(builder, roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Environment variable with a bundle in place of the system's, as in OpenSSL.
const BUNDLE: &str = "SSL_CERT_FILE";

/// Environment variable with directories of certificates, as in OpenSSL.
const DIRECTORY: &str = "SSL_CERT_DIR";

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
        assert_eq!(RootCertificates::load().usable().len(), 2);
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
    fn unusable_certificates_are_left_out() {
        let good = Authority::new();
        let mut pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec();
        pem.extend_from_slice(good.pem());
        assert_eq!(RootCertificates::from_pem(&pem).usable().len(), 1);
        assert_eq!(RootCertificates::from_pem(b"no PEM at all").usable().len(), 0);
    }
}
