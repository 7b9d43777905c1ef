//! The first connection to the target: that it can be made, or why it cannot.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ssh_client::OpenFailure;
use tokio::time::timeout;

use crate::{
    commands::error::{Error, TargetCause, TargetError},
    ssh::{Channel, OpenError},
    tunnel::lanes::{Lane, Target},
};

/// Connects to the target through `lane`, within `limit`. Cancel-safe.
///
/// # Errors
///
/// What the `failed` line says: why the target is not reached, or why the lane has ended.
pub(crate) async fn reach(
    lane: &Lane,
    target: &Target,
    limit: Duration,
    ssh_port: u16,
) -> Result<Channel, Error> {
    let cause = match timeout(limit, open(lane, &target.host, target.port)).await {
        Ok(Ok(channel)) => return Ok(channel),
        Ok(Err(OpenError::Lost(_))) => return Err(lane.ended().await.into()),
        Ok(Err(error)) => {
            let prohibited = matches!(
                error,
                OpenError::Refused { reason: OpenFailure::AdministrativelyProhibited, .. }
            );
            if prohibited
                && calls_everything_prohibited(&lane.connected.server)
                && may_forward(lane, ssh_port, limit).await
            {
                TargetCause::Unexplained
            } else {
                TargetCause::Open(error)
            }
        }
        Err(_) => TargetCause::TimedOut { seconds: limit.as_secs() },
    };
    let Target { host, port } = target.clone();
    Err(TargetError { host, port, cause }.into())
}

async fn open(lane: &Lane, host: &str, port: u16) -> Result<Channel, OpenError> {
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    lane.ssh.open(host, port, own).await
}

/// Whether this server tells a target that it cannot resolve, or that fails at once, as one that is not allowed:
/// OpenSSH up to 7.4, as on Amazon Linux 2 and `CentOS` 7 (`server_input_channel_open` in `serverloop.c` of `V_7_4_P1`;
/// 7.5 has the reason from `connect_to`).
fn calls_everything_prohibited(identification: &str) -> bool {
    let Some((_, version)) = identification.split_once("OpenSSH_") else { return false };
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) <= (7, 4),
        _ => false,
    }
}

/// Whether sshd forwards at all: to itself, which is there.
async fn may_forward(lane: &Lane, ssh_port: u16, limit: Duration) -> bool {
    matches!(timeout(limit, open(lane, "127.0.0.1", ssh_port)).await, Ok(Ok(_)))
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
            assert_eq!(calls_everything_prohibited(identification), expected, "{identification}");
        }
    }
}
