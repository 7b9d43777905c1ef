//! Permissions: which ones the customer must grant, and which are used where granted but never required.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    emulator::{Ending, OpeningMode, Policy, Record, Role},
    fixtures::{Sidecar, TcpServer},
};

use crate::world::{
    ACCESS_KEY_ID, Failure, INSTANCE, LIMIT, SECRET_ACCESS_KEY, STOP, Tunnel, World, assert_fails,
    may_terminate,
};

const ROLE: &str = "arn:aws:iam::123456789012:role/transfer";

#[tokio::test]
async fn start_session_alone_is_enough_and_the_flag_ends_the_session() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    assert_eq!(world.endings(), [Some(Ending::Flag)]);
    world.finish().await;
}

#[tokio::test]
async fn session_is_terminated_by_the_api_too_where_that_is_allowed() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    let calls = world.emulator.journal().calls("TerminateSession");
    assert!(calls.contains(&None), "no successful call among {calls:?}");
    world.finish().await;
}

#[tokio::test]
async fn signed_opening_where_the_gateway_insists() {
    let policy = Policy::full(INSTANCE);
    let world =
        World::with(|builder| builder.policy(policy).opening(OpeningMode::SignedOnly)).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    assert_eq!(world.openings(), ["opened signed"]);
    world.finish().await;
}

#[tokio::test]
async fn signed_opening_comes_first_where_unsigned_would_do() {
    let policy = Policy::full(INSTANCE);
    let world =
        World::with(|builder| builder.policy(policy).opening(OpeningMode::UnsignedAccepted)).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    assert_eq!(world.openings(), ["opened signed"]);
    world.finish().await;
}

#[tokio::test]
async fn refused_signature_falls_back_to_the_unsigned_opening_once() {
    let world = World::with(|builder| builder.opening(OpeningMode::UnsignedAccepted)).await;
    let server = TcpServer::echo().await.unwrap();
    let exit = world.tunnel(server.port()).await.close().await;
    assert_eq!(world.openings(), ["refused signed", "opened unsigned"]);
    let told = exit.stderr.iter().any(|line| line.contains("ssmmessages:OpenDataChannel"));
    assert!(told, "the missing permission is not named: {}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn both_openings_refused_is_access_denied() {
    let policy = Policy::least_privilege(INSTANCE).allowing("ssm:TerminateSession", "*");
    let world =
        World::with(|builder| builder.policy(policy).opening(OpeningMode::SignedOnly)).await;
    let failure =
        Failure { code: "aws.access_denied", status: 77, phase: "session", blame: "customer" };
    assert_fails(&world.config(5432), failure, "open_data_channel").await;
    assert_eq!(world.openings(), ["refused signed", "refused unsigned"]);
    world.finish().await;
}

#[tokio::test]
async fn temporary_keys_with_their_session_token() {
    let world = World::with(|builder| {
        builder.temporary_key("ASIAIOSFODNN7EXAMPLE", SECRET_ACCESS_KEY, SESSION_TOKEN, LIFETIME)
    });
    let world = world.await;
    let server = TcpServer::echo().await.unwrap();
    let keys = json!({ "aws": {
        "access_key_id": "ASIAIOSFODNN7EXAMPLE",
        "session_token": SESSION_TOKEN,
    } });
    Tunnel::open(&world.config(server.port()).with(&keys)).await.close().await;
    world.finish().await;
}

#[tokio::test]
async fn role_is_assumed_with_its_external_id() {
    let role = Role::new(ROLE).external_id("customer-42");
    let world = World::with(|builder| builder.role(role)).await;
    let server = TcpServer::echo().await.unwrap();
    let role = |external_id: Value| {
        let role = json!({ "role_arn": ROLE, "external_id": external_id });
        world.config(server.port()).with(&json!({ "aws": { "assume_role": role } }))
    };
    Tunnel::open(&role(json!("customer-42"))).await.close().await;
    let callers = world.callers();
    assert!(
        callers.iter().all(|caller| caller.contains(":assumed-role/transfer/")),
        "started by {callers:?}"
    );

    let failure = Failure {
        code: "aws.access_denied",
        status: 77,
        phase: "start_session",
        blame: "customer",
    };
    assert_fails(&role(json!("customer-43")), failure, "assume_role").await;
    world.finish().await;
}

#[tokio::test]
async fn environment_is_used_where_asked_for() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let keys = json!({ "aws": {
        "credentials": "environment", "access_key_id": null, "secret_access_key": null,
    } });
    let config = world.config(server.port()).with(&keys);
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    assert_eq!(sidecar.exit(STOP).await.unwrap().status.code(), Some(0));
    world.finish().await;
}

#[tokio::test]
async fn environment_is_never_used_unless_asked_for() {
    let world = World::start().await;
    let mut failure =
        Failure { code: "config.invalid", status: 65, phase: "config", blame: "customer" };
    let missing = json!({ "aws": { "access_key_id": null, "secret_access_key": null } });
    let wrong =
        json!({ "aws": { "secret_access_key": "wrongSecretWrongSecretWrongSecretWrongSe" } });
    for (cause, change) in [("no_keys", missing), ("wrong_secret", wrong)] {
        let config = world.config(5432).with(&change);
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command
                .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
                .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
        });
        let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
        failure.assert(cause, &exit, &config);
        failure = Failure {
            code: "aws.credentials",
            status: 77,
            phase: "start_session",
            blame: "customer",
        };
    }
    world.finish().await;
}

#[tokio::test]
async fn environment_without_credentials_is_blamed_on_the_operator() {
    let world = World::start().await;
    let keys = json!({ "aws": {
        "credentials": "environment", "access_key_id": null, "secret_access_key": null,
    } });
    let config = world.config(5432).with(&keys);
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.env("AWS_EC2_METADATA_DISABLED", "true");
    });
    let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
    let failure =
        Failure { code: "aws.credentials", status: 77, phase: "start_session", blame: "operator" };
    failure.assert("empty_environment", &exit, &config);
    world.finish().await;
}

#[tokio::test]
async fn renewed_keys_are_used_for_the_end() {
    let world = World::with(|builder| {
        builder.policy(may_terminate()).access_key("AKIAI44QH8DHBEXAMPLE", RENEWED)
    });
    let world = world.await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel(server.port()).await;
    world.emulator.control().expire_credentials(Some(ACCESS_KEY_ID));
    let line = json!({
        "type": "credentials",
        "access_key_id": "AKIAI44QH8DHBEXAMPLE",
        "secret_access_key": RENEWED,
    });
    tunnel.sidecar.write(format!("{line}\n").as_bytes()).await.unwrap();
    let exit = tunnel.close().await;
    let calls = world.emulator.journal().calls("TerminateSession");
    assert!(calls.contains(&None), "no successful call among {calls:?}; {}", exit.text());
    assert!(!exit.text().contains(RENEWED));
    world.finish().await;
}

#[tokio::test]
async fn lines_that_make_no_sense_are_logged_and_change_nothing() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel(server.port()).await;
    let lines = "nonsense\n{\"type\":\"unknown\"}\n{\"type\":\"credentials\"}\n[]\n\n{\"half\":\n";
    tunnel.sidecar.write(lines.as_bytes()).await.unwrap();
    tunnel.sidecar.log_line(LIMIT, |line| line.contains("WARN")).await.unwrap();
    assert!(tunnel.sidecar.is_running().unwrap());
    tunnel.close().await;
    world.finish().await;
}

impl World {
    /// How each session ended, in the order of their start.
    fn endings(&self) -> Vec<Option<Ending>> {
        let journal = self.emulator.journal();
        journal.sessions().iter().map(|id| journal.ending(id)).collect()
    }

    /// Every attempt to open a data channel, in order.
    fn openings(&self) -> Vec<String> {
        let signature = |signed: &bool| if *signed { "signed" } else { "unsigned" };
        let records = self.emulator.journal().records();
        let opening = |record: &Record| match record {
            Record::Opened { signed, .. } => Some(format!("opened {}", signature(signed))),
            Record::OpeningRefused { signed, .. } => Some(format!("refused {}", signature(signed))),
            _ => None,
        };
        records.iter().filter_map(|entry| opening(&entry.record)).collect()
    }

    /// ARNs of the callers who started sessions.
    fn callers(&self) -> Vec<String> {
        let records = self.emulator.journal().records();
        let caller = |record: &Record| match record {
            Record::SessionStarted { by, .. } => Some(by.clone()),
            _ => None,
        };
        records.iter().filter_map(|entry| caller(&entry.record)).collect()
    }
}

const LIFETIME: Duration = Duration::from_mins(15);
const SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLETOKENEXAMPLETOKENEXAMPLETOKEN";
const RENEWED: &str = "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY";
