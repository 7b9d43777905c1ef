//! Each code of the contract that AWS or the agent can cause: the whole `failed` line, the exit status, no
//! secret, and no session left. The codes of the customer's side are in `failures.rs`.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tests::{
    emulator::{Action, AgentSettings, ApiFault, Break, Cut, Failure as Fault, Plan, Policy},
    fixtures::{Sidecar, TcpServer},
};
use tokio_tungstenite::tungstenite::Message;

use crate::world::{
    ACCESS_KEY_ID, Failure, INSTANCE, LIMIT, World, assert_fails, assert_fails_within,
    may_terminate,
};

#[tokio::test]
async fn aws_instance_not_connected() {
    let world = faulty(ApiFault::new(Fault::TargetNotConnected)).await;
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 3 } }));
    let failure = Failure {
        code: "aws.instance_not_connected",
        status: 69,
        phase: "start_session",
        blame: "customer",
    };
    assert_fails_within(&config, failure, "not_connected", Duration::from_secs(15)).await;
    world.finish().await;
}

#[tokio::test]
async fn instance_that_connects_in_time_is_waited_for() {
    let fault = ApiFault::new(Fault::TargetNotConnected).times(2).on(Action::StartSession);
    let world = faulty(fault).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    world.finish().await;
}

#[tokio::test]
async fn aws_throttled_when_it_persists() {
    let world = faulty(ApiFault::new(Fault::Throttled)).await;
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 3 } }));
    let failure = passing("aws.throttled");
    assert_fails_within(&config, failure, "start_session", Duration::from_secs(15)).await;
    let calls = world.emulator.journal().calls("StartSession");
    assert!((2..=8).contains(&calls.len()), "backs off: {} calls", calls.len());
    world.finish().await;
}

#[tokio::test]
async fn transient_throttling_is_retried_until_it_ends() {
    let world = faulty(ApiFault::new(Fault::Throttled).times(2).on(Action::StartSession)).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    world.finish().await;
}

#[tokio::test]
async fn aws_internal() {
    let world = faulty(ApiFault::new(Fault::InternalServerError)).await;
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 3 } }));
    let failure = passing("aws.internal");
    assert_fails_within(&config, failure, "start_session", Duration::from_secs(15)).await;
    world.finish().await;
}

#[tokio::test]
async fn aws_access_denied() {
    let world = World::with(|builder| builder.policy(Policy::nothing())).await;
    assert_fails(&world.config(5432), refused("aws.access_denied"), "start_session").await;
    let calls = world.emulator.journal().calls("StartSession");
    assert_eq!(calls.len(), 1, "never tried again");
    world.finish().await;
}

#[tokio::test]
async fn aws_access_denied_by_an_explicit_deny() {
    let policy = Policy::least_privilege(INSTANCE).denying("ssm:StartSession", "*");
    let world = World::with(|builder| builder.policy(policy)).await;
    assert_fails(&world.config(5432), refused("aws.access_denied"), "explicit_deny").await;
    world.finish().await;
}

#[tokio::test]
async fn aws_access_denied_by_the_policy_of_a_vpc_endpoint() {
    let text = "User: arn:aws:iam::123456789012:user/etl is not authorized to perform: ssm:StartSession \
                on resource: arn:aws:ec2:ap-northeast-1:123456789012:instance/i-0123456789abcdef0 because \
                no VPC endpoint policy allows the ssm:StartSession action";
    let world = faulty(error("AccessDeniedException", text)).await;
    let failure = Failure { blame: "operator", ..refused("aws.access_denied") };
    assert_fails(&world.config(5432), failure, "vpc_endpoint_policy").await;
    world.finish().await;
}

#[tokio::test]
async fn aws_account_where_managed_instances_are_on_the_standard_tier() {
    let text =
        "Enable advanced-instances tier to use Session Manager with your on-premises instances";
    let world = faulty(error("BadRequest", text)).await;
    let failure = Failure { status: 69, ..refused("aws.account") };
    assert_fails(&world.config(5432), failure, "standard_tier").await;
    world.finish().await;
}

#[tokio::test]
async fn aws_refused_where_no_other_code_fits() {
    let world = faulty(error("BadRequest", "Not on a Sunday.")).await;
    let failure = Failure { status: 69, ..refused("aws.refused") };
    assert_fails(&world.config(5432), failure, "bad_request").await;
    let calls = world.emulator.journal().calls("StartSession");
    assert_eq!(calls.len(), 1, "never tried again");
    world.finish().await;
}

#[tokio::test]
async fn aws_credentials() {
    let world = World::start().await;
    let wrong_secret =
        json!({ "aws": { "secret_access_key": "wrongSecretWrongSecretWrongSecretWrongSe" } });
    let wrong_id = json!({ "aws": { "access_key_id": "AKIAI44QH8DHBEXAMPLE" } });
    for (cause, change) in [("wrong_secret", wrong_secret), ("unknown_key", wrong_id)] {
        let config = world.config(5432).with(&change);
        assert_fails(&config, refused("aws.credentials"), cause).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn aws_credentials_expired() {
    let world = World::start().await;
    world.emulator.control().expire_credentials(Some(ACCESS_KEY_ID));
    assert_fails(&world.config(5432), refused("aws.credentials_expired"), "expired").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_start_session() {
    let world = faulty(ApiFault::new(Fault::Hangs).on(Action::StartSession)).await;
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 3 } }));
    let failure = passing("timeout.start_session");
    assert_fails_within(&config, failure, "no_answer", Duration::from_secs(15)).await;
    world.finish().await;
}

#[tokio::test]
async fn session_ended_by_somebody_else_during_the_start() {
    let world = World::start().await;
    let silent = TcpServer::banner(b"SSH-2.0-silent\r\n").await.unwrap();
    let config = world.config(5432).with(&json!({
        "bastion": { "ssh_port": silent.port() },
        "events": true,
    }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    while sidecar.word("phase", LIMIT).await.unwrap() != "ssh" {}
    for session in world.emulator.journal().open_sessions() {
        world.emulator.control().terminate(&session, "ended by a test");
    }
    let exit = sidecar.exit(LIMIT).await.unwrap();
    let failure = Failure { code: "session.ended", status: 69, phase: "ssh", blame: "customer" };
    failure.assert("by_somebody_else", &exit, &config);
    world.finish().await;
}

#[tokio::test]
async fn session_lost_when_the_path_does_not_come_back() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({
        "timeouts": { "reconnect_s": 3 },
        "events": true,
    }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    let gone = ApiFault::new(Fault::ConnectionClosed);
    world.emulator.control().set_faults(Plan::default().api(gone).cut(Cut::after(0, Break::Reset)));
    sidecar.word("degraded", LIMIT).await.unwrap();
    let exit = sidecar.exit(LIMIT).await.unwrap();
    let failure = Failure { code: "session.lost", status: 75, phase: "tunnel", blame: "operator" };
    failure.assert("not_replaced", &exit, &config);
    // The sidecar can no longer reach AWS to end it.
    for session in world.emulator.journal().open_sessions() {
        world.emulator.control().terminate(&session, "ended by a test");
    }
    world.finish().await;
}

#[tokio::test]
async fn session_unsupported_by_an_agent_without_port_sessions() {
    unsupported(AgentSettings::default().version([2, 3, 600, 0]), "old_agent").await;
}

#[tokio::test]
async fn session_unsupported_when_the_agent_wants_encryption() {
    unsupported(AgentSettings::default().encryption(), "encryption").await;
}

#[tokio::test]
async fn session_protocol_when_the_gateway_sends_what_is_no_message() {
    let frames: [(&str, &'static [u8]); 3] =
        [("short", b"\0\0\0"), ("all_ones", &[0xff; 120]), ("all_zeros", &[0; 200])];
    for (cause, frame) in frames {
        let gateway = TcpServer::start(move |stream| async move {
            let socket = tokio_tungstenite::accept_async(stream).await;
            let mut socket = socket.map_err(std::io::Error::other)?;
            drop(socket.next().await);
            for _ in 0..100 {
                let message = Message::Binary(frame.into());
                socket.send(message).await.map_err(std::io::Error::other)?;
            }
            while let Some(Ok(_)) = socket.next().await {}
            Ok(())
        });
        let gateway = gateway.await.unwrap();
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let endpoint = format!("ws://127.0.0.1:{}", gateway.port());
        let config =
            world.config(5432).with(&json!({ "aws": { "stream_endpoint_url": endpoint } }));
        let failure =
            Failure { code: "session.protocol", status: 76, phase: "session", blame: "aws" };
        assert_fails(&config, failure, cause).await;
        world.finish().await;
    }
}

/// Asserts the failure with an agent that does not support port sessions.
async fn unsupported(agent: AgentSettings, cause: &str) {
    let world = World::with(|builder| builder.agent(agent)).await;
    let failure =
        Failure { code: "session.unsupported", status: 76, phase: "session", blame: "customer" };
    assert_fails(&world.config(5432), failure, cause).await;
    world.finish().await;
}

/// A refusal of every `StartSession`.
fn error(code: &str, message: &str) -> ApiFault {
    let fault = Fault::Error { status: 400, code: code.to_owned(), message: message.to_owned() };
    ApiFault::new(fault).on(Action::StartSession)
}

/// A world with a fault of the API.
async fn faulty(fault: ApiFault) -> World {
    World::with(|builder| builder.faults(Plan::default().api(fault))).await
}

/// A transient failure of `StartSession`.
fn passing(code: &'static str) -> Failure {
    Failure { code, status: 75, phase: "start_session", blame: "aws" }
}

/// A refusal of `StartSession`.
fn refused(code: &'static str) -> Failure {
    Failure { code, status: 77, phase: "start_session", blame: "customer" }
}
