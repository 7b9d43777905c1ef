//! Verifies certificates as rustls does, and adds the issuer's name to the error: it tells whose proxy opens TLS.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme, WantsVerifier,
    client::{
        WantsClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Lets `builder` verify against `roots`.
pub(super) fn install(
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
    roots: RootCertStore,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let roots = Arc::new(roots);
    let provider = Arc::clone(builder.crypto_provider());
    match WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider).build() {
        Ok(inner) => builder.dangerous().with_custom_certificate_verifier(Arc::new(Naming(inner))),
        // Without a root nothing is trusted, and that builder refuses it.
        Err(_) => builder.with_root_certificates(roots),
    }
}

/// The error and the issuer's name that [`Naming`] has put together.
pub(super) fn named(error: &CertificateError) -> Option<(&CertificateError, &str)> {
    let CertificateError::Other(OtherError(error)) = error else { return None };
    let named: &Named = error.downcast_ref()?;
    Some((&named.error, &named.issuer))
}

#[derive(Debug, thiserror::Error)]
#[error("{error}")]
struct Named {
    error: CertificateError,
    issuer: String,
}

/// Changes nothing but the text of a refusal.
#[derive(Debug)]
struct Naming(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Naming {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        outcome.map_err(|error| match (error, issuer(end_entity)) {
            (Error::InvalidCertificate(error), Some(issuer)) => {
                let named = OtherError(Arc::new(Named { error, issuer }));
                Error::InvalidCertificate(CertificateError::Other(named))
            }
            (error, _) => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The common name of a certificate's issuer, else its organization, for a message (RFC 5280, section 4.1): a peer's
/// text, shortened, without control characters and backticks.
fn issuer(certificate: &[u8]) -> Option<String> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if let Some((VERSION, _, behind)) = element(rest) {
        rest = behind;
    }
    let (_, _, behind_serial_number) = element(rest)?;
    let (_, _, behind_algorithm) = element(behind_serial_number)?;
    let (_, name, _) = element(behind_algorithm)?;
    let name = attribute(name, COMMON_NAME).or_else(|| attribute(name, ORGANIZATION))?;
    let name = String::from_utf8_lossy(name);
    let plain = name.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c });
    let name = plain.take(MAX_NAME).collect::<String>().trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The value of the attribute `wanted` in a distinguished name: a sequence of sets of pairs.
fn attribute<'a>(mut name: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    while let Some((_, mut set, behind)) = element(name) {
        while let Some((_, pair, next)) = element(set) {
            let (_, key, value) = element(pair)?;
            if key == wanted {
                return element(value).map(|(_, value, _)| value);
            }
            set = next;
        }
        name = behind;
    }
    None
}

/// The first element of DER: its tag, its content, and what stands behind it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // As many bytes of length follow; a certificate needs at most three.
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    Some((*tag, content, behind))
}

/// The tag of the version, which version 1 leaves out.
const VERSION: u8 = 0xa0;

/// The object identifiers 2.5.4.3 and 2.5.4.10 (RFC 5280, appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];

/// Longest name in a message, in characters.
const MAX_NAME: usize = 100;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair};

    use super::*;

    /// A certificate for `a.example` by an issuer with this name.
    fn certificate(name: &[(DnType, &str)]) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in name {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let issuer = Issuer::new(params, key);
        let subject = CertificateParams::new(["a.example".to_owned()]).unwrap();
        subject.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().to_vec()
    }

    #[test]
    fn issuer_is_named_by_its_common_name_or_its_organization() {
        let (common, organization) = (DnType::CommonName, DnType::OrganizationName);
        let both = [(organization.clone(), "Acme"), (common, "Acme `Proxy`\u{7} CA")];
        assert_eq!(issuer(&certificate(&both)).as_deref(), Some("Acme  Proxy   CA"));
        assert_eq!(issuer(&certificate(&[(organization, "Acme")])).as_deref(), Some("Acme"));
        assert_eq!(issuer(&certificate(&[])), None);
    }

    #[test]
    fn damaged_certificates_name_nobody_and_break_nothing() {
        let whole = certificate(&[(DnType::CommonName, "Acme")]);
        for end in 0..whole.len() {
            issuer(&whole[..end]);
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0x80, 0x81, 0x83, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                issuer(&damaged);
            }
        }
    }
}
