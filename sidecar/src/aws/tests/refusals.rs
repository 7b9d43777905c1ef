//! Refusals of the service, through the real client: code, message and hint.

use runner_protocol::{Blame, ErrorCode};

use super::{
    super::sdk_error::{no_credentials, unsigned},
    SsmSettings, control_plane, settings,
    stub::{Reply::Answer, StubService},
};
use crate::{runtime::failure::ToFailure as _, session::SessionApi as _};

const REFUSED_HINT: &str = "change what AWS's sentence names; if it is about a value of the config, check \
     `bastion.instance_id`, `bastion.ssh_port` and `aws.region`; CloudTrail has the call by its request id";

/// Status, error code and text of the service; then our code, whether it is transient, message and hint.
const REFUSALS: [(u16, &str, &str, ErrorCode, bool, &str, &str); 24] = [
    (
        400,
        "TargetNotConnected",
        "i-0123456789abcdef0 is not connected.",
        ErrorCode::AwsInstanceNotConnected,
        true,
        "instance `i-0123456789abcdef0` is not connected to Systems Manager in `ap-northeast-1`",
        "check five things: (1) `bastion.instance_id`, `aws.region` and the account of the keys; \
         (2) that the instance runs; (3) that its SSM agent runs; (4) that its instance profile \
         has `AmazonSSMManagedInstanceCore`; (5) that it reaches \
         `ssm.ap-northeast-1.amazonaws.com` and `ssmmessages.ap-northeast-1.amazonaws.com` on \
         port 443",
    ),
    (
        400,
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession on \
         resource: arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 because no \
         identity-based policy allows the ssm:StartSession action",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0`: `because no \
         identity-based policy allows the ssm:StartSession action`",
        "allow `ssm:StartSession` on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0` for \
         `arn:aws:iam::123456789012:user/etl`; it is needed on the instance `i-0123456789abcdef0` \
         and on `arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession`",
    ),
    (
        400,
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession on \
         resource: arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession with an explicit deny in a \
         service control policy",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed on \
         `arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession`: `with an explicit deny in a \
         service control policy`",
        "remove the explicit deny of `ssm:StartSession` on \
         `arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession` in the service control policy of \
         the AWS organization, which its administrators change; no policy of the account itself does",
    ),
    (
        400,
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession on \
         resource: arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 because no \
         permissions boundary allows the ssm:StartSession action",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0`: `because no \
         permissions boundary allows the ssm:StartSession action`",
        "allow `ssm:StartSession` on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0` in the permissions \
         boundary of `arn:aws:iam::123456789012:user/etl`; a policy that is attached beside it does not \
         help",
    ),
    (
        400,
        "AccessDeniedException",
        "User: arn:aws:sts::123456789012:assumed-role/etl/x is not authorized to perform: \
         ssm:StartSession on resource: \
         arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 because no session policy \
         allows the ssm:StartSession action",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0`: `because no session \
         policy allows the ssm:StartSession action`",
        "allow `ssm:StartSession` on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0` in the session policy \
         that was given when these temporary keys were issued",
    ),
    (
        400,
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession on \
         resource: arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 with an \
         explicit deny in a resource control policy: arn:aws:organizations::1:policy/o-1/p-1",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0`: `with an explicit deny \
         in a resource control policy: arn:aws:organizations::1:policy/o-1/p-1`",
        "remove the explicit deny of `ssm:StartSession` on \
         `arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0` in the resource control \
         policy of the AWS organization, which its administrators change; no policy of the account \
         itself does",
    ),
    (
        400,
        "AccessDeniedException",
        "Access to `this` is\u{7} limited.",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed: `Access to 'this' is  limited`",
        "allow `ssm:StartSession`; it is needed on the instance `i-0123456789abcdef0` and on \
         `arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession`",
    ),
    (
        400,
        "AccessDeniedException",
        "",
        ErrorCode::AwsAccessDenied,
        false,
        "`ssm:StartSession` is not allowed",
        "allow `ssm:StartSession`; it is needed on the instance `i-0123456789abcdef0` and on \
         `arn:aws:ssm:ap-northeast-1::document/AWS-StartSSHSession`",
    ),
    (
        400,
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
        ErrorCode::AwsCredentials,
        false,
        "AWS does not know the credentials in `ap-northeast-1` (`UnrecognizedClientException`)",
        "check `aws.access_key_id`, that the key is active, and that `aws.session_token` is given \
         with temporary keys (those that begin with `ASIA`)",
    ),
    (
        403,
        "InvalidSignatureException",
        "The Canonical String should have been 'POST / x-amz-security-token:hunter2'",
        ErrorCode::AwsCredentials,
        false,
        "AWS refuses the signature (`InvalidSignatureException`)",
        "check `aws.secret_access_key`: it does not belong to `aws.access_key_id`",
    ),
    (
        400,
        "InvalidClientTokenId",
        "",
        ErrorCode::AwsCredentials,
        false,
        "AWS does not know the credentials in `ap-northeast-1` (`InvalidClientTokenId`)",
        "check `aws.access_key_id`, that the key is active, and that `aws.session_token` is given \
         with temporary keys (those that begin with `ASIA`)",
    ),
    (
        400,
        "ExpiredTokenException",
        "The security token included in the request is expired",
        ErrorCode::AwsCredentialsExpired,
        false,
        "the temporary AWS credentials have expired",
        "give new ones: in the config, or while the tunnel is up as a `credentials` line on \
         stdin",
    ),
    (
        400,
        "ThrottlingException",
        "Rate exceeded",
        ErrorCode::AwsThrottled,
        true,
        "AWS throttles StartSession",
        "start fewer sessions at once in this account, and try again later",
    ),
    (
        429,
        "Whatever",
        "",
        ErrorCode::AwsThrottled,
        true,
        "AWS throttles StartSession",
        "start fewer sessions at once in this account, and try again later",
    ),
    (
        500,
        "InternalServerError",
        "oops\u{7}",
        ErrorCode::AwsInternal,
        true,
        "AWS failed to carry out StartSession: `InternalServerError: oops`",
        "try again; see the AWS Health Dashboard",
    ),
    (
        503,
        "Unheard",
        "",
        ErrorCode::AwsInternal,
        true,
        "AWS failed to carry out StartSession: `Unheard`",
        "try again; see the AWS Health Dashboard",
    ),
    (
        400,
        "DoesNotExistException",
        "",
        ErrorCode::SessionEnded,
        false,
        "the session does not exist any more",
        "start the job again",
    ),
    (
        400,
        "InvalidDocument",
        "",
        ErrorCode::AwsAccount,
        false,
        "`AWS-StartSSHSession` is not known in `ap-northeast-1`: `InvalidDocument`",
        "check `aws.region`; Session Manager must be offered there",
    ),
    (
        400,
        "BadRequest",
        "Enable advanced-instances tier to use Session Manager with your on-premises instances",
        ErrorCode::AwsAccount,
        false,
        "a setting of the account does not allow StartSession: `BadRequest: Enable advanced-instances \
         tier to use Session Manager with your on-premises instances`",
        "switch the account to the advanced-instances tier in this region (Systems Manager, Fleet \
         Manager, account settings; AWS charges for each managed instance), or use an EC2 instance \
         (`i-…`) as bastion: `mi-…` needs that tier for Session Manager",
    ),
    (
        403,
        "OptInRequired",
        "You are not subscribed to this service",
        ErrorCode::AwsAccount,
        false,
        "a setting of the account does not allow StartSession: `OptInRequired: You are not subscribed \
         to this service`",
        "finish the sign-up of the AWS account, or see in its billing console whether it is suspended",
    ),
    (
        400,
        "ServiceQuotaExceededException",
        "",
        ErrorCode::AwsAccount,
        false,
        "a setting of the account does not allow StartSession: `ServiceQuotaExceededException`",
        "raise the quota that AWS names (Service Quotas), or run fewer jobs at once in this account",
    ),
    (
        400,
        "BadRequest",
        "not for this target",
        ErrorCode::AwsRefused,
        false,
        "AWS refuses StartSession: `BadRequest: not for this target`",
        REFUSED_HINT,
    ),
    (
        400,
        "ValidationException",
        "1 validation error detected",
        ErrorCode::AwsRefused,
        false,
        "AWS refuses StartSession: `ValidationException: 1 validation error detected`",
        REFUSED_HINT,
    ),
    (
        400,
        "ValidationException",
        "1 validation error detected: Value 'i-0123456789abcdef0' at 'target' failed to satisfy \
         constraint: Member must satisfy regular expression pattern",
        ErrorCode::ConfigInvalid,
        false,
        "AWS does not take `bastion.instance_id`: `ValidationException: 1 validation error detected: \
         Value 'i-0123456789abcdef0' at 'target' failed to satisfy constraint: Member must satisfy \
         regular expression pattern`",
        "correct `bastion.instance_id` as AWS's sentence says",
    ),
];

#[tokio::test]
async fn every_refusal_has_its_code_message_and_hint() {
    for (status, code, text, expected, is_transient, message, hint) in REFUSALS {
        let body = refusal(&format!("com.amazonaws.ssm#{code}"), text);
        let service = StubService::start(move |_| Answer(status, body.clone())).await;
        let error = control_plane(settings(service.url())).start().await.unwrap_err();
        assert_eq!(error.code(), expected, "{code}");
        assert_eq!(error.is_transient(), is_transient, "{code}");
        assert_eq!((error.to_string().as_str(), &*error.hint()), (message, hint), "{code}");
        assert_eq!(error.aws_request_id(), Some("req-1"), "{code}");
        assert!(!error.outcome_unknown(), "{code}: an answer is an answer");
        let shown = format!("{error} {} {error:?}", error.hint());
        assert!(!shown.contains("hunter2") && !shown.contains('\u{7}'), "{shown}");
        assert_eq!(service.operations(), ["StartSession"], "{code}: the SDK does not retry");
    }
}

#[tokio::test]
async fn vpc_endpoint_policy_that_denies_is_the_operators() {
    let text = "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession \
                on resource: arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 because \
                no VPC endpoint policy allows the ssm:StartSession action";
    let body = refusal("AccessDeniedException", text);
    let service = StubService::start(move |_| Answer(400, body.clone())).await;
    let error = control_plane(settings(service.url())).start().await.unwrap_err();
    assert_eq!((error.code(), error.blame()), (ErrorCode::AwsAccessDenied, Some(Blame::Operator)));
    assert_eq!(error.denied_action(), None, "no statement of the user's policy helps");
    let hint = error.hint();
    assert!(
        hint.contains("in the policy of the VPC endpoint through which the sidecar reaches"),
        "{hint}"
    );
}

#[tokio::test]
async fn region_that_must_be_enabled_first_is_a_cause_of_unknown_credentials() {
    for code in ["UnrecognizedClientException", "InvalidClientTokenId"] {
        let body = refusal(code, "The security token included in the request is invalid.");
        let service = StubService::start(move |_| Answer(400, body.clone())).await;
        let settings = SsmSettings { region: "ap-east-1".to_owned(), ..settings(service.url()) };
        let error = control_plane(settings).start().await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::AwsCredentials);
        let message = format!("AWS does not know the credentials in `ap-east-1` (`{code}`)");
        assert_eq!(error.to_string(), message);
        let hint = error.hint();
        let begin = "make sure that the account has enabled the region `ap-east-1`";
        assert!(hint.starts_with(begin) && hint.contains("check `aws.access_key_id`"), "{hint}");
    }
}

#[tokio::test]
async fn denied_question_for_the_caller_names_no_resource() {
    let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message></Message></Error></ErrorResponse>";
    let service = StubService::start(move |_| Answer(403, body.to_owned())).await;
    let error = control_plane(settings(service.url())).caller().await.unwrap_err();
    assert_eq!(error.to_string(), "`sts:GetCallerIdentity` is not allowed");
    assert_eq!(error.hint(), "allow `sts:GetCallerIdentity`");
}

#[tokio::test]
async fn session_that_is_over_already_counts_as_terminated() {
    let body = refusal("DoesNotExistException", "");
    let service = StubService::start(move |_| Answer(400, body.clone())).await;
    control_plane(settings(service.url())).terminate("s-1").await.unwrap();
    assert_eq!(service.operations(), ["TerminateSession"]);
}

#[tokio::test]
async fn answer_that_is_not_from_aws_is_reported_as_such() {
    for (status, code) in [
        (200, ErrorCode::AwsInternal),
        (403, ErrorCode::LocalProxy),
        (407, ErrorCode::LocalProxy),
        (502, ErrorCode::AwsInternal),
    ] {
        let page = "<html><body>Please log in</body></html>".to_owned();
        let service = StubService::start(move |_| Answer(status, page.clone())).await;
        let error = control_plane(settings(service.url())).start().await.unwrap_err();
        assert_eq!(error.code(), code, "{status}: {error}");
        assert_eq!(error.blame(), Some(Blame::Operator), "{status}");
        assert!(!error.to_string().contains("log in"), "{error}");
    }
}

#[tokio::test]
async fn wrong_clock_is_named() {
    let headers = "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n";
    let body = refusal("InvalidSignatureException", "Signature expired: 20240101T000000Z");
    let service = StubService::start_with(None, headers, move |_| Answer(400, body.clone())).await;
    let error = control_plane(settings(service.url())).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsCredentials);
    assert!(error.to_string().contains("this host's clock is"), "{error}");
    assert_eq!(error.hint(), "set the host's clock (NTP)");
    assert_eq!(error.blame(), Some(Blame::Operator));
}

fn refusal(code: &str, message: &str) -> String {
    serde_json::json!({ "__type": code, "message": message }).to_string()
}

#[test]
fn blame_is_the_operators_where_the_config_is_not_what_is_wrong() {
    assert_eq!(no_credentials(None, false).blame(), Some(Blame::Operator));
    assert_eq!(unsigned("no key").blame(), None, "the code's blame holds");
}
