//! The first connection to the target: opened, or diagnosed.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use runner_protocol::ErrorCode;
use ssh_client::OpenFailure;
use tokio::time::timeout;

use super::{
    TunnelError,
    lanes::{Lane, LaneConfig},
};
use crate::{
    runtime::failure::ToFailure,
    ssh::{Channel, ChannelOpenError},
};

/// Why the target was not reached.
#[derive(Debug, thiserror::Error)]
#[error("target {host}:{port} not reached from the bastion: {cause}")]
pub(crate) struct TargetError {
    /// `target.host`.
    pub(crate) host: String,
    /// `target.port`.
    pub(crate) port: u16,
    pub(crate) cause: TargetCause,
    /// `bastion.ssh_user`.
    pub(crate) user: String,
    /// What sshd said during the login.
    pub(crate) banner: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetCause {
    /// sshd refused the channel.
    #[error("{0}")]
    Refused(ChannelOpenError),
    /// OpenSSH up to 7.4 reports every failure as `administratively prohibited`; forwarding itself works.
    #[error("the bastion cannot connect to it, and does not say why")]
    Unexplained,
    #[error("no answer within {seconds} s")]
    TimedOut {
        /// `timeouts.connect_s`.
        seconds: u64,
    },
}

/// Connects to the target through `lane`, within `limit`. Cancel-safe.
///
/// # Errors
///
/// [`TunnelError::Target`], or [`TunnelError::Lane`] when the lane has ended.
pub(crate) async fn connect(
    lane: &Lane,
    config: &LaneConfig,
    limit: Duration,
) -> Result<Channel, TunnelError> {
    let target = &config.target;
    let cause = match timeout(limit, open(lane, &target.host, target.port)).await {
        Ok(Ok(channel)) => return Ok(channel),
        Ok(Err(ChannelOpenError::Lost(_))) => return Err(lane.ended().await.into()),
        Ok(Err(error)) => {
            if is_prohibited(&error)
                && gives_one_reason_for_everything(&lane.server.server)
                && is_forwarding_allowed(lane, config.ssh_port, limit).await
            {
                TargetCause::Unexplained
            } else {
                TargetCause::Refused(error)
            }
        }
        Err(_) => TargetCause::TimedOut { seconds: limit.as_secs() },
    };
    let (user, banner) = (config.ssh.user.clone(), lane.ssh.words());
    Err(TargetError { host: target.host.clone(), port: target.port, cause, user, banner }.into())
}

async fn open(lane: &Lane, host: &str, port: u16) -> Result<Channel, ChannelOpenError> {
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    lane.ssh.open(host, port, own).await
}

fn is_prohibited(error: &ChannelOpenError) -> bool {
    let prohibited = OpenFailure::AdministrativelyProhibited;
    matches!(error, ChannelOpenError::Refused { reason, .. } if *reason == prohibited)
}

/// Whether this server reports a target that it cannot resolve, or that fails at once, as one that is not allowed:
/// OpenSSH up to 7.4, as on Amazon Linux 2 and `CentOS` 7 (`server_input_channel_open` in `serverloop.c` of `V_7_4_P1`;
/// 7.5 has the reason from `connect_to`).
fn gives_one_reason_for_everything(identification: &str) -> bool {
    let Some((_, version)) = identification.split_once("OpenSSH_") else { return false };
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) <= (7, 4),
        _ => false,
    }
}

/// Whether sshd forwards at all: opens a channel to sshd's own port, on the bastion's loopback.
async fn is_forwarding_allowed(lane: &Lane, ssh_port: u16, limit: Duration) -> bool {
    matches!(timeout(limit, open(lane, "127.0.0.1", ssh_port)).await, Ok(Ok(_)))
}

impl ToFailure for TargetError {
    fn code(&self) -> ErrorCode {
        match &self.cause {
            TargetCause::Refused(ChannelOpenError::Refused { reason, description }) => match reason
            {
                OpenFailure::AdministrativelyProhibited => ErrorCode::SshForwardingDenied,
                _ if is_unresolved(description) => ErrorCode::TargetUnresolved,
                _ => ErrorCode::TargetUnreachable,
            },
            TargetCause::Refused(ChannelOpenError::Lost(error)) => error.code(),
            TargetCause::Unexplained => ErrorCode::TargetUnresolved,
            TargetCause::TimedOut { .. } => ErrorCode::TimeoutTarget,
        }
    }

    fn hint(&self) -> String {
        let Self { host, port, cause, user, banner } = self;
        match cause {
            TargetCause::Refused(ChannelOpenError::Refused { reason, description }) => match reason
            {
                OpenFailure::AdministrativelyProhibited => {
                    match banner.as_ref().filter(|words| is_password_expired(words)) {
                        Some(words) => format!(
                            "set a new password for `{user}` on the bastion, or let it never expire (`chage -l {user}` \
                             shows its state, `chage -M -1 {user}` changes it): until then sshd forwards nothing for \
                             this user; it said at the login: `{words}`"
                        ),
                        None => format!(
                            "set `AllowTcpForwarding yes` (or `local`) in sshd_config on the bastion and let \
                             PermitOpen and the key's options allow {host}:{port}; an expired password of `{user}` \
                             switches forwarding off, too (`chage -l {user}`)"
                        ),
                    }
                }
                _ if is_unresolved(description) => format!(
                    "correct `target.host`, or the DNS settings of the bastion's VPC: the bastion cannot resolve \
                         `{host}`"
                ),
                _ if is_connection_refused(description) => format!(
                    "start the database, or correct `target.port`: {host} is there, but nothing listens on \
                         its port {port}"
                ),
                _ => format!(
                    "check that the database listens on {host}:{port} and that its security group lets the \
                         bastion in"
                ),
            },
            TargetCause::Refused(ChannelOpenError::Lost(error)) => error.hint(),
            TargetCause::Unexplained => format!(
                "check on the bastion that `{host}` resolves (`getent hosts {host}`) and that PermitOpen and the \
                 key's options allow {host}:{port}: its old sshd gives one answer to all of these"
            ),
            TargetCause::TimedOut { .. } => format!(
                "let the bastion in by the security group of {host}:{port}, which drops what it does not allow; or \
                 raise `timeouts.connect_s`"
            ),
        }
    }
}

/// Whether sshd demands a new password: after that it forwards nothing (`pam_unix`, seen with 1.5: "You are required to
/// change your password immediately (administrator enforced)."; OpenSSH's own: "WARNING: Your password has expired.").
fn is_password_expired(words: &str) -> bool {
    let words = words.to_lowercase();
    words.contains("password") && (words.contains("change") || words.contains("expired"))
}

/// Whether the target's host refused the connection: OpenSSH (seen with 9.2; `channel_post_connecting` in `channels.c`)
/// sends the text of `strerror(ECONNREFUSED)`, the same in glibc, musl and the BSDs.
fn is_connection_refused(description: &str) -> bool {
    description.to_lowercase().contains("connection refused")
}

/// Whether the bastion cannot resolve the target's name: OpenSSH (seen with 9.2; `connect_to_helper` in `channels.c`)
/// sends `CONNECT_FAILED` with the text of `gai_strerror`.
fn is_unresolved(description: &str) -> bool {
    let description = description.to_lowercase();
    [
        // glibc's EAI_NONAME ("Name or service not known"), the BSDs' ("… nor servname provided, or not known").
        "not known",
        // glibc's EAI_AGAIN ("Temporary failure in name resolution") and EAI_FAIL ("Non-recoverable failure in …").
        "name resolution",
        // glibc's EAI_NODATA ("No address associated with hostname").
        "no address",
        // musl's EAI_NONAME ("Name does not resolve").
        "does not resolve",
        // Servers other than OpenSSH, such as Java's.
        "unknown host",
    ]
    .iter()
    .any(|words| description.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssh_up_to_7_4_gives_one_reason_for_everything() {
        for (identification, expected) in [
            ("SSH-2.0-OpenSSH_7.4", true),
            ("SSH-2.0-OpenSSH_6.6.1p1 Ubuntu-2ubuntu2.13", true),
            ("SSH-2.0-OpenSSH_7.5", false),
            ("SSH-2.0-OpenSSH_7.10", false),
            ("SSH-2.0-OpenSSH_8.7", false),
            ("SSH-2.0-OpenSSH_for_Windows_8.1", false),
            ("SSH-2.0-dropbear_2022.83", false),
        ] {
            assert_eq!(
                gives_one_reason_for_everything(identification),
                expected,
                "{identification}"
            );
        }
    }
}
