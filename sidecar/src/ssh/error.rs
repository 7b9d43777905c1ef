//! Why a connection to sshd is over.

use std::sync::Arc;

use runner_protocol::{ErrorCode, Failure};
use ssh_client::{Error, Login};

use crate::runtime::failure::ToFailure;

/// Why the connection is over.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SshError {
    /// A refusal, a violation of the protocol, a disconnect.
    #[error(transparent)]
    Protocol(Arc<Error>),
    /// The byte stream below ended.
    #[error("the byte stream to sshd ended")]
    StreamEnded,
}

impl SshError {
    /// Whether sshd says that it takes no connection at present, or none from this source.
    pub(crate) fn is_busy(&self) -> bool {
        let Self::Protocol(error) = self else { return false };
        match **error {
            Error::Disconnected { reason, .. } | Error::LoginEnded { reason, .. } => {
                BUSY.contains(&reason)
            }
            _ => false,
        }
    }

    /// Whether sshd has answered a login with this key, and refused.
    pub(crate) fn is_key_refused(&self) -> bool {
        let Self::Protocol(error) = self else { return false };
        matches!(**error, Error::AuthRejected { .. } | Error::LoginEnded { .. }) && !self.is_busy()
    }
}

impl From<Error> for SshError {
    fn from(error: Error) -> Self {
        Self::Protocol(Arc::new(error))
    }
}

impl ToFailure for SshError {
    fn code(&self) -> ErrorCode {
        let Self::Protocol(error) = self else { return ErrorCode::SessionLost };
        match **error {
            Error::Disconnected { .. } | Error::LoginEnded { .. } if self.is_busy() => {
                ErrorCode::SshBusy
            }
            Error::AuthRejected { .. }
            | Error::AuthIncomplete { .. }
            | Error::LoginEnded { .. } => ErrorCode::SshAuthRejected,
            Error::HostKeyMismatch { .. } | Error::HostKeyUnproven { .. } => {
                ErrorCode::SshHostKeyMismatch
            }
            Error::Signing { .. } => ErrorCode::ConfigKeyUnreadable,
            Error::KeepaliveTimeout { .. } => ErrorCode::SessionLost,
            // Wrong calls of the state machine by this process, and failures of the library for cryptography.
            Error::Crypto { .. } | Error::ChannelsExhausted { .. } | Error::Ended => {
                ErrorCode::Internal
            }
            Error::NoCommonAlgorithm { .. }
            | Error::Disconnected { .. }
            | Error::Integrity
            | Error::NotSsh { .. }
            | Error::Protocol { .. } => ErrorCode::SshProtocol,
        }
    }

    fn hint(&self) -> String {
        let Self::Protocol(error) = self else {
            return "try again; if it happens again, look at sshd's log on the bastion".to_owned();
        };
        let hint = match &**error {
            Error::Disconnected { .. } | Error::LoginEnded { .. } if self.is_busy() => {
                "try again later: sshd says itself that it takes no connection now, or none from 127.0.0.1, from \
                 where all logins through SSM come"
            }
            Error::AuthRejected { login, .. } => return key_hint(login),
            Error::LoginEnded { login, text, .. } if text.contains(TOO_MANY_FAILURES) => {
                return key_hint(login);
            }
            Error::LoginEnded { login, .. } => {
                return format!(
                    "see sshd's log on the bastion for what it means by that; if it is the key: {}",
                    key_hint(login)
                );
            }
            Error::AuthIncomplete { .. } => {
                "let sshd's AuthenticationMethods be `publickey` alone for this user"
            }
            Error::HostKeyMismatch { .. } | Error::HostKeyUnproven { .. } => {
                "if the bastion was rebuilt on purpose, update `bastion.ssh_host_key`; if not, find out who \
                 answers in its place"
            }
            Error::Signing { .. } => {
                "give `bastion.ssh_private_key` as an unhardened Ed25519, ECDSA or RSA key of 2,048 bits or more"
            }
            Error::NoCommonAlgorithm { kind, .. } => negotiation_hint(kind),
            Error::KeepaliveTimeout { .. } => "check that the bastion is alive, then try again",
            Error::Crypto { .. } | Error::ChannelsExhausted { .. } | Error::Ended => {
                Failure::REPORT_HINT
            }
            Error::Disconnected { .. } => {
                "read sshd's log on the bastion: it ended the connection for the reason given"
            }
            Error::Integrity | Error::NotSsh { .. } | Error::Protocol { .. } => {
                "check that `bastion.ssh_port` is sshd's; update OpenSSH on the bastion if it is"
            }
        };
        hint.to_owned()
    }
}

/// What to change where sshd refuses a user's key: it never says why.
fn key_hint(login: &Login) -> String {
    let Login { user, accepted, rsa_bits, .. } = login;
    if accepted.is_some() {
        return "give `bastion.ssh_private_key` as a key of a type that this sshd takes (on hosts with a FIPS policy \
                ECDSA, not Ed25519), or let its PubkeyAcceptedAlgorithms take this one"
            .to_owned();
    }
    let size = match rsa_bits {
        Some(bits) => format!("RequiredRSASize (this key has {bits} bits), "),
        None => String::new(),
    };
    format!(
        "put the public half of `bastion.ssh_private_key` into the authorized_keys of `{user}`, or set \
         `bastion.ssh_user` to the user of this image (Amazon Linux and RHEL `ec2-user`, Ubuntu `ubuntu`, Debian \
         `admin`, Rocky `rocky`); if it is there, look for `from=` before it (through SSM every login comes from \
         127.0.0.1), and at sshd's PubkeyAcceptedAlgorithms, {size}AllowUsers and AllowGroups"
    )
}

/// What to change where client and server share no algorithm of `kind`.
fn negotiation_hint(kind: &str) -> &'static str {
    match kind {
        "key exchange method" => {
            "let KexAlgorithms of the bastion's sshd offer curve25519-sha256 or another method that the client offers"
        }
        "host key algorithm" => {
            "give the bastion's sshd a host key of type Ed25519, ECDSA or RSA (HostKey), and let its HostKeyAlgorithms \
             offer it, an RSA key with rsa-sha2-256 or rsa-sha2-512"
        }
        "cipher" => {
            "let Ciphers of the bastion's sshd offer aes256-gcm@openssh.com, aes256-ctr or another one that the \
             client offers"
        }
        "MAC" => {
            "let MACs of the bastion's sshd offer hmac-sha2-256-etm@openssh.com, hmac-sha2-256 or another one \
             that the client offers"
        }
        "compression" => {
            "set `tunnel.compression` to `\"auto\"`, which compresses where sshd does, or set `Compression yes` in \
             sshd_config on the bastion"
        }
        _ => "update OpenSSH on the bastion to 7.4 or later",
    }
}

/// Reasons of a DISCONNECT (RFC 4253 section 11.1) that are no answer to this user and key: `HOST_NOT_ALLOWED_TO_CONNECT`,
/// `SERVICE_NOT_AVAILABLE`, `TOO_MANY_CONNECTIONS`.
const BUSY: [u32; 3] = [1, 7, 12];

/// OpenSSH's words at the limit of `MaxAuthTries` (seen with 9.2; `auth.c`): as plain as the refusal before it.
const TOO_MANY_FAILURES: &str = "Too many authentication failures";
