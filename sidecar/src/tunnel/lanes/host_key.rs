//! Types of host keys: a pinned fingerprint does not reveal the type of its key.

use ssh_client::Error;

use crate::ssh::SshError;

/// A type of host key. A server presents one per connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HostKeyType {
    /// `ssh-ed25519`.
    Ed25519,
    /// `ecdsa-sha2-nistp256`, `384` and `521`.
    Ecdsa,
    /// `ssh-rsa`, with signatures by SHA-2.
    Rsa,
}

impl HostKeyType {
    const ALL: [Self; 3] = [Self::Ed25519, Self::Ecdsa, Self::Rsa];

    /// The types that the server did not present when `error` is a mismatch; empty for other errors.
    pub(super) fn not_presented(error: &SshError) -> Vec<Self> {
        let SshError::Protocol(error) = error else { return Vec::new() };
        let Error::HostKeyMismatch { actual, .. } = &**error else { return Vec::new() };
        Self::ALL.into_iter().filter(|each| !actual.contains(each.key_type())).collect()
    }

    /// The names of its signature algorithms (RFC 4253 §6.6, RFC 5656, RFC 8332, RFC 8709).
    pub(super) fn names(self) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Ed25519 => &["ssh-ed25519"],
            Self::Ecdsa => &["ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"],
            Self::Rsa => &["rsa-sha2-512", "rsa-sha2-256"],
        };
        names.iter().map(ToString::to_string).collect()
    }

    const fn key_type(self) -> &'static str {
        match self {
            Self::Ed25519 => "ssh-ed25519",
            Self::Ecdsa => "ecdsa-sha2",
            Self::Rsa => "ssh-rsa",
        }
    }
}

/// Whether the server has no key of the requested type, or another key than the pinned one.
pub(super) fn is_mismatch(error: &SshError) -> bool {
    let SshError::Protocol(error) = error else { return false };
    matches!(**error, Error::HostKeyMismatch { .. } | Error::NoCommonAlgorithm { .. })
}
