//! IAM: policy documents and their evaluation.
//!
//! Evaluated as AWS does for one identity-based policy: a matching explicit `Deny` wins, then a matching
//! `Allow`, otherwise the request is denied. Anything in a policy that is not supported here is an error,
//! never silently allowed or denied.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// An IAM policy document.
#[derive(Clone, Debug)]
pub struct Policy {
    statements: Vec<Statement>,
}

/// Why a text is not a policy document that is supported here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// It is not JSON.
    #[error("not JSON: line {line}, column {column}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An element is missing, unknown, or malformed.
    #[error("{0}")]
    Element(String),
}

impl Policy {
    /// Reads a policy document.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] if the text is no policy, or uses an element, a condition operator or a policy
    /// variable that is not supported here.
    pub fn from_json(text: &str) -> Result<Self, PolicyError> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| PolicyError::Json { line: error.line(), column: error.column() })?;
        Self::from_value(&value)
    }

    /// The policy that customers are asked to attach: `ssm:StartSession` on one instance and on the SSH
    /// document.
    pub fn least_privilege(instance: &str) -> Self {
        Self { statements: vec![start(instance)] }
    }

    /// The least-privilege policy plus what lets a session outlive its first WebSocket and end at once:
    /// `ssm:ResumeSession`, `ssm:TerminateSession` and `ssmmessages:OpenDataChannel` on the user's own
    /// sessions.
    pub fn full(instance: &str) -> Self {
        let own = |resource: &str, conditions| Statement {
            allow: true,
            actions: ["ssm:ResumeSession", "ssm:TerminateSession", "ssmmessages:OpenDataChannel"]
                .map(str::to_owned)
                .into(),
            resources: vec![resource.to_owned()],
            conditions,
        };
        let tagged = Condition {
            operator: Operator::StringLike,
            if_exists: false,
            key: "ssm:resourceTag/aws:ssmmessages:session-id".to_owned(),
            values: vec!["${aws:userid}".to_owned()],
        };
        let of_user = own(OWN_SESSIONS, Vec::new());
        let of_role = own("arn:aws:ssm:*:*:session/*", vec![tagged]);
        Self { statements: vec![start(instance), of_user, of_role] }
    }

    /// Allows nothing.
    pub fn nothing() -> Self {
        Self { statements: Vec::new() }
    }

    /// Adds a statement that allows an action on a resource; both may contain wildcards.
    #[must_use]
    pub fn allowing(self, action: &str, resource: &str) -> Self {
        self.with(true, action, resource)
    }

    /// Adds a statement that denies.
    #[must_use]
    pub fn denying(self, action: &str, resource: &str) -> Self {
        self.with(false, action, resource)
    }

    fn with(mut self, allow: bool, action: &str, resource: &str) -> Self {
        self.statements.push(Statement {
            allow,
            actions: vec![action.to_owned()],
            resources: vec![resource.to_owned()],
            conditions: Vec::new(),
        });
        self
    }

    fn from_value(value: &Value) -> Result<Self, PolicyError> {
        let document = object(value, "the document")?;
        known(document, &["Version", "Id", "Statement"], "the document")?;
        if document.get("Version").is_some_and(|version| version != "2012-10-17") {
            return Err(PolicyError::Element("`Version` is not 2012-10-17".to_owned()));
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(statements)) => {
                statements.iter().map(Statement::from_value).collect()
            }
            Some(statement) => Statement::from_value(statement).map(|statement| vec![statement]),
            None => Err(PolicyError::Element("`Statement` is missing".to_owned())),
        };
        Ok(Self { statements: statements? })
    }

    pub(crate) fn decide(&self, request: &Request<'_>) -> Decision {
        let matches = |allow| {
            let mut statements = self.statements.iter().filter(|other| other.allow == allow);
            statements.any(|statement| statement.matches(request))
        };
        if matches(false) {
            Decision::ExplicitDeny
        } else if matches(true) {
            Decision::Allow
        } else {
            Decision::ImplicitDeny
        }
    }
}

/// A request to be evaluated.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Action such as `ssm:StartSession`.
    pub(crate) action: &'a str,
    /// ARN of the resource; several if it has more than one name.
    pub(crate) resources: &'a [String],
    /// Condition keys, which serve as policy variables too.
    pub(crate) context: &'a BTreeMap<&'static str, String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Decision {
    Allow,
    ImplicitDeny,
    ExplicitDeny,
}

#[derive(Clone, Debug)]
struct Statement {
    allow: bool,
    actions: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
struct Condition {
    operator: Operator,
    if_exists: bool,
    key: String,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    Bool,
    StringEquals,
    StringNotEquals,
    StringLike,
    StringNotLike,
}

impl Statement {
    fn from_value(value: &Value) -> Result<Self, PolicyError> {
        let statement = object(value, "a statement")?;
        known(statement, &["Sid", "Effect", "Action", "Resource", "Condition"], "a statement")?;
        let allow = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err(PolicyError::Element("`Effect` is neither Allow nor Deny".to_owned())),
        };
        let conditions = match statement.get("Condition") {
            None => Vec::new(),
            Some(conditions) => conditions_of(object(conditions, "`Condition`")?)?,
        };
        let resources = texts(statement, "Resource")?;
        for resource in &resources {
            substitute(resource, &BTreeMap::new())?;
        }
        Ok(Self { allow, actions: texts(statement, "Action")?, resources, conditions })
    }

    fn matches(&self, request: &Request<'_>) -> bool {
        let action = |pattern: &String| {
            glob(&pattern.to_ascii_lowercase(), &request.action.to_ascii_lowercase())
        };
        let resource = |pattern: &String| {
            let Ok(Some(pattern)) = substitute(pattern, request.context) else { return false };
            request.resources.iter().any(|resource| glob(&pattern, resource))
        };
        self.actions.iter().any(action)
            && self.resources.iter().any(resource)
            && self.conditions.iter().all(|condition| condition.holds(request.context))
    }
}

impl Condition {
    fn holds(&self, context: &BTreeMap<&'static str, String>) -> bool {
        let mut keys = context.iter();
        let present = keys.find(|(key, _)| key.eq_ignore_ascii_case(&self.key));
        let Some((_, actual)) = present else {
            let negative =
                matches!(self.operator, Operator::StringNotEquals | Operator::StringNotLike);
            return self.if_exists || negative;
        };
        let given = |value: &String| substitute(value, context).ok().flatten();
        let mut values = self.values.iter().filter_map(given);
        match self.operator {
            Operator::Bool => values.any(|value| value.eq_ignore_ascii_case(actual)),
            Operator::StringEquals => values.any(|value| value == *actual),
            Operator::StringNotEquals => values.all(|value| value != *actual),
            Operator::StringLike => values.any(|value| glob(&value, actual)),
            Operator::StringNotLike => values.all(|value| !glob(&value, actual)),
        }
    }
}

fn start(instance: &str) -> Statement {
    let kind =
        if instance.starts_with("mi-") { "ssm:*:*:managed-instance" } else { "ec2:*:*:instance" };
    Statement {
        allow: true,
        actions: vec!["ssm:StartSession".to_owned()],
        resources: vec![
            format!("arn:aws:{kind}/{instance}"),
            "arn:aws:ssm:*::document/AWS-StartSSHSession".to_owned(),
        ],
        conditions: vec![Condition {
            operator: Operator::Bool,
            if_exists: true,
            key: "ssm:SessionDocumentAccessCheck".to_owned(),
            values: vec!["true".to_owned()],
        }],
    }
}

fn conditions_of(operators: &Map<String, Value>) -> Result<Vec<Condition>, PolicyError> {
    let mut conditions = Vec::new();
    for (name, keys) in operators {
        let (plain, if_exists) = match name.strip_suffix("IfExists") {
            Some(plain) => (plain, true),
            None => (name.as_str(), false),
        };
        let operator = match plain {
            "Bool" => Operator::Bool,
            "StringEquals" => Operator::StringEquals,
            "StringNotEquals" => Operator::StringNotEquals,
            "StringLike" => Operator::StringLike,
            "StringNotLike" => Operator::StringNotLike,
            _ => {
                return Err(PolicyError::Element(format!(
                    "condition operator `{name}` is not known"
                )));
            }
        };
        let keys = object(keys, name)?;
        for key in keys.keys() {
            let values = texts(keys, key)?;
            for value in &values {
                substitute(value, &BTreeMap::new())?;
            }
            conditions.push(Condition { operator, if_exists, key: key.clone(), values });
        }
    }
    Ok(conditions)
}

fn object<'a>(value: &'a Value, what: &str) -> Result<&'a Map<String, Value>, PolicyError> {
    value.as_object().ok_or_else(|| PolicyError::Element(format!("{what} is no object")))
}

fn known(map: &Map<String, Value>, names: &[&str], what: &str) -> Result<(), PolicyError> {
    match map.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(PolicyError::Element(format!("`{name}` in {what} is not known"))),
        None => Ok(()),
    }
}

/// A string or a list of strings; booleans are accepted as strings, as in IAM.
fn texts(map: &Map<String, Value>, name: &str) -> Result<Vec<String>, PolicyError> {
    let wrong = || PolicyError::Element(format!("`{name}` is missing or no list of texts"));
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(value) => Ok(value.to_string()),
        _ => Err(wrong()),
    };
    match map.get(name) {
        Some(Value::Array(values)) if !values.is_empty() => values.iter().map(text).collect(),
        Some(value) => text(value).map(|text| vec![text]),
        None => Err(wrong()),
    }
}

/// Substitutes policy variables; `None` if one has no value, so that the pattern matches nothing.
fn substitute(
    pattern: &str,
    context: &BTreeMap<&'static str, String>,
) -> Result<Option<String>, PolicyError> {
    let mut result = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            return Err(PolicyError::Element(format!("a variable in `{pattern}` has no end")));
        };
        result.push_str(before);
        rest = after;
        match name {
            // `${*}`, `${?}` and `${$}` denote the characters themselves. Here they stay wildcards,
            // as no test needs more.
            "*" | "?" | "$" => result.push_str(name),
            _ if !VARIABLES.contains(&name) => {
                return Err(PolicyError::Element(format!("variable `{name}` is not known")));
            }
            _ => match context.get(name) {
                Some(value) => result.push_str(value),
                None => return Ok(None),
            },
        }
    }
    result.push_str(rest);
    Ok(Some(result))
}

/// Matches `*` (any text) and `?` (any character).
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut next) = (0, 0);
    // Where to continue if what follows the last `*` does not match.
    let mut retry: Option<(usize, usize)> = None;
    while next < text.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at, next));
                at += 1;
            }
            Some(expected) if *expected == '?' || Some(expected) == text.get(next) => {
                at += 1;
                next += 1;
            }
            _ => match &mut retry {
                Some((star, skipped)) => {
                    *skipped += 1;
                    at = *star + 1;
                    next = *skipped;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|rest| *rest == '*')
}

impl Policy {
    /// The policy document of [`Policy::least_privilege`], to print or to attach.
    pub fn least_privilege_document(instance: &str) -> Value {
        let Statement { actions, resources, .. } = start(instance);
        json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Action": actions,
                "Resource": resources,
                "Condition": { "BoolIfExists": { "ssm:SessionDocumentAccessCheck": "true" } },
            }],
        })
    }
}

/// The caller's own sessions, by the prefix of their ids; for users only, since roles have no
/// `aws:username`.
pub const OWN_SESSIONS: &str = "arn:aws:ssm:*:*:session/${aws:username}-*";

/// Policy variables that have a value for some callers only.
const VARIABLES: [&str; 3] = ["aws:userid", "aws:username", "aws:PrincipalAccount"];

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: &str = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0";
    const OTHER: &str = "arn:aws:ec2:eu-west-1:123456789012:instance/i-0aaaaaaaaaaaaaaaa";
    const DOCUMENT: &str = "arn:aws:ssm:eu-west-1::document/AWS-StartSSHSession";
    const SHELL: &str = "arn:aws:ssm:eu-west-1:123456789012:document/SSM-SessionManagerRunShell";
    const MINE: &str = "arn:aws:ssm:eu-west-1:123456789012:session/transfer-0abc";
    const THEIRS: &str = "arn:aws:ssm:eu-west-1:123456789012:session/other-0abc";

    fn decide(policy: &Policy, action: &str, resource: &str) -> Decision {
        let mut context = BTreeMap::new();
        context.insert("aws:userid", "AIDAEXAMPLE".to_owned());
        context.insert("aws:username", "transfer".to_owned());
        context.insert("ssm:SessionDocumentAccessCheck", "true".to_owned());
        policy.decide(&Request { action, resources: &[resource.to_owned()], context: &context })
    }

    #[test]
    fn presets_allow_what_they_name_and_nothing_else() {
        let least = Policy::least_privilege("i-0123456789abcdef0");
        let full = Policy::full("i-0123456789abcdef0");
        let (yes, no) = (Decision::Allow, Decision::ImplicitDeny);
        for (action, resource, by_least, by_full) in [
            ("ssm:StartSession", INSTANCE, yes, yes),
            ("ssm:StartSession", DOCUMENT, yes, yes),
            ("ssm:startsession", DOCUMENT, yes, yes),
            ("ssm:StartSession", OTHER, no, no),
            ("ssm:StartSession", SHELL, no, no),
            ("ssm:ResumeSession", MINE, no, yes),
            ("ssm:TerminateSession", MINE, no, yes),
            ("ssm:TerminateSession", THEIRS, no, no),
            ("ssmmessages:OpenDataChannel", MINE, no, yes),
            ("ssm:DescribeSessions", MINE, no, no),
        ] {
            assert_eq!(decide(&least, action, resource), by_least, "least: {action} on {resource}");
            assert_eq!(decide(&full, action, resource), by_full, "full: {action} on {resource}");
        }
    }

    #[test]
    fn document_of_the_preset_says_the_same() {
        let document = Policy::least_privilege_document("i-0123456789abcdef0").to_string();
        let policy = Policy::from_json(&document).unwrap();
        assert_eq!(decide(&policy, "ssm:StartSession", INSTANCE), Decision::Allow);
        assert_eq!(decide(&policy, "ssm:StartSession", OTHER), Decision::ImplicitDeny);
    }

    #[test]
    fn documents_are_evaluated_as_iam_does() {
        let statement = |effect: &str, action: Value, resource: Value, condition: Value| {
            let mut statement = json!({"Effect": effect, "Action": action, "Resource": resource});
            if !condition.is_null() {
                statement["Condition"] = condition;
            }
            statement
        };
        let allow_all = statement("Allow", json!("*"), json!("*"), Value::Null);
        let with_condition =
            |condition: Value| json!([statement("Allow", json!("ssm:*"), json!("*"), condition)]);
        let cases = [
            ("anything", json!([allow_all]), Decision::Allow),
            ("one statement without list", allow_all.clone(), Decision::Allow),
            ("no statement", json!([]), Decision::ImplicitDeny),
            (
                "deny wins",
                json!([allow_all, statement("Deny", json!("ssm:Start*"), json!("*"), Value::Null)]),
                Decision::ExplicitDeny,
            ),
            (
                "lists and wildcards",
                json!([statement(
                    "Allow",
                    json!(["a:B", "ssm:Start?ession"]),
                    json!(["x", "arn:*:instance/i-0*"]),
                    Value::Null
                )]),
                Decision::Allow,
            ),
            (
                "resource of a variable without value",
                json!([statement("Allow", json!("*"), json!("${aws:username}*"), Value::Null)]),
                Decision::ImplicitDeny,
            ),
            (
                "condition met",
                with_condition(json!({"BoolIfExists": {"ssm:SessionDocumentAccessCheck": true}})),
                Decision::Allow,
            ),
            (
                "condition not met",
                with_condition(json!({"Bool": {"ssm:SessionDocumentAccessCheck": "false"}})),
                Decision::ImplicitDeny,
            ),
            (
                "key missing, if exists",
                with_condition(json!({"BoolIfExists": {"aws:MultiFactorAuthPresent": "true"}})),
                Decision::Allow,
            ),
            (
                "key missing",
                with_condition(json!({"Bool": {"aws:MultiFactorAuthPresent": "true"}})),
                Decision::ImplicitDeny,
            ),
            (
                "texts equal",
                with_condition(json!({"StringEquals": {"AWS:UserId": ["x", "AIDAEXAMPLE"]}})),
                Decision::Allow,
            ),
            (
                "texts alike",
                with_condition(json!({"StringLike": {"aws:userid": "AIDA*"}})),
                Decision::Allow,
            ),
            (
                "two conditions, one met",
                with_condition(
                    json!({"StringLike": {"aws:userid": "AIDA*"}, "StringNotEquals": {"aws:userid": "AIDAEXAMPLE"}}),
                ),
                Decision::ImplicitDeny,
            ),
        ];
        for (name, statements, expected) in cases {
            let document = json!({"Version": "2012-10-17", "Statement": statements});
            let policy = Policy::from_json(&document.to_string()).unwrap();
            assert_eq!(decide(&policy, "ssm:StartSession", INSTANCE), expected, "case: {name}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let statement = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
        let with = |name: &str, value: Value| {
            let mut changed = statement.clone();
            changed[name] = value;
            json!({ "Statement": changed })
        };
        let cases = [
            json!([]),
            json!({}),
            json!({"Version": "2008-10-17", "Statement": []}),
            json!({"Statement": [], "statement": []}),
            with("Effect", json!("allow")),
            with("Action", json!([])),
            with("Action", json!(1)),
            with("Resource", json!("${aws:SourceIp}")),
            with("Resource", json!("${aws:userid")),
            with("NotAction", json!("*")),
            with("Principal", json!("*")),
            with("Condition", json!({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}})),
        ];
        for document in cases {
            let policy = Policy::from_json(&document.to_string());
            assert!(matches!(policy, Err(PolicyError::Element(_))), "{document}: {policy:?}");
        }
        assert!(matches!(Policy::from_json("{"), Err(PolicyError::Json { .. })));
    }
}
