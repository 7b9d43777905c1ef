//! From the document's identity to what the control plane is given.

use runner_protocol::Secret;
use zeroize::Zeroizing;

use crate::{
    aws::{self, AssumeRole, Settings},
    config::{Config, Identity},
    session::Keys,
};

/// What the control plane needs of `config`.
pub(crate) fn settings(config: &Config) -> Settings {
    let identity = match &config.aws.identity {
        Identity::Static(static_keys) => aws::Identity::Keys(keys(static_keys.clone())),
        Identity::Environment => aws::Identity::Environment,
    };
    let assume_role = config.aws.assume_role.as_ref().map(|role| AssumeRole {
        role_arn: role.role_arn.clone(),
        external_id: role.external_id.clone(),
        session_name: role.session_name.clone().unwrap_or_else(|| aws::session_name(&config.name)),
    });
    Settings {
        identity,
        assume_role,
        region: config.aws.region.clone(),
        endpoint_url: config.aws.endpoint_url.clone(),
        instance_id: config.bastion.instance_id.clone(),
        ssh_port: config.bastion.ssh_port,
        reason: aws::reason(&config.name, config.job_id.as_deref()),
    }
}

/// Moves the secrets over; the document's copies are wiped.
pub(super) fn keys(keys: runner_protocol::Keys) -> Keys {
    let take = |secret: Secret| -> Zeroizing<String> { secret.into_inner() };
    Keys {
        access_key_id: keys.access_key_id.expose().to_owned(),
        secret_access_key: take(keys.secret_access_key),
        session_token: keys.session_token.map(take),
    }
}
