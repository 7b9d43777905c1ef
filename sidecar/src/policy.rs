//! `policy`: the least that AWS must allow for a document, with the real ARNs.

use runner_protocol::Request;
use serde_json::{Value, json};

/// What is to be allowed to whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scope {
    instance_id: String,
    region: String,
    /// Of the customer; `*` where it is not known.
    account: String,
    role_arn: Option<String>,
}

impl Scope {
    /// Reads it off a document.
    pub fn of(request: &Request) -> Self {
        let role_arn = request.aws.assume_role.as_ref().map(|role| role.role_arn.clone());
        Self::new(&request.bastion.instance_id, &request.aws.region, role_arn)
    }

    /// `role_arn`: the role that is assumed, if one is; its account is the instance's.
    pub fn new(instance_id: &str, region: &str, role_arn: Option<String>) -> Self {
        let account = role_arn.as_deref().and_then(account_of).unwrap_or("*").to_owned();
        Self { instance_id: instance_id.to_owned(), region: region.to_owned(), account, role_arn }
    }

    /// The same with the account of `arn`, which AWS itself has told.
    #[must_use]
    pub fn in_account_of(mut self, arn: &str) -> Self {
        if let Some(account) = account_of(arn) {
            account.clone_into(&mut self.account);
        }
        self
    }

    /// The policy of whoever starts the session: the role where one is assumed, else the keys' user.
    pub fn session_policy(&self) -> Value {
        policy(&[self.start_instance(), self.start_document(), self.own_sessions(OWN_SESSIONS)])
    }

    /// The policy of the keys that assume the role; `None` where none is assumed.
    pub fn caller_policy(&self) -> Option<Value> {
        Some(policy(&[self.assume_role()?]))
    }

    /// The statement that would allow `action`, if it is one of a sidecar's.
    pub fn statement_for(&self, action: &str) -> Option<Value> {
        match action {
            "ssm:StartSession" => {
                let both = json!([self.instance_arn(), self.document_arn()]);
                Some(start(&both))
            }
            "sts:AssumeRole" => self.assume_role(),
            own => {
                let own = OWN_SESSIONS.iter().find(|each| **each == own)?;
                Some(self.own_sessions(&[own]))
            }
        }
    }

    /// One statement with those of `actions` on one's own sessions.
    pub fn own_sessions(&self, actions: &[&str]) -> Value {
        let Self { region, account, .. } = self;
        let partition = partition(region);
        json!({
            "Sid": "OwnSessions",
            "Effect": "Allow",
            "Action": actions,
            "Resource": format!("arn:{partition}:ssm:{region}:{account}:session/${{aws:userid}}-*"),
        })
    }

    fn start_instance(&self) -> Value {
        start(&Value::String(self.instance_arn()))
    }

    fn start_document(&self) -> Value {
        json!({
            "Sid": "StartSessionForSsh",
            "Effect": "Allow",
            "Action": "ssm:StartSession",
            "Resource": self.document_arn(),
        })
    }

    fn assume_role(&self) -> Option<Value> {
        Some(json!({
            "Sid": "AssumeRole",
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Resource": self.role_arn.as_ref()?,
        }))
    }

    fn instance_arn(&self) -> String {
        let Self { instance_id, region, account, .. } = self;
        let partition = partition(region);
        if instance_id.starts_with("mi-") {
            format!("arn:{partition}:ssm:{region}:{account}:managed-instance/{instance_id}")
        } else {
            format!("arn:{partition}:ec2:{region}:{account}:instance/{instance_id}")
        }
    }

    fn document_arn(&self) -> String {
        let region = &self.region;
        format!("arn:{}:ssm:{region}::document/AWS-StartSSHSession", partition(region))
    }
}

/// The partition that ARNs of `region` begin with.
pub fn partition(region: &str) -> &'static str {
    if region.starts_with("cn-") {
        "aws-cn"
    } else if region.starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    }
}

fn start(resource: &Value) -> Value {
    json!({
        "Sid": "StartSessionOnBastion",
        "Effect": "Allow",
        "Action": "ssm:StartSession",
        "Resource": resource,
        // Without it, whoever may start sessions on the instance may use any document there.
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

/// What is used where it is allowed; a session's own id begins with who started it.
pub const OWN_SESSIONS: &[&str] =
    &["ssm:ResumeSession", "ssm:TerminateSession", "ssmmessages:OpenDataChannel"];

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
            let scope = Scope::new(instance, region, role.map(str::to_owned));
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
        let scope = Scope::new("i-01234567", "eu-west-1", None)
            .in_account_of("arn:aws:iam::123456789012:user/transfer");
        for action in OWN_SESSIONS {
            assert_eq!(scope.statement_for(action).unwrap()["Action"], json!([action]));
        }
        let start = scope.statement_for("ssm:StartSession").unwrap();
        assert_eq!(start["Resource"][0], "arn:aws:ec2:eu-west-1:123456789012:instance/i-01234567");
        assert_eq!(scope.statement_for("sts:AssumeRole"), None);
        assert_eq!(scope.statement_for("iam:CreateUser"), None);
    }
}
