//! A call that IAM denies: which policy denies it, and where to change that.

use runner_protocol::Blame;

use super::{
    endpoint::{Call, Endpoint, Resource},
    quote::{is_plain, quoted},
};
use crate::session::{ApiError, ApiErrorKind, IamAction, SSH_DOCUMENT, partition::partition};

/// The error for the `text` of an `AccessDeniedException`.
pub(super) fn denied(call: &Call<'_>, text: &str) -> ApiError {
    let denied = AccessDenied::parse(text);
    let action = denied.action.unwrap_or(call.action.as_str());
    let resource = denied.resource.map(str::to_owned).or_else(|| match &call.endpoint.resource {
        Resource::Role(arn) => Some(arn.clone()),
        Resource::Instance(_) | Resource::Caller => None,
    });
    let on = resource.map(|resource| format!(" on `{resource}`")).unwrap_or_default();
    // Of a text in another form nothing is known, so it is quoted as it is.
    let said = if denied.action.is_some() { denied.reason } else { Some(text) };
    let said = said.filter(|said| !said.trim().is_empty());
    let reason = said.map(|said| format!(": {}", quoted(said))).unwrap_or_default();
    let message = format!("`{action}` is not allowed{on}{reason}");
    let policy = denied.reason.map_or(PolicyKind::Identity, PolicyKind::of);
    let statement =
        Statement { action, on: &on, principal: denied.principal, is_deny: denied.is_deny() };
    let error = ApiError::new(ApiErrorKind::AccessDenied, message, policy.hint(call, &statement));
    match policy {
        // A statement in a policy of the identity would change nothing, so none is proposed.
        PolicyKind::VpcEndpoint => error.blaming(Blame::Operator),
        PolicyKind::Identity => error.denying(IamAction::from_name(action)),
        _ => error,
    }
}

/// The parts of AWS's text "User: U is not authorized to perform: A on resource: R because …".
#[derive(Debug, Default, Eq, PartialEq)]
struct AccessDenied<'a> {
    principal: Option<&'a str>,
    action: Option<&'a str>,
    resource: Option<&'a str>,
    /// "because no identity-based policy allows the … action" or "with an explicit deny in …" (IAM user guide,
    /// "Troubleshoot access denied error messages").
    reason: Option<&'a str>,
}

impl<'a> AccessDenied<'a> {
    fn parse(text: &'a str) -> Self {
        let after = |label: &str| {
            let (_, rest) = text.split_once(label)?;
            let word = rest.split_whitespace().next()?;
            Some(word.trim_end_matches(['.', ','])).filter(|word| is_plain(word))
        };
        let begins =
            [" because ", " with an explicit deny"].into_iter().find_map(|word| text.find(word));
        Self {
            principal: after("User: "),
            action: after("perform: "),
            resource: after("on resource: "),
            reason: begins.and_then(|at| text.get(at..)).map(str::trim),
        }
    }

    fn is_deny(&self) -> bool {
        self.reason.is_some_and(|reason| reason.contains("explicit deny"))
    }
}

/// The sort of policy that denies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum PolicyKind {
    /// Attached to the user or role; also where AWS does not name the policy.
    Identity,
    PermissionsBoundary,
    Session,
    ServiceControl,
    ResourceControl,
    VpcEndpoint,
    RoleTrust,
    Resource,
}

/// What a policy is to allow.
struct Statement<'a> {
    action: &'a str,
    /// Empty, or begins with a space.
    on: &'a str,
    principal: Option<&'a str>,
    is_deny: bool,
}

impl PolicyKind {
    fn of(reason: &str) -> Self {
        let reason = reason.to_ascii_lowercase();
        let named = KINDS.iter().find(|(words, _)| reason.contains(words));
        named.map_or(Self::Identity, |(_, kind)| *kind)
    }

    fn hint(self, call: &Call<'_>, statement: &Statement<'_>) -> String {
        let Statement { action, on, principal, is_deny } = statement;
        let verb = if *is_deny { "remove the explicit deny of" } else { "allow" };
        let who = principal.map(|who| format!("`{who}`"));
        let place = match self {
            Self::Identity => {
                let principal = who.map(|who| format!(" for {who}")).unwrap_or_default();
                return format!("{verb} `{action}`{on}{principal}{}", further(call));
            }
            Self::PermissionsBoundary => format!(
                "in the permissions boundary of {}; a policy that is attached beside it does not help",
                who.unwrap_or_else(|| "the user or role".to_owned())
            ),
            Self::Session => {
                "in the session policy that was given when these temporary keys were issued".to_owned()
            }
            Self::ServiceControl => {
                "in the service control policy of the AWS organization, which its administrators change; no policy \
                 of the account itself does"
                    .to_owned()
            }
            Self::ResourceControl => {
                "in the resource control policy of the AWS organization, which its administrators change; no policy \
                 of the account itself does"
                    .to_owned()
            }
            Self::VpcEndpoint => format!(
                "in the policy of the VPC endpoint through which the sidecar reaches `{}`",
                call.endpoint.host
            ),
            Self::RoleTrust => {
                "in the role's trust policy, for the same caller and with the external id if there is one".to_owned()
            }
            Self::Resource => "in the policy of that resource".to_owned(),
        };
        format!("{verb} `{action}`{on} {place}")
    }
}

/// What a policy of the identity needs besides.
fn further(call: &Call<'_>) -> String {
    let Endpoint { region, resource, .. } = call.endpoint;
    match (resource, call.action) {
        (Resource::Role(_), _) => {
            "; the role's trust policy must allow the same caller, with the external id if there is one".to_owned()
        }
        (Resource::Caller, _) => {
            // AWS allows it to everybody: only an explicit deny, such as of a service control policy, forbids it.
            String::new()
        }
        (Resource::Instance(id), IamAction::StartSession) => format!(
            "; it is needed on the instance `{id}` and on `arn:{}:ssm:{region}::document/{SSH_DOCUMENT}`",
            partition(region).id
        ),
        (Resource::Instance(_), _) => "; `ssm-sidecar policy` prints the statement".to_owned(),
    }
}

/// AWS's names of policies, in lower case (IAM user guide, "Troubleshoot access denied error messages").
const KINDS: [(&str, PolicyKind); 9] = [
    ("service control policy", PolicyKind::ServiceControl),
    ("resource control policy", PolicyKind::ResourceControl),
    ("permissions boundary", PolicyKind::PermissionsBoundary),
    ("vpc endpoint policy", PolicyKind::VpcEndpoint),
    ("session policy", PolicyKind::Session),
    ("role trust policy", PolicyKind::RoleTrust),
    ("identity-based policy", PolicyKind::Identity),
    ("resource-based policy", PolicyKind::Resource),
    ("resource policy", PolicyKind::Resource),
];
