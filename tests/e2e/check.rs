//! The complete output of `check` for a healthy config and for planted faults, compared with
//! `golden/check/`.

use std::{process::Stdio, sync::Arc};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tests::{
    emulator::{ApiFault, Failure as Fault, OpeningMode, Plan, Policy},
    fixtures::{
        Config, FullQueue, KeyPair, KeyType, Sshd, TcpServer, binary, eventually, free_port,
    },
};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use crate::{
    golden::{assert_same, mask},
    world::{
        INSTANCE, LIMIT, World, assert_no_secret, mariadb_server, may_terminate, postgres_server,
    },
};

#[tokio::test]
async fn healthy_with_every_permission() {
    let full = Policy::full(INSTANCE);
    let world = World::with(|builder| builder.policy(full).opening(OpeningMode::SignedOnly)).await;
    let engine = json!({ "target": { "engine": "postgresql" } });
    let config = world.config(postgres_server().await.port()).with(&engine);
    golden("healthy", &config, 0).await;
    world.finish().await;
}

#[tokio::test]
async fn healthy_with_start_session_alone_and_no_pin() {
    let world = World::start().await;
    let config = world
        .config(mariadb_server().await.port())
        .with(&json!({ "target": { "engine": "mysql" }, "bastion": { "ssh_host_key": null } }));
    golden("least_privilege", &config, 0).await;
    world.finish().await;
}

#[tokio::test]
async fn start_session_is_not_allowed() {
    let world = World::with(|builder| builder.policy(Policy::nothing())).await;
    golden("start_session_denied", &world.config(5432), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn opening_is_not_allowed_where_the_service_insists() {
    let world =
        World::with(|builder| builder.policy(may_terminate()).opening(OpeningMode::SignedOnly));
    let world = world.await;
    golden("opening_denied", &world.config(5432), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn secret_key_is_wrong() {
    let world = World::start().await;
    let wrong =
        json!({ "aws": { "secret_access_key": "wrongSecretWrongSecretWrongSecretWrongSe" } });
    golden("wrong_secret_key", &world.config(5432).with(&wrong), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn agent_is_offline() {
    let fault = ApiFault::new(Fault::TargetNotConnected);
    let world = World::with(|builder| builder.faults(Plan::default().api(fault))).await;
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 3 } }));
    golden("agent_offline", &config, 69).await;
    world.finish().await;
}

#[tokio::test]
async fn sshd_is_not_there() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let closed = json!({ "bastion": { "ssh_port": free_port().unwrap() } });
    golden("no_sshd", &world.config(5432).with(&closed), 69).await;
    world.finish().await;
}

#[tokio::test]
async fn login_user_of_another_image() {
    let world = World::start().await;
    let user = json!({ "bastion": { "ssh_user": "ec2-user" } });
    golden("wrong_user", &world.config(5432).with(&user), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn key_does_not_match() {
    let world = World::start().await;
    let other = KeyPair::generate(KeyType::Ed25519).unwrap();
    let key = json!({ "bastion": { "ssh_private_key": other.private } });
    golden("wrong_key", &world.config(5432).with(&key), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn host_key_is_another() {
    let world = World::start().await;
    let pin = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let pin = json!({ "bastion": { "ssh_host_key": pin } });
    golden("wrong_host_key", &world.config(5432).with(&pin), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn forwarding_is_switched_off() {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let sshd = Arc::new(Sshd::start_with(key, &["AllowTcpForwarding no"]).await.unwrap());
    let world = World::around(sshd, |builder| builder).await;
    golden("no_forwarding", &world.config(5432), 77).await;
    world.finish().await;
}

#[tokio::test]
async fn host_name_does_not_resolve() {
    let world = World::start().await;
    let host = json!({ "target": { "host": "database.invalid" } });
    golden("unresolved", &world.config(5432).with(&host), 69).await;
    world.finish().await;
}

#[tokio::test]
async fn database_does_not_listen() {
    let world = World::start().await;
    golden("not_listening", &world.config(free_port().unwrap()), 69).await;
    world.finish().await;
}

#[tokio::test]
async fn security_group_drops() {
    let world = World::start().await;
    let target = FullQueue::start().await.unwrap();
    let config = world.config(target.port()).with(&json!({ "timeouts": { "connect_s": 2 } }));
    golden("security_group", &config, 75).await;
    world.finish().await;
}

#[tokio::test]
async fn what_listens_is_no_such_database() {
    let world = World::start().await;
    let server = TcpServer::banner(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let engine = json!({ "target": { "engine": "mysql" } });
    golden("other_server", &world.config(server.port()).with(&engine), 69).await;
    world.finish().await;
}

#[tokio::test]
async fn config_is_wrong() {
    let world = World::start().await;
    let wrong = json!({ "bastion": { "instance_id": "bastion" }, "targte": {} });
    golden("wrong_document", &world.config(5432).with(&wrong), 65).await;
    world.finish().await;
}

#[tokio::test]
async fn json_has_a_line_for_each_step_and_the_failure_last() {
    let world = World::start().await;
    let config = world.config(free_port().unwrap());
    let (stdout, _, status) = check(&config, &["--output", "json"]).await;
    let lines: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter_map(|line| line["step"].as_str()).collect();
    assert_eq!(steps, ["config", "identity", "start_session", "session", "ssh", "login", "target"]);
    let (last, before) = lines.split_last().unwrap();
    assert!(before.iter().all(|line| line["ms"].is_u64() && line["found"].is_string()));
    assert_eq!(before.last().unwrap()["status"], "failed");
    assert_eq!(last["result"], "failed");
    assert_eq!(last["failure"]["code"], "target.unreachable");
    assert_eq!((last["exit_status"].as_i64(), status), (Some(69), 69));
    world.finish().await;
}

#[tokio::test]
async fn interrupted_check_ends_its_session() {
    let world = World::start().await;
    let silent = TcpServer::banner(b"SSH-2.0-silent\r\n").await.unwrap();
    let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": silent.port() } }));
    let child = start(&config, &[]).await;
    let journal = world.emulator.journal();
    let open = eventually(LIMIT, || async { !journal.open_sessions().is_empty() }).await;
    assert!(open, "no session");
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130));
    world.finish().await;
}

/// Compares the complete output of a check with a golden file.
async fn golden(name: &str, config: &Config, status: i32) {
    let (stdout, stderr, actual) = check(config, &[]).await;
    assert_eq!(stderr, "", "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "colours are for terminals only");
    let masked: String = stdout.lines().map(|line| mask_line(config, line) + "\n").collect();
    assert_same(&format!("check/{name}.txt"), &masked);
    assert_eq!(actual, status, "{stdout}");
}

/// Masks a line, including its duration, which is right-aligned before ` ms  `.
fn mask_line(config: &Config, line: &str) -> String {
    let line = mask(config, line);
    match line.split_once(" ms  ") {
        Some((before, found)) => {
            let step = before.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end();
            format!("{step:<24} * ms  {found}")
        }
        None => line,
    }
}

/// Runs `check`; returns stdout, stderr and the exit status.
async fn check(config: &Config, options: &[&str]) -> (String, String, i32) {
    let child = start(config, options).await;
    let output = timeout(LIMIT * 2, child.wait_with_output()).await.unwrap().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_no_secret(&(stdout.clone() + &stderr), config);
    (stdout, stderr, output.status.code().unwrap())
}

async fn start(config: &Config, options: &[&str]) -> tokio::process::Child {
    let path = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut child = Command::new(path)
        .arg("check")
        .args(options)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.pretty().as_bytes()).await.unwrap();
    child
}
