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

/// Parses `SHA256:…`, a public key line, or a line of `known_hosts` or of `ssh-keyscan`.
impl FromStr for HostKeyPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(PinError::Empty);
        }
        if text.starts_with("SHA256:") {
            let fingerprint =
                Fingerprint::from_str(text.trim_end_matches('=')).map_err(|_| PinError::Digest)?;
            return Ok(Self::Fingerprint(fingerprint.to_string()));
        }
        if text.starts_with("MD5:") || text.split(':').filter(|part| part.len() == 2).count() == 16
        {
            return Err(PinError::Md5);
        }
        let mut words = text.split_whitespace();
        let Some(kind) = words.by_ref().find(|word| is_key_type(word)) else {
            return Err(PinError::Unknown);
        };
        let blob = words.next().ok_or(PinError::Key)?;
        let key = PublicKey::from_openssh(&format!("{kind} {blob}")).map_err(|_| PinError::Key)?;
        if !is_usable(&key.algorithm()) {
            return Err(PinError::Unsupported { kind: kind.to_owned() });
        }
        Ok(Self::Key(Box::new(key)))
    }
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
    /// Neither a fingerprint nor a key.
    #[error("host key is neither `SHA256:…` nor a line such as `ssh-ed25519 AAAA…`")]
    Unknown,
}

fn is_key_type(word: &str) -> bool {
    word.starts_with("ssh-") || word.starts_with("ecdsa-sha2-") || word.starts_with("sk-")
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
            ("empty", " \n".to_owned(), Err(PinError::Empty)),
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
    fn both_sorts_of_pin_know_their_key() {
        let key = PublicKey::from_openssh(LINE).unwrap();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        assert!(LINE.parse::<HostKeyPin>().unwrap().matches(&key));
        assert!(HostKeyPin::Fingerprint(fingerprint).matches(&key));
        assert!(!HostKeyPin::Fingerprint(FINGERPRINT.to_owned()).matches(&key));
    }
}
