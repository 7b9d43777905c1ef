//! From the document's identity to what the control plane is given.

use runner_protocol::{Request, Secret};
use zeroize::Zeroizing;

use crate::{
    aws::{self, AssumeRole, Settings},
    config::{Aws, Identity},
    session::Keys,
};

/// What the control plane needs of `request`, whose `aws` is decoded already.
pub(crate) fn settings(request: &Request, aws: &Aws) -> Settings {
    let identity = match &aws.identity {
        Identity::Static(static_keys) => aws::Identity::Keys(keys(static_keys.clone())),
        Identity::Environment => aws::Identity::Environment,
    };
    let assume_role = aws.assume_role.as_ref().map(|role| AssumeRole {
        role_arn: role.role_arn.clone(),
        external_id: role.external_id.clone(),
        session_name: role.session_name.clone().unwrap_or_else(|| aws::session_name(&request.name)),
    });
    Settings {
        identity,
        assume_role,
        region: aws.region.clone(),
        endpoint_url: aws.endpoint_url.clone(),
        instance_id: request.bastion.instance_id.clone(),
        ssh_port: request.bastion.ssh_port,
        reason: aws::reason(&request.name, request.job_id.as_deref()),
    }
}

/// Moves the secrets over; the document's copies are wiped.
pub(crate) fn keys(keys: runner_protocol::Keys) -> Keys {
    let take = |secret: Secret| -> Zeroizing<String> { secret.into_inner() };
    Keys {
        access_key_id: keys.access_key_id.expose().to_owned(),
        secret_access_key: take(keys.secret_access_key),
        session_token: keys.session_token.map(take),
    }
}
