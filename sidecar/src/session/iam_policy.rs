//! The least-privilege IAM policy for a config, with its ARNs.

use runner_protocol::{Config, config};
use serde_json::{Value, json};

use super::{IamAction, SSH_DOCUMENT, partition::partition};

/// The resources and the principal of a policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Scope {
    instance_id: String,
    region: String,
    /// The customer's; `*` where it is not known.
    account: String,
    role_arn: Option<String>,
    starter: Starter,
}

/// The principal that starts the sessions: their ids begin with its name.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Starter {
    /// An IAM user, whose name is the policy variable `aws:username`.
    User,
    /// A role session of this name; there is no policy variable for it.
    RoleSession(String),
    /// A role session of unknown name.
    Unknown,
}

impl Scope {
    pub(crate) fn from_config(config: &Config) -> Self {
        let (instance_id, region) = (&config.bastion.instance_id, &config.aws.region);
        match (&config.aws.assume_role, &config.aws.identity) {
            (Some(role), _) => {
                let session = role.session_name.clone();
                let session = session.unwrap_or_else(|| role_session_name(&config.name));
                Self::of_role(instance_id, region, &role.role_arn, session)
            }
            (None, config::Identity::Static(keys)) if keys.session_token.is_none() => {
                Self::of_user(instance_id, region)
            }
            // Temporary keys are usually a role's, and so are those of a pod's environment.
            (None, _) => Self { starter: Starter::Unknown, ..Self::of_user(instance_id, region) },
        }
    }

    /// For the keys of a user in an unknown account.
    pub(crate) fn of_user(instance_id: &str, region: &str) -> Self {
        Self {
            instance_id: instance_id.to_owned(),
            region: region.to_owned(),
            account: "*".to_owned(),
            role_arn: None,
            starter: Starter::User,
        }
    }

    /// For a role that is assumed with the session name `session`; its account is the instance's.
    pub(crate) fn of_role(
        instance_id: &str,
        region: &str,
        role_arn: &str,
        session: String,
    ) -> Self {
        Self {
            account: account_of(role_arn).unwrap_or("*").to_owned(),
            role_arn: Some(role_arn.to_owned()),
            starter: Starter::RoleSession(session),
            ..Self::of_user(instance_id, region)
        }
    }

    /// Returns the scope for the caller `arn`, as `GetCallerIdentity` returns it: with its account, and with its user
    /// or role session as the principal. Any other kind of caller leaves the principal as it was.
    #[must_use]
    pub(crate) fn for_caller(mut self, arn: &str) -> Self {
        if let Some(account) = account_of(arn) {
            account.clone_into(&mut self.account);
        }
        let resource = arn.splitn(6, ':').nth(5).unwrap_or_default();
        match resource.split_once('/') {
            Some(("assumed-role", role)) => {
                let (_, session) = role.rsplit_once('/').unwrap_or_default();
                self.starter = Starter::RoleSession(session.to_owned());
            }
            Some(("user", _)) => self.starter = Starter::User,
            _ => (),
        }
        self
    }

    /// The policy of the principal that starts the session: the role where one is assumed, else the keys' user.
    pub(crate) fn session_policy(&self) -> Value {
        policy(&[
            self.start_instance(),
            self.start_document(),
            self.own_sessions(&IamAction::OWN_SESSIONS),
        ])
    }

    /// The policy of the keys that assume the role; `None` without `aws.assume_role`.
    pub(crate) fn caller_policy(&self) -> Option<Value> {
        Some(policy(&[self.assume_role()?]))
    }

    /// The statement that allows `action`; `None` where no statement is needed.
    pub(crate) fn statement_for(&self, action: IamAction) -> Option<Value> {
        match action {
            IamAction::StartSession => {
                let both = json!([self.instance_arn(), self.document_arn()]);
                Some(start(&both))
            }
            IamAction::AssumeRole => self.assume_role(),
            IamAction::ResumeSession | IamAction::TerminateSession | IamAction::OpenDataChannel => {
                Some(self.own_sessions(&[action]))
            }
            IamAction::GetCallerIdentity => None,
        }
    }

    /// One statement that allows `actions` on the principal's own sessions.
    pub(crate) fn own_sessions(&self, actions: &[IamAction]) -> Value {
        let actions: Vec<&str> = actions.iter().map(|action| action.as_str()).collect();
        let Self { region, account, .. } = self;
        let partition = partition(region).id;
        let named = |name: &str| format!("arn:{partition}:ssm:{region}:{account}:session/{name}");
        // Ids begin with the name of the user or of the role session. AWS's newest samples use `aws:userid`, which is
        // neither; to allow it as well does no harm.
        let begins_with = |name: &str| [named(&format!("{name}-*")), named("${aws:userid}-*")];
        let resources = match &self.starter {
            Starter::User => begins_with("${aws:username}"),
            Starter::RoleSession(name) => begins_with(name),
            Starter::Unknown => {
                // The tag that Session Manager gives each session, as in AWS's sample for assumed roles.
                let tag = "ssm:resourceTag/aws:ssmmessages:session-id";
                return json!({
                    "Sid": "OwnSessions",
                    "Effect": "Allow",
                    "Action": actions,
                    "Resource": named("*"),
                    "Condition": { "StringLike": { tag: "${aws:userid}" } },
                });
            }
        };
        json!({
            "Sid": "OwnSessions",
            "Effect": "Allow",
            "Action": actions,
            "Resource": resources,
        })
    }

    fn start_instance(&self) -> Value {
        start(&Value::String(self.instance_arn()))
    }

    fn start_document(&self) -> Value {
        json!({
            "Sid": "StartSessionForSsh",
            "Effect": "Allow",
            "Action": IamAction::StartSession.as_str(),
            "Resource": self.document_arn(),
        })
    }

    fn assume_role(&self) -> Option<Value> {
        Some(json!({
            "Sid": "AssumeRole",
            "Effect": "Allow",
            "Action": IamAction::AssumeRole.as_str(),
            "Resource": self.role_arn.as_ref()?,
        }))
    }

    fn instance_arn(&self) -> String {
        let Self { instance_id, region, account, .. } = self;
        let partition = partition(region).id;
        if instance_id.starts_with("mi-") {
            format!("arn:{partition}:ssm:{region}:{account}:managed-instance/{instance_id}")
        } else {
            format!("arn:{partition}:ec2:{region}:{account}:instance/{instance_id}")
        }
    }

    fn document_arn(&self) -> String {
        let region = &self.region;
        format!("arn:{}:ssm:{region}::document/{SSH_DOCUMENT}", partition(region).id)
    }
}

fn start(resource: &Value) -> Value {
    json!({
        "Sid": "StartSessionOnBastion",
        "Effect": "Allow",
        "Action": IamAction::StartSession.as_str(),
        "Resource": resource,
        // Without this condition, any SSM document may be used on the instance.
        "Condition": { "BoolIfExists": { "ssm:SessionDocumentAccessCheck": "true" } },
    })
}

fn policy(statements: &[Value]) -> Value {
    json!({ "Version": "2012-10-17", "Statement": statements })
}

fn account_of(arn: &str) -> Option<&str> {
    let account = arn.split(':').nth(4)?;
    (account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit())).then_some(account)
}

/// Makes a role session name from the name of the connection: up to 64 characters of those that STS accepts.
pub(crate) fn role_session_name(name: &str) -> String {
    let accepted = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name = name.chars().map(|c| if accepted(c) { c } else { '-' });
    "ssm-sidecar-".chars().chain(name).take(MAX_ROLE_SESSION_NAME).collect()
}

/// Longest `RoleSessionName`, in characters (STS API reference).
const MAX_ROLE_SESSION_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arns_follow_partition_account_and_sort_of_instance() {
        let role = "arn:aws-cn:iam::123456789012:role/transfer";
        let cases = [
            ("i-0123456789abcdef0", "eu-west-1", None, "arn:aws:ec2:eu-west-1:*:instance/"),
            (
                "mi-0123456789abcdef0",
                "us-gov-west-1",
                None,
                "arn:aws-us-gov:ssm:us-gov-west-1:*:managed-instance/",
            ),
            (
                "i-01234567",
                "cn-north-1",
                Some(role),
                "arn:aws-cn:ec2:cn-north-1:123456789012:instance/",
            ),
        ];
        for (instance, region, role, prefix) in cases {
            let scope = match role {
                Some(role) => Scope::of_role(instance, region, role, "transfer".to_owned()),
                None => Scope::of_user(instance, region),
            };
            let policy = scope.session_policy();
            assert_eq!(policy["Statement"][0]["Resource"], format!("{prefix}{instance}"));
            let document = policy["Statement"][1]["Resource"].as_str().unwrap();
            let (partition, _) = prefix[4..].split_once(':').unwrap();
            let expected = format!("arn:{partition}:ssm:{region}::document/AWS-StartSSHSession");
            assert_eq!(document, expected);
            assert_eq!(scope.caller_policy().is_some(), role.is_some());
        }
    }

    #[test]
    fn statement_of_one_action_names_no_other() {
        let scope = Scope::of_user("i-01234567", "eu-west-1")
            .for_caller("arn:aws:iam::123456789012:user/transfer");
        for action in IamAction::OWN_SESSIONS {
            assert_eq!(scope.statement_for(action).unwrap()["Action"], json!([action.as_str()]));
        }
        let start = scope.statement_for(IamAction::StartSession).unwrap();
        assert_eq!(start["Resource"][0], "arn:aws:ec2:eu-west-1:123456789012:instance/i-01234567");
        assert_eq!(scope.statement_for(IamAction::AssumeRole), None);
        assert_eq!(scope.statement_for(IamAction::GetCallerIdentity), None);
    }

    #[test]
    fn own_sessions_are_named_by_the_principal_that_starts_them() {
        let user = Scope::of_user("i-01234567", "eu-west-1");
        let role = "arn:aws:iam::123456789012:role/a";
        let role = Scope::of_role("i-01234567", "eu-west-1", role, "orders".to_owned());
        let told =
            user.clone().for_caller("arn:aws:sts::123456789012:assumed-role/a/someone@example");
        let first =
            |scope: &Scope| scope.own_sessions(&IamAction::OWN_SESSIONS)["Resource"][0].clone();
        assert_eq!(first(&user), "arn:aws:ssm:eu-west-1:*:session/${aws:username}-*");
        assert_eq!(first(&role), "arn:aws:ssm:eu-west-1:123456789012:session/orders-*");
        assert_eq!(first(&told), "arn:aws:ssm:eu-west-1:123456789012:session/someone@example-*");
        let unknown = Scope { starter: Starter::Unknown, ..user };
        let statement = unknown.own_sessions(&IamAction::OWN_SESSIONS);
        assert_eq!(statement["Resource"], "arn:aws:ssm:eu-west-1:*:session/*");
        let tag = "ssm:resourceTag/aws:ssmmessages:session-id";
        assert_eq!(statement["Condition"]["StringLike"][tag], "${aws:userid}");
    }
}
