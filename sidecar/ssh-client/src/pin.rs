//! Pinned host keys: the keys that a server may present.

use std::{fmt, str::FromStr};

use russh::keys::{Algorithm, HashAlg, PublicKey, ssh_key::Fingerprint};

/// A host key that the server may present.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostKeyPin {
    /// The key's SHA-256 fingerprint as `ssh-keygen -l` prints it: `SHA256:` and 43 characters of base64.
    Fingerprint(String),
    /// The key itself.
    Key(Box<PublicKey>),
}

impl HostKeyPin {
    /// Whether this pin allows `key`.
    pub(crate) fn matches(&self, key: &PublicKey) -> bool {
        match self {
            Self::Fingerprint(pinned) => *pinned == key.fingerprint(HashAlg::Sha256).to_string(),
            Self::Key(pinned) => pinned.key_data() == key.key_data(),
        }
    }

    /// The key's type, `None` for a fingerprint.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        match self {
            Self::Fingerprint(_) => None,
            Self::Key(key) => Some(key.algorithm()),
        }
    }
}

/// Shows the fingerprint.
impl fmt::Display for HostKeyPin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(fingerprint) => formatter.write_str(fingerprint),
            Self::Key(key) => write!(formatter, "{}", key.fingerprint(HashAlg::Sha256)),
        }
    }
}

impl HostKeyPin {
    /// Parses all lines of `text`, such as the output of `ssh-keyscan` or `ssh-keygen -l` has them, without blank ones
    /// and comments.
    ///
    /// # Errors
    ///
    /// [`PinError`] of the first wrong line, or [`PinError::Empty`] if there is none.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, PinError> {
        let lines = text.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pins = lines.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        if pins.is_empty() { Err(PinError::Empty) } else { Ok(pins) }
    }
}

/// Parses one line: `SHA256:…`, also with the size, comment and type that `ssh-keygen -l` prints around it, a public key
/// line, or a line of `known_hosts` or of `ssh-keyscan`.
impl FromStr for HostKeyPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let around =
            |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | '\u{feff}');
        let text = text.trim_matches(around);
        if text.is_empty() {
            return Err(PinError::Empty);
        }
        if let Some(error) = marker_of(text) {
            return Err(error);
        }
        let mut words = text.split_whitespace();
        let is_known =
            |word: &&str| is_key_type(word) || word.starts_with("SHA256:") || is_md5(word);
        let found = words.by_ref().find(is_known).ok_or(PinError::Unknown)?;
        if is_md5(found) {
            return Err(PinError::Md5);
        }
        if found.starts_with("SHA256:") {
            // Padding, and the full stop of ssh's "ED25519 key fingerprint is SHA256:….".
            let fingerprint = found.trim_end_matches(['=', '.', ',']);
            let fingerprint = Fingerprint::from_str(fingerprint).map_err(|_| PinError::Digest)?;
            return Ok(Self::Fingerprint(fingerprint.to_string()));
        }
        if found.contains("-cert-v01@openssh.com") {
            return Err(PinError::Certificate);
        }
        let blob = words.next().ok_or(PinError::Key)?;
        let key = PublicKey::from_openssh(&format!("{found} {blob}")).map_err(|_| PinError::Key)?;
        if !is_usable(&key.algorithm()) {
            return Err(PinError::Unsupported { kind: found.to_owned() });
        }
        Ok(Self::Key(Box::new(key)))
    }
}

/// The marker of a line of `known_hosts`, before its key, whatever a list, a quotation or a search has put in front.
/// What stands behind the key is a comment.
fn marker_of(text: &str) -> Option<PinError> {
    let is_key = |word: &str| is_key_type(word) || word.starts_with("SHA256:");
    let before = text.split_whitespace().take_while(|word| !is_key(word));
    before.map(|word| word.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '@')).find_map(
        |word| {
            if word.contains("@revoked") {
                Some(PinError::Revoked)
            } else if word.contains("@cert-authority") {
                Some(PinError::CertificateAuthority)
            } else {
                word.starts_with('@').then_some(PinError::Marker)
            }
        },
    )
}

/// Why a pin could not be parsed. The message quotes nothing but the key's type.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PinError {
    /// The text is empty or blank.
    #[error("host key is empty")]
    Empty,
    /// `SHA256:` without a valid digest.
    #[error("fingerprint is not `SHA256:` and 43 characters of base64")]
    Digest,
    /// An MD5 fingerprint.
    #[error("MD5 fingerprints are not safe; give the one of `ssh-keygen -l -E sha256`")]
    Md5,
    /// The type of a key without a valid key of that type.
    #[error("public key is damaged: the type is not followed by its base64 text")]
    Key,
    /// A key of a type that this client does not offer to servers.
    #[error("host keys of type `{kind}` are not supported")]
    Unsupported {
        /// The type.
        kind: String,
    },
    /// A line of `known_hosts` that revokes its key.
    #[error(
        "the marker `@revoked` says that this host key must not be trusted; give the key that replaces it"
    )]
    Revoked,
    /// A line of `known_hosts` that trusts an authority.
    #[error(
        "the marker `@cert-authority` is for certificates, which are not supported; give the host's own key"
    )]
    CertificateAuthority,
    /// A line of `known_hosts` with another marker.
    #[error("a line with a marker (`@…`) is not a host key that can be pinned")]
    Marker,
    /// A host certificate.
    #[error("a certificate cannot be pinned; give the host's own key")]
    Certificate,
    /// Neither a fingerprint nor a key.
    #[error("host key is neither `SHA256:…` nor a line such as `ssh-ed25519 AAAA…`")]
    Unknown,
}

fn is_key_type(word: &str) -> bool {
    word.starts_with("ssh-") || word.starts_with("ecdsa-sha2-") || word.starts_with("sk-")
}

/// Whether `word` is an MD5 fingerprint: with its prefix, or 16 bytes in hexadecimal.
fn is_md5(word: &str) -> bool {
    let is_byte = |part: &str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
    word.starts_with("MD5:") || (word.split(':').count() == 16 && word.split(':').all(is_byte))
}

fn is_usable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";
    const FINGERPRINT: &str = "SHA256:c1iiOEnnHsd4OaSkkLd0x4/9ifxrgmVOuv3mFmxhrXE";

    #[test]
    fn pins_are_read_as_people_have_them() {
        let key = HostKeyPin::Key(Box::new(PublicKey::from_openssh(LINE).unwrap()));
        let cases = [
            ("line", LINE.to_owned(), Ok(key.clone())),
            ("comment and blanks", format!("  {LINE} root@host\n"), Ok(key.clone())),
            ("known_hosts", format!("[10.0.0.1]:2222 {LINE}"), Ok(key.clone())),
            (
                "fingerprint",
                FINGERPRINT.to_owned(),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            (
                "padded fingerprint",
                format!("{FINGERPRINT}=\n"),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            (
                "ssh-keygen -l",
                format!("256 {FINGERPRINT} root@vm (ED25519)"),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            (
                "ssh-keygen -l without comment",
                format!("3072 {FINGERPRINT} no comment (RSA)\r\n"),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            (
                "ssh's question",
                format!("ED25519 key fingerprint is {FINGERPRINT}."),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            (
                "quoted",
                format!("\"{FINGERPRINT}\","),
                Ok(HostKeyPin::Fingerprint(FINGERPRINT.to_owned())),
            ),
            ("hashed host", format!("|1|abc=|def= {LINE}"), Ok(key.clone())),
            ("key before a fingerprint", format!("{LINE} {FINGERPRINT}"), Ok(key.clone())),
            ("revoked", format!("@revoked * {LINE}"), Err(PinError::Revoked)),
            ("revoked, in a list", format!("- @revoked vm {LINE}"), Err(PinError::Revoked)),
            (
                "revoked, found by grep",
                format!("known_hosts:3:@revoked vm {LINE}"),
                Err(PinError::Revoked),
            ),
            ("revoked, quoted", format!("> @revoked vm {LINE}"), Err(PinError::Revoked)),
            ("revoked, invisibly", format!("\u{200b}@revoked vm {LINE}"), Err(PinError::Revoked)),
            (
                "authority",
                format!(" @cert-authority *.example {LINE}"),
                Err(PinError::CertificateAuthority),
            ),
            ("other marker", format!("@what {LINE}"), Err(PinError::Marker)),
            (
                "certificate",
                "ssh-ed25519-cert-v01@openssh.com AAAA".to_owned(),
                Err(PinError::Certificate),
            ),
            ("empty", " \n".to_owned(), Err(PinError::Empty)),
            (
                "md5 of ssh-keygen -l",
                "256 MD5:00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f root@vm (ED25519)"
                    .to_owned(),
                Err(PinError::Md5),
            ),
            ("short digest", "SHA256:abc".to_owned(), Err(PinError::Digest)),
            ("md5", "MD5:00:01".to_owned(), Err(PinError::Md5)),
            (
                "bare md5",
                "00:01:02:03:04:05:06:07:08:09:0a:0b:0c:0d:0e:0f".to_owned(),
                Err(PinError::Md5),
            ),
            ("no blob", "ssh-ed25519".to_owned(), Err(PinError::Key)),
            ("damaged blob", "ssh-ed25519 AAAA".to_owned(), Err(PinError::Key)),
            ("nonsense", "hello".to_owned(), Err(PinError::Unknown)),
        ];
        for (name, text, expected) in cases {
            assert_eq!(text.parse::<HostKeyPin>(), expected, "case: {name}");
        }
    }

    #[test]
    fn each_line_of_a_text_is_a_pin_and_none_is_passed_over() {
        let scan =
            format!("# host:22 SSH-2.0-OpenSSH_9.2\nhost {LINE}\n\n256 {FINGERPRINT} x (RSA)\n");
        assert_eq!(HostKeyPin::parse_lines(&scan).unwrap().len(), 2);
        let revoked = format!("host {LINE}\n@revoked host {LINE}\n");
        assert_eq!(HostKeyPin::parse_lines(&revoked), Err(PinError::Revoked));
        assert_eq!(HostKeyPin::parse_lines("# nothing\n"), Err(PinError::Empty));
    }

    #[test]
    fn both_sorts_of_pin_know_their_key() {
        let key = PublicKey::from_openssh(LINE).unwrap();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        assert!(LINE.parse::<HostKeyPin>().unwrap().matches(&key));
        assert!(HostKeyPin::Fingerprint(fingerprint).matches(&key));
        assert!(!HostKeyPin::Fingerprint(FINGERPRINT.to_owned()).matches(&key));
    }
}
