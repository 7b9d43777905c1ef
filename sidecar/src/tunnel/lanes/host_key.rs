//! Types of host keys: a pinned fingerprint does not tell which one it is of.

use ssh_client::Error;

use crate::ssh::SshError;

/// A type of host key, of which a server presents one per connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Type {
    /// `ssh-ed25519`.
    Ed25519,
    /// `ecdsa-sha2-nistp256`, `384` and `521`.
    Ecdsa,
    /// `ssh-rsa`, with signatures by SHA-2.
    Rsa,
}

impl Type {
    const ALL: [Self; 3] = [Self::Ed25519, Self::Ecdsa, Self::Rsa];

    /// The types that the server of `error` did not present; none where that was not the trouble.
    pub(super) fn not_presented(error: &SshError) -> Vec<Self> {
        let SshError::Protocol(error) = error else { return Vec::new() };
        let Error::HostKeyMismatch { actual, .. } = &**error else { return Vec::new() };
        Self::ALL.into_iter().filter(|each| !actual.contains(each.key_type())).collect()
    }

    /// Names of its signature algorithms (RFC 4253 §6.6, RFC 5656, RFC 8332, RFC 8709).
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

/// Whether the server has no key of the type asked for, or another than the pinned one.
pub(super) fn is_not_the_pinned(error: &SshError) -> bool {
    let SshError::Protocol(error) = error else { return false };
    matches!(**error, Error::HostKeyMismatch { .. } | Error::NoCommonAlgorithm { .. })
}
