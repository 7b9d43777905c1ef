mod refusals;
mod stub;

use parking_lot::Mutex;
use std::{
    process::Stdio,
    time::{Duration, SystemTime},
};

use aws_sdk_ssm::primitives::{DateTime, DateTimeFormat};
use runner_protocol::ErrorCode;
use tokio::{net::TcpListener, process::Command};
use zeroize::Zeroizing;

use super::{settings::reason, *};
use crate::{
    net::{proxy::testing::StubProxy, tls::testing::Authority},
    runtime::failure::ToFailure as _,
    session::iam_policy::role_session_name,
};

use stub::{
    Reply::{self, Answer, Break},
    StubService,
};

fn started() -> Reply {
    let body = r#"{"SessionId":"s-1","StreamUrl":"wss://stream.example/s-1?a=b+c/==","TokenValue":"hunter2"}"#;
    Answer(200, body.to_owned())
}

fn role_assumed(key: &str, lives: Duration) -> Reply {
    let expiration = DateTime::from(SystemTime::now() + lives);
    let expiration = expiration.fmt(DateTimeFormat::DateTime).unwrap();
    let body = format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult>\
         <Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
         <SessionToken>role-token</SessionToken><Expiration>{expiration}</Expiration></Credentials>\
         </AssumeRoleResult></AssumeRoleResponse>"
    );
    Answer(200, body)
}

fn keys(access_key_id: &str) -> Keys {
    Keys {
        access_key_id: access_key_id.to_owned(),
        secret_access_key: Zeroizing::new("wJalrXUtnFEMI".to_owned()),
        session_token: None,
    }
}

fn settings(endpoint_url: Uri) -> SsmSettings {
    SsmSettings {
        identity: Identity::Keys(keys("AKIDOLD")),
        assume_role: None,
        region: "ap-northeast-1".to_owned(),
        endpoint_url: Some(endpoint_url),
        instance_id: "i-0123456789abcdef0".to_owned(),
        ssh_port: 2222,
        reason: reason("orders", Some("job-7")),
    }
}

fn role() -> AssumeRole {
    AssumeRole {
        role_arn: "arn:aws:iam::123456789012:role/bastion".to_owned(),
        external_id: Some("customer-9".to_owned()),
        session_name: role_session_name("orders db"),
    }
}

fn control_plane(settings: SsmSettings) -> SsmClient {
    SsmClient::new(settings, &RootCertificates::from_pem(b""), &Proxy::default())
}

#[tokio::test]
async fn start_session_names_sshd_of_the_bastion_and_its_answer_is_returned() {
    let service = StubService::start(|_| started()).await;
    let api = control_plane(settings(service.url()));
    let started = api.start().await.unwrap();
    assert_eq!(started.session_id, "s-1");
    assert_eq!(started.stream_url, "wss://stream.example/s-1?a=b+c/==");
    assert_eq!(started.token.expose(), "hunter2");

    let seen = service.seen();
    assert_eq!(seen[0].operation(), "StartSession");
    assert_eq!(seen[0].key(), "AKIDOLD");
    let asked: serde_json::Value = serde_json::from_str(&seen[0].body).unwrap();
    let expected = serde_json::json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartSSHSession",
        "Parameters": { "portNumber": ["2222"] },
        "Reason": "ssm-sidecar orders (job job-7)",
    });
    assert_eq!(asked, expected);
}

#[tokio::test]
async fn incomplete_answer_terminates_its_session() {
    let service = StubService::start(|seen| match seen.operation() {
        "StartSession" => Answer(200, r#"{"SessionId":"s-1"}"#.to_owned()),
        _ => Answer(200, "{}".to_owned()),
    })
    .await;
    let error = control_plane(settings(service.url())).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsInternal);
    assert_eq!(error.to_string(), "the answer to StartSession has no StreamUrl");
    assert!(error.session_created());
    assert_eq!(service.operations(), ["StartSession", "TerminateSession"]);
}

#[tokio::test]
async fn resume_without_token_means_that_the_session_is_over() {
    let service = StubService::start(|seen| {
        let whole = r#"{"SessionId":"s-1","StreamUrl":"wss://new.example","TokenValue":"t"}"#;
        let over = r#"{"SessionId":"s-2","TokenValue":""}"#;
        Answer(200, if seen.body.contains("s-1") { whole } else { over }.to_owned())
    })
    .await;
    let api = control_plane(settings(service.url()));
    let resumed = api.resume("s-1").await.unwrap();
    assert_eq!(resumed.stream_url.as_deref(), Some("wss://new.example"));
    assert_eq!(resumed.token.unwrap().expose(), "t");
    let over = api.resume("s-2").await.unwrap();
    assert!(over.stream_url.is_none() && over.token.is_none());
}

#[tokio::test]
async fn connection_refused_has_a_known_outcome() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let url = format!("http://{address}").parse().unwrap();
    let error = control_plane(settings(url)).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsUnreachable);
    assert!(error.is_transient() && !error.outcome_unknown(), "{error:?}");
    assert!(error.to_string().starts_with(&format!("`{address}` cannot be reached: ")), "{error}");
    assert!(error.hint().contains("`HTTPS_PROXY`"), "{}", error.hint());
}

#[tokio::test]
async fn connection_lost_after_the_call_leaves_its_outcome_unknown() {
    let service = StubService::start(|_| Break).await;
    let error = control_plane(settings(service.url())).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsUnreachable);
    assert!(error.is_transient() && error.outcome_unknown(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn service_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let began = tokio::time::Instant::now();
    let error = control_plane(settings(url)).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TimeoutStartSession);
    assert!(error.is_transient() && error.outcome_unknown(), "{error:?}");
    assert!(began.elapsed() >= http::ATTEMPT);
}

#[tokio::test]
async fn renewed_keys_sign_the_next_call() {
    let service = StubService::start(|_| started()).await;
    let api = control_plane(settings(service.url()));
    api.start().await.unwrap();
    let session_token = Some(Zeroizing::new("new-token".to_owned()));
    api.replace_credentials(&Keys { session_token, ..keys("AKIDNEW") });
    api.start().await.unwrap();
    let seen = service.seen();
    assert_eq!([seen[0].key(), seen[1].key()], ["AKIDOLD", "AKIDNEW"]);
    assert_eq!(seen[0].header("x-amz-security-token"), "");
    assert_eq!(seen[1].header("x-amz-security-token"), "new-token");

    let uri = "wss://ssmmessages.ap-northeast-1.amazonaws.com/v1?a=b".parse().unwrap();
    let headers = api.sign_opening(&uri).await.unwrap();
    let text: Vec<_> = headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
    assert!(text.iter().any(|value| value.contains("Credential=AKIDNEW/")), "{text:?}");
    assert!(!format!("{headers:?}").contains("new-token"), "not shown by accident");
}

#[tokio::test]
async fn presigned_url_is_not_signed_again() {
    let service = StubService::start(|_| Break).await;
    let api = control_plane(settings(service.url()));
    let uri =
        "wss://ssmmessages.ap-northeast-1.amazonaws.com/v1?X-Amz-Signature=0".parse().unwrap();
    assert_eq!(api.sign_opening(&uri).await.unwrap(), []);
}

#[tokio::test]
async fn role_is_assumed_once_and_again_with_renewed_keys() {
    let service = StubService::start(|seen| match seen.operation() {
        "AssumeRole" => role_assumed(&format!("ASIA-{}", seen.key()), Duration::from_hours(1)),
        _ => started(),
    })
    .await;
    let assume_role = Some(role());
    let api = control_plane(SsmSettings { assume_role, ..settings(service.url()) });
    api.start().await.unwrap();
    api.start().await.unwrap();
    api.replace_credentials(&keys("AKIDNEW"));
    api.start().await.unwrap();

    let seen = service.seen();
    let calls: Vec<_> = seen.iter().map(|seen| (seen.operation(), seen.key())).collect();
    let expected = [
        ("AssumeRole", "AKIDOLD"),
        ("StartSession", "ASIA-AKIDOLD"),
        ("StartSession", "ASIA-AKIDOLD"),
        ("AssumeRole", "AKIDNEW"),
        ("StartSession", "ASIA-AKIDNEW"),
    ];
    assert_eq!(calls, expected);
    assert_eq!(seen[1].header("x-amz-security-token"), "role-token");
    for parameter in [
        "&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fbastion",
        "&ExternalId=customer-9",
        "&RoleSessionName=ssm-sidecar-orders-db",
    ] {
        assert!(seen[0].body.contains(parameter), "{parameter}: {}", seen[0].body);
    }
}

#[tokio::test]
async fn role_that_is_about_to_end_is_assumed_anew() {
    let service = StubService::start(|seen| match seen.operation() {
        "AssumeRole" => role_assumed("ASIA", REFRESH_DUE),
        _ => started(),
    })
    .await;
    let assume_role = Some(role());
    let api = control_plane(SsmSettings { assume_role, ..settings(service.url()) });
    api.start().await.unwrap();
    api.start().await.unwrap();
    assert_eq!(service.operations(), ["AssumeRole", "StartSession", "AssumeRole", "StartSession"]);
}

/// Below `REFRESH_BEFORE`, 5 min: fetched again before the next call.
const REFRESH_DUE: Duration = Duration::from_mins(4);

#[tokio::test]
async fn role_that_cannot_be_renewed_yet_is_used_to_its_end() {
    let calls = Mutex::new(0);
    let service = StubService::start(move |seen| match seen.operation() {
        "AssumeRole" => {
            *calls.lock() += 1;
            if *calls.lock() == 1 { role_assumed("ASIA", REFRESH_DUE) } else { Break }
        }
        _ => started(),
    })
    .await;
    let assume_role = Some(role());
    let api = control_plane(SsmSettings { assume_role, ..settings(service.url()) });
    api.start().await.unwrap();
    api.start().await.unwrap();
    assert_eq!(service.operations(), ["AssumeRole", "StartSession", "AssumeRole", "StartSession"]);
}

#[tokio::test]
async fn role_that_may_not_be_assumed_names_the_role_and_its_trust_policy() {
    let body = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: \
                arn:aws:iam::123456789012:user/etl is not authorized to perform: sts:AssumeRole on \
                resource: arn:aws:iam::123456789012:role/bastion</Message></Error>\
                <RequestId>req-2</RequestId></ErrorResponse>";
    let service = StubService::start(|_| Answer(403, body.to_owned())).await;
    let assume_role = Some(role());
    let api = control_plane(SsmSettings { assume_role, ..settings(service.url()) });
    let error = api.start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsAccessDenied);
    let role = "`arn:aws:iam::123456789012:role/bastion`";
    assert_eq!(error.to_string(), format!("`sts:AssumeRole` is not allowed on {role}"));
    assert!(error.hint().contains("trust policy"), "{}", error.hint());
    assert_eq!(service.operations(), ["AssumeRole"]);
}

#[tokio::test]
async fn certificate_of_an_unknown_authority_is_not_accepted_and_not_transient() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost");
    let service = StubService::start_with(Some(acceptor), "", |_| started()).await;
    let url = format!("https://localhost:{}", service.address.port());
    let build = |pem: &[u8]| {
        let settings = settings(url.parse().unwrap());
        SsmClient::new(settings, &RootCertificates::from_pem(pem), &Proxy::default())
    };
    assert_eq!(build(authority.pem()).start().await.unwrap().session_id, "s-1");

    // Both authorities have the same name.
    let other = Authority::new();
    for (roots, reason) in [
        (&b""[..], "its issuer is unknown"),
        (
            other.pem(),
            "the trusted issuer of that name has not signed it; the issuer is `rcgen self signed cert`",
        ),
    ] {
        let error = build(roots).start().await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::AwsUntrusted);
        assert!(!error.is_transient() && !error.outcome_unknown());
        let message = format!("the certificate of `localhost` is not trusted: {reason}");
        assert_eq!(error.to_string(), message);
        assert!(error.hint().contains("`SSL_CERT_FILE`"), "{}", error.hint());
    }
}

#[tokio::test]
async fn calls_take_the_proxy_with_its_password() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("ssm.invalid");
    let service = StubService::start_with(Some(acceptor), "", |_| started()).await;
    let proxy = StubProxy::start(Some(service.address)).await;
    let url = format!("http://user:p%40ss@{}", proxy.address);
    let proxied = Proxy::new(Some(&url), None).unwrap();
    let settings = settings("https://ssm.invalid".parse().unwrap());
    let api = SsmClient::new(settings, &RootCertificates::from_pem(authority.pem()), &proxied);
    assert_eq!(api.start().await.unwrap().session_id, "s-1");
    let heads = proxy.heads();
    assert!(heads[0].starts_with("CONNECT ssm.invalid:443 HTTP/1.1\r\n"), "{heads:?}");
    assert!(heads[0].to_ascii_lowercase().contains("proxy-authorization: basic "), "{heads:?}");
    assert!(heads[0].contains("dXNlcjpwQHNz"), "base64 of `user:p@ss`: {heads:?}");
}

#[tokio::test]
async fn excepted_and_loopback_hosts_do_not_take_the_proxy() {
    let service = StubService::start(|_| started()).await;
    let proxy = StubProxy::start(None).await;
    let url = format!("http://{}", proxy.address);
    let proxied = Proxy::new(Some(&url), Some("invalid")).unwrap();
    let trust = RootCertificates::from_pem(b"");
    let loopback = SsmClient::new(settings(service.url()), &trust, &proxied);
    loopback.start().await.unwrap();
    let excepted = settings("https://ssm.invalid".parse().unwrap());
    let error = SsmClient::new(excepted, &trust, &proxied).start().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsUnreachable);
    assert!(proxy.heads().is_empty());
}

/// Runs the ignored test `name` of this file in a process with another identity in its environment, and with
/// profile files that block the process that opens them.
async fn in_foreign_environment(name: &str) {
    let name = format!("aws::tests::{name}");
    let pipe =
        std::env::temp_dir().join(format!("ssm-sidecar-{}-{}", std::process::id(), name.len()));
    assert!(Command::new("mkfifo").arg(&pipe).status().await.unwrap().success());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", &name, "--ignored"])
        .env("AWS_ACCESS_KEY_ID", "AKIDHOST")
        .env("AWS_SECRET_ACCESS_KEY", "host")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .env("AWS_CONFIG_FILE", &pipe)
        .env("AWS_SHARED_CREDENTIALS_FILE", &pipe)
        .env_remove("AWS_SESSION_TOKEN")
        .kill_on_drop(true)
        .stdout(Stdio::piped());
    let outcome = tokio::time::timeout(Duration::from_secs(20), child.output()).await;
    std::fs::remove_file(&pipe).unwrap();
    let output = outcome.expect("a profile file was opened").unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && report.contains("1 passed"), "{report}");
}

#[tokio::test]
async fn static_keys_open_no_profile_and_read_no_environment() {
    in_foreign_environment("static_keys_alone").await;
}

#[tokio::test]
#[ignore = "started by the test above, in an environment of its own"]
async fn static_keys_alone() {
    let service = StubService::start(|_| started()).await;
    control_plane(settings(service.url())).start().await.unwrap();
    assert_eq!(service.seen()[0].key(), "AKIDOLD");
    let scope = service.seen()[0].header("authorization").to_owned();
    assert!(scope.contains("/ap-northeast-1/ssm/aws4_request"), "{scope}");
}

#[tokio::test]
async fn environments_identity_is_used_where_the_config_says_so() {
    in_foreign_environment("environment").await;
}

#[tokio::test]
#[ignore = "started by the test above, in an environment of its own"]
async fn environment() {
    let service = StubService::start(|_| started()).await;
    let identity = Identity::Environment;
    let api = control_plane(SsmSettings { identity, ..settings(service.url()) });
    api.start().await.unwrap();
    api.replace_credentials(&keys("AKIDNEW"));
    api.start().await.unwrap();
    let seen = service.seen();
    assert_eq!([seen[0].key(), seen[1].key()], ["AKIDHOST", "AKIDNEW"]);
}

#[test]
fn reasons_fit_the_api() {
    assert_eq!(reason("orders", None), "ssm-sidecar orders");
    assert_eq!(reason("two\nlines", None), "ssm-sidecar two lines");
    let long = reason(&"é".repeat(300), Some("job"));
    assert_eq!(long.chars().count(), settings::MAX_REASON);
    assert!(long.ends_with('é'));
}

#[test]
fn session_names_fit_sts() {
    assert_eq!(role_session_name("orders db/ü"), "ssm-sidecar-orders-db--");
    assert_eq!(role_session_name(&"x".repeat(100)).len(), 64);
}
