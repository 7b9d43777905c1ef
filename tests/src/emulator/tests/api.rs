//! The API, called through the AWS SDK.

use std::time::Duration;

use aws_sdk_ssm::{
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::{RequestId as _, start_session::StartSessionError},
};
use aws_smithy_http_client::Builder as HttpBuilder;

use super::{INSTANCE, KEY, REGION, SECRET, builder, credentials, keys, ssm, start};
use crate::emulator::{Action, ApiFault, Emulator, Failure, Plan, Policy, Record, Role};

async fn refusal(emulator: &Emulator, credentials: Credentials) -> SdkError<StartSessionError> {
    let call = ssm(emulator, credentials)
        .start_session()
        .target(INSTANCE)
        .document_name("AWS-StartSSHSession");
    call.send().await.unwrap_err()
}

fn code<E: ProvideErrorMetadata>(error: &SdkError<E>) -> &str {
    error.code().unwrap_or_else(|| panic!("no code"))
}

#[tokio::test]
async fn session_is_started_and_recorded() {
    let emulator = builder().build().await.unwrap();
    let started = start(&emulator, 2222).await;
    let id = started.session_id().unwrap();
    assert!(id.starts_with("transfer-") && id.len() <= 96, "{id}");
    assert!(started.stream_url().unwrap().starts_with(&emulator.stream_url()));
    assert!(started.request_id().is_some());
    let journal = emulator.journal();
    let expected = Record::SessionStarted {
        id: id.to_owned(),
        target: INSTANCE.to_owned(),
        document: "AWS-StartSSHSession".to_owned(),
        port: 2222,
        reason: Some("a test".to_owned()),
        by: "arn:aws:iam::123456789012:user/transfer".to_owned(),
    };
    assert!(journal.records().iter().any(|entry| entry.record == expected), "{journal:?}");
    assert_eq!(journal.calls("StartSession"), [None]);
    assert_eq!(journal.open_sessions(), [id]);
    assert_eq!(journal.violations(), [""; 0]);
}

#[tokio::test]
async fn unauthenticated_callers_get_the_reason() {
    let emulator = builder()
        .temporary_key("ASIATEMPORARY", "secret", "token", Duration::from_hours(1))
        .temporary_key("ASIAEXPIRED", "secret", "token", Duration::ZERO)
        .build()
        .await
        .unwrap();
    let cases = [
        ("unknown key", credentials("AKIAUNKNOWN", SECRET, None), "UnrecognizedClientException"),
        ("wrong secret", credentials(KEY, "x", None), "InvalidSignatureException"),
        (
            "token for a user's key",
            credentials(KEY, SECRET, Some("t")),
            "UnrecognizedClientException",
        ),
        ("no token", credentials("ASIATEMPORARY", "secret", None), "UnrecognizedClientException"),
        (
            "another token",
            credentials("ASIATEMPORARY", "secret", Some("t")),
            "UnrecognizedClientException",
        ),
        ("expired", credentials("ASIAEXPIRED", "secret", Some("token")), "ExpiredTokenException"),
    ];
    for (name, credentials, expected) in cases {
        let error = refusal(&emulator, credentials).await;
        assert_eq!(code(&error), expected, "{name}");
        assert!(error.request_id().is_some(), "{name}");
    }
    let temporary = credentials("ASIATEMPORARY", "secret", Some("token"));
    let api = ssm(&emulator, temporary.clone());
    let call = || api.start_session().target(INSTANCE).document_name("AWS-StartSSHSession");
    call().send().await.unwrap();
    emulator.control().expire_credentials(Some("ASIATEMPORARY"));
    assert_eq!(code(&refusal(&emulator, temporary).await), "ExpiredTokenException");
    emulator.control().add_key("ASIARENEWED", "renewed", Some("renewed"));
    let renewed = credentials("ASIARENEWED", "renewed", Some("renewed"));
    ssm(&emulator, renewed)
        .start_session()
        .target(INSTANCE)
        .document_name("AWS-StartSSHSession")
        .send()
        .await
        .unwrap();
    assert_eq!(emulator.journal().violations(), [""; 0]);
}

#[tokio::test]
async fn policy_decides_over_instance_document_and_session() {
    let emulator = builder().policy(Policy::least_privilege(INSTANCE)).build().await.unwrap();
    let api = ssm(&emulator, keys());
    let session = start(&emulator, 22).await;
    let id = session.session_id().unwrap();

    let other =
        api.start_session().target("i-0aaaaaaaaaaaaaaaa").document_name("AWS-StartSSHSession");
    let error = other.send().await.unwrap_err();
    assert_eq!(code(&error), "AccessDeniedException");
    let message = error.message().unwrap();
    for part in [
        "user/transfer",
        "ssm:StartSession",
        "arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0aaaaaaaaaaaaaaaa",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let shell = api.start_session().target(INSTANCE).send().await.unwrap_err();
    assert!(
        shell.message().unwrap().contains("arn:aws:ssm:ap-northeast-1::document/"),
        "{shell:?}"
    );
    assert_eq!(
        code(&api.resume_session().session_id(id).send().await.unwrap_err()),
        "AccessDeniedException"
    );
    assert_eq!(
        code(&api.terminate_session().session_id(id).send().await.unwrap_err()),
        "AccessDeniedException"
    );

    emulator.control().set_policy(Policy::full(INSTANCE));
    api.resume_session().session_id(id).send().await.unwrap();
    api.terminate_session().session_id(id).send().await.unwrap();
    let unknown =
        api.resume_session().session_id("transfer-00000000000000000").send().await.unwrap_err();
    assert!(unknown.into_service_error().is_does_not_exist_exception());
    let foreign =
        api.terminate_session().session_id("other-00000000000000000").send().await.unwrap_err();
    assert_eq!(code(&foreign), "AccessDeniedException");
}

#[tokio::test]
async fn requests_are_validated() {
    let policy = Policy::nothing().allowing("ssm:*", "*");
    let emulator = builder().policy(policy).build().await.unwrap();
    let api = ssm(&emulator, keys());
    let call = || api.start_session().target(INSTANCE).document_name("AWS-StartSSHSession");
    let long = "x".repeat(257);
    let port = |text: &str| vec![text.to_owned()];
    let cases = [
        ("target", call().target("i-1"), "ValidationException"),
        ("empty reason", call().reason(""), "ValidationException"),
        ("long reason", call().reason(long), "ValidationException"),
        ("port 0", call().parameters("portNumber", port("0")), "ValidationException"),
        ("port with zeros", call().parameters("portNumber", port("022")), "ValidationException"),
        (
            "two ports",
            call().parameters("portNumber", vec!["1".into(), "2".into()]),
            "ValidationException",
        ),
        ("another parameter", call().parameters("host", port("x")), "ValidationException"),
    ];
    let count = cases.len();
    for (name, call, expected) in cases {
        assert_eq!(code(&call.send().await.unwrap_err()), expected, "{name}");
    }
    assert_eq!(emulator.journal().violations().len(), count);
    let document = call().document_name("AWS-Nothing").send().await.unwrap_err();
    assert!(document.into_service_error().is_invalid_document());
    let instance = call().target("mi-0123456789abcdef0").send().await.unwrap_err();
    assert!(instance.into_service_error().is_target_not_connected());
    assert_eq!(emulator.journal().sessions(), [""; 0]);
}

#[tokio::test]
async fn calls_fail_as_the_plan_says() {
    let plan = Plan::seeded(1)
        .api(ApiFault::new(Failure::Throttled).on(Action::StartSession).times(2))
        .api(ApiFault::new(Failure::InternalServerError).on(Action::StartSession).times(1))
        .api(
            ApiFault::new(Failure::TargetNotConnected)
                .on(Action::StartSession)
                .lasting(Duration::from_millis(100)),
        )
        .api(ApiFault::new(Failure::AnswerLost).on(Action::TerminateSession))
        .api(ApiFault::new(Failure::WithoutToken).on(Action::ResumeSession));
    let emulator = builder().faults(plan).build().await.unwrap();
    let mut codes = Vec::new();
    let api = ssm(&emulator, keys());
    let id = loop {
        match api.start_session().target(INSTANCE).document_name("AWS-StartSSHSession").send().await
        {
            Ok(started) => break started.session_id().unwrap().to_owned(),
            Err(error) => codes.push(code(&error).to_owned()),
        }
    };
    codes.dedup();
    let expected = ["ThrottlingException", "InternalServerError", "TargetNotConnected"];
    assert!(codes == expected || codes == expected[..2], "{codes:?}");
    let calls = emulator.journal().calls("StartSession");
    assert_eq!(
        calls[..3].iter().flatten().map(String::as_str).collect::<Vec<_>>(),
        [expected[0], expected[0], expected[1]]
    );
    let resumed = api.resume_session().session_id(&id).send().await.unwrap();
    assert_eq!(resumed.token_value(), None);
    let lost = api.terminate_session().session_id(&id).send().await.unwrap_err();
    assert!(lost.as_service_error().is_none(), "{}", DisplayErrorContext(&lost));
    assert_eq!(emulator.journal().open_sessions(), [""; 0], "it was carried out");
    emulator.control().set_faults(Plan::seeded(2));
    api.terminate_session().session_id(&id).send().await.unwrap();
}

#[tokio::test]
async fn assumed_role_has_keys_a_policy_and_an_end() {
    let arn = "arn:aws:iam::123456789012:role/transfer-role";
    let role = Role::new(arn).external_id("secret handshake").policy(Policy::full(INSTANCE));
    let emulator = builder().policy(Policy::nothing()).role(role).build().await.unwrap();
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(emulator.api_url())
        .credentials_provider(keys())
        .retry_config(RetryConfig::disabled())
        .http_client(HttpBuilder::new().build_http());
    let sts = aws_sdk_sts::Client::from_conf(config.build());
    let call = || sts.assume_role().role_arn(arn).role_session_name("job@7=x,y");
    for external_id in [None, Some("wrong".to_owned())] {
        let denied = call().set_external_id(external_id).send().await.unwrap_err();
        assert_eq!(code(&denied), "AccessDenied");
        assert!(denied.message().unwrap().contains(arn), "{denied:?}");
    }
    let assumed = call().external_id("secret handshake").send().await.unwrap();
    let keys = assumed.credentials().unwrap();
    let credentials =
        credentials(keys.access_key_id(), keys.secret_access_key(), Some(keys.session_token()));
    let api = ssm(&emulator, credentials.clone());
    let started = api
        .start_session()
        .target(INSTANCE)
        .document_name("AWS-StartSSHSession")
        .send()
        .await
        .unwrap();
    let id = started.session_id().unwrap();
    assert!(id.starts_with("job@7=x,y-"), "{id}");
    api.terminate_session().session_id(id).send().await.unwrap();
    emulator.control().expire_credentials(Some(keys.access_key_id()));
    assert_eq!(code(&refusal(&emulator, credentials).await), "ExpiredTokenException");
    assert_eq!(emulator.journal().violations(), [""; 0]);
}
