//! The config for the worker: without the AWS keys, and without what the monitor has done already.

use runner_protocol::{
    Config, EndpointUrl, Secret,
    config::{Compression, Engine},
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::ipc::Frame;

/// Serializes the part of `config` that the worker needs. The worker does not call AWS, so `aws.credentials` is always
/// `environment`, which stands for no keys.
pub(super) fn frame(config: &Config) -> serde_json::Result<Frame> {
    // Large enough for the secrets with JSON escapes, so that growing leaves no piece of a key behind.
    let secrets =
        [Some(&config.bastion.ssh_private_key), config.bastion.ssh_private_key_passphrase.as_ref()];
    let length: usize = secrets.into_iter().flatten().map(|secret| secret.expose().len()).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * length + OTHER_FIELDS_BYTES));
    serde_json::to_writer(&mut *bytes, &WorkerConfig::from(config))?;
    Ok(Frame { bytes, ..Frame::default() })
}

#[derive(Serialize)]
struct WorkerConfig<'a> {
    // First, before fields of unknown length.
    bastion: Bastion<'a>,
    name: &'a str,
    job_id: Option<&'a str>,
    aws: Aws<'a>,
    target: Target<'a>,
    listen: Listen<'a>,
    tunnel: Tunnel,
    timeouts: Timeouts,
    events: bool,
}

#[derive(Serialize)]
struct Bastion<'a> {
    ssh_private_key: &'a str,
    ssh_private_key_passphrase: Option<&'a str>,
    instance_id: &'a str,
    ssh_port: u16,
    ssh_user: &'a str,
    ssh_host_key: Option<&'a [String]>,
}

#[derive(Serialize)]
struct Aws<'a> {
    credentials: &'static str,
    assume_role: Option<Role<'a>>,
    region: &'a str,
    endpoint_url: Option<&'a str>,
    stream_endpoint_url: Option<&'a str>,
}

/// The role in the policy that a check prints.
#[derive(Serialize)]
struct Role<'a> {
    role_arn: &'a str,
}

#[derive(Serialize)]
struct Target<'a> {
    engine: Option<&'static str>,
    host: &'a str,
    port: u16,
}

#[derive(Serialize)]
struct Listen<'a> {
    allowed_uids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct Tunnel {
    sessions: usize,
    compression: &'static str,
    message_bytes: usize,
    max_connections: usize,
}

#[expect(clippy::struct_field_names, reason = "the config's names")]
#[derive(Serialize)]
struct Timeouts {
    ready_s: u64,
    connect_s: u64,
    reconnect_s: u64,
}

impl<'a> From<&'a Config> for WorkerConfig<'a> {
    fn from(config: &'a Config) -> Self {
        let Config { aws, bastion, target, tunnel, timeouts, .. } = config;
        Self {
            bastion: Bastion {
                ssh_private_key: bastion.ssh_private_key.expose(),
                ssh_private_key_passphrase: bastion
                    .ssh_private_key_passphrase
                    .as_ref()
                    .map(Secret::expose),
                instance_id: &bastion.instance_id,
                ssh_port: bastion.ssh_port,
                ssh_user: &bastion.ssh_user,
                ssh_host_key: Some(&*bastion.ssh_host_key).filter(|keys| !keys.is_empty()),
            },
            name: &config.name,
            job_id: config.job_id.as_deref(),
            aws: Aws {
                credentials: "environment",
                assume_role: aws.assume_role.as_ref().map(|role| Role { role_arn: &role.role_arn }),
                region: &aws.region,
                endpoint_url: aws.endpoint_url.as_ref().map(EndpointUrl::as_str),
                stream_endpoint_url: aws.stream_endpoint_url.as_ref().map(EndpointUrl::as_str),
            },
            target: Target {
                engine: target.engine.map(Engine::as_str),
                host: &target.host,
                port: target.port,
            },
            listen: Listen { allowed_uids: config.listen.allowed_uids.as_deref() },
            tunnel: Tunnel {
                sessions: tunnel.sessions,
                compression: match tunnel.compression {
                    Compression::Auto => "auto",
                    Compression::On => "on",
                    Compression::Off => "off",
                },
                message_bytes: tunnel.message_bytes,
                max_connections: tunnel.max_connections,
            },
            timeouts: Timeouts {
                ready_s: timeouts.ready.as_secs(),
                connect_s: timeouts.connect.as_secs(),
                reconnect_s: timeouts.reconnect.as_secs(),
            },
            events: config.events,
        }
    }
}

/// Space for all fields without secrets, with JSON escapes, in bytes.
const OTHER_FIELDS_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use runner_protocol::config::Identity;

    use super::*;

    const LARGEST: &str =
        include_str!("../../../runner-protocol/tests/golden/configs/largest.json");
    const SMALLEST: &str =
        include_str!("../../../runner-protocol/tests/golden/configs/smallest.json");

    #[test]
    fn worker_gets_all_that_it_needs_and_no_aws_key() {
        for written in [SMALLEST, LARGEST] {
            let given = Config::from_json(written).unwrap();
            let frame = frame(&given).unwrap();
            let text = str::from_utf8(&frame.bytes).unwrap();
            if let Identity::Static(keys) = &given.aws.identity {
                let all = [Some(&keys.access_key_id), Some(&keys.secret_access_key)];
                for key in all.into_iter().chain([keys.session_token.as_ref()]).flatten() {
                    assert!(!text.contains(key.expose()), "{written}");
                }
            }
            let mut got = Config::from_json(text).unwrap();
            assert_eq!(
                got.bastion.ssh_private_key.expose(),
                given.bastion.ssh_private_key.expose()
            );
            let passphrase = |config: &Config| {
                let passphrase = config.bastion.ssh_private_key_passphrase.as_ref();
                passphrase.map(|passphrase| passphrase.expose().to_owned())
            };
            assert_eq!(passphrase(&got), passphrase(&given));
            // The rest is unchanged, except for what only the monitor uses.
            got.aws.identity = given.aws.identity.clone();
            let role = given.aws.assume_role.clone();
            let arn = |role: &runner_protocol::config::AssumeRole| role.role_arn.clone();
            assert_eq!(got.aws.assume_role.as_ref().map(arn), role.as_ref().map(arn));
            got.aws.assume_role = role;
            (got.memo, got.hardening, got.health) =
                (given.memo.clone(), given.hardening, given.health);
            assert_eq!(got.listen.allowed_uids, given.listen.allowed_uids);
            got.listen = given.listen.clone();
            assert_eq!(format!("{got:?}"), format!("{given:?}"));
        }
    }
}
