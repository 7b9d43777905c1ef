//! The settings from which the SDK clients are built.

use http::Uri;
use runner_protocol::{Config, Secret};
use zeroize::Zeroizing;

use super::{AssumeRole, Identity};
use crate::{
    config::{self, Aws},
    session::{Keys, iam_policy::role_session_name},
};

/// Identity, endpoint and bastion of the control plane.
#[derive(Debug)]
pub(crate) struct SsmSettings {
    pub(crate) identity: Identity,
    /// Assumed first, with the credentials of `identity`.
    pub(crate) assume_role: Option<AssumeRole>,
    pub(crate) region: String,
    /// In place of the region's public SSM endpoint. One at loopback serves as STS endpoint too.
    pub(crate) endpoint_url: Option<Uri>,
    pub(crate) instance_id: String,
    /// The port of sshd on the bastion's loopback.
    pub(crate) ssh_port: u16,
    /// Shown in the session's history, see [`reason`].
    pub(crate) reason: String,
}

impl SsmSettings {
    /// Takes what concerns AWS from `config`. `aws`: its `aws` section, decoded.
    pub(crate) fn from_config(config: &Config, aws: &Aws) -> Self {
        let identity = match &aws.identity {
            config::Identity::Static(keys) => Identity::Keys(to_keys(keys.clone())),
            config::Identity::Environment => Identity::Environment,
        };
        let assume_role = aws.assume_role.as_ref().map(|role| AssumeRole {
            role_arn: role.role_arn.clone(),
            external_id: role.external_id.clone(),
            session_name: role
                .session_name
                .clone()
                .unwrap_or_else(|| role_session_name(&config.name)),
        });
        Self {
            identity,
            assume_role,
            region: aws.region.clone(),
            endpoint_url: aws.endpoint_url.clone(),
            instance_id: config.bastion.instance_id.clone(),
            ssh_port: config.bastion.ssh_port,
            reason: reason(&config.name, config.job_id.as_deref()),
        }
    }
}

/// Moves secret and session token without a copy. The key's id is copied, and its original wiped.
pub(crate) fn to_keys(keys: runner_protocol::Keys) -> Keys {
    let take = |secret: Secret| -> Zeroizing<String> { secret.into_inner() };
    Keys {
        access_key_id: keys.access_key_id.expose().to_owned(),
        secret_access_key: take(keys.secret_access_key),
        session_token: keys.session_token.map(take),
    }
}

/// Returns the `Reason` of a session: the connection's name and the runner's job. At most 256 characters without
/// line breaks, as the API demands.
pub(super) fn reason(name: &str, job_id: Option<&str>) -> String {
    let reason = match job_id {
        Some(job_id) => format!("ssm-sidecar {name} (job {job_id})"),
        None => format!("ssm-sidecar {name}"),
    };
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

/// Longest `Reason` of `StartSession`, in characters (API reference).
pub(super) const MAX_REASON: usize = 256;
