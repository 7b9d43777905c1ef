//! stderr: JSON lines, a summary at the end, and never a secret.

use serde_json::{Value, json};
use tests::{
    emulator::AgentSettings,
    fixtures::{Sidecar, TcpServer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::{ACCESS_KEY_ID, LIMIT, STOP, World, assert_no_secret};

#[tokio::test]
async fn every_line_is_a_json_object_with_time_and_level() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let exit = world.tunnel(server.port()).await.close().await;
    assert!(!exit.stderr.is_empty());
    for line in &exit.stderr {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        for field in ["timestamp", "level", "target", "message"] {
            assert!(parsed.get(field).is_some(), "no `{field}` in {line}");
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn text_of_the_customers_preferences_is_quoted_and_replaces_nothing_of_ours() {
    let text = "welcome\u{1b}[2J\r{\"level\":\"ERROR\"}";
    let world =
        World::with(|builder| builder.agent(AgentSettings::default().customer_message(text))).await;
    let server = TcpServer::echo().await.unwrap();
    let exit = world.tunnel(server.port()).await.close().await;
    let ours = "message of the customer's session preferences";
    let lines: Vec<_> = exit.stderr.iter().filter(|line| line.contains("welcome")).collect();
    let [line] = lines[..] else { panic!("{}", exit.text()) };
    let parsed: Value = serde_json::from_str(line).unwrap();
    assert_eq!(parsed["message"], ours, "{line}");
    assert_eq!(parsed["text"], "welcome [2J {\"level\":\"ERROR\"}", "{line}");
    assert_eq!(line.matches("\"message\"").count(), 1, "{line}");
    world.finish().await;
}

#[tokio::test]
async fn last_line_sums_the_session_up() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let exit = world.tunnel(server.port()).await.close().await;
    let line = exit.logs().pop().unwrap();
    let names = [
        "reason",
        "bytes_to_target",
        "bytes_from_target",
        "connections",
        "resumes",
        "retransmissions",
    ];
    for name in names {
        assert!(line.get(name).is_some(), "no `{name}` in {line}");
    }
    for phase in ["start_session", "session", "ssh", "target"] {
        assert!(line.to_string().contains(phase), "no time of phase {phase} in {line}");
    }
    world.finish().await;
}

#[tokio::test]
async fn unpinned_host_key_is_logged_as_a_warning_ready_to_be_pinned() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "bastion": { "ssh_host_key": null } }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    let warnings: Vec<_> = exit.logs().into_iter().filter(|line| line["level"] == "WARN").collect();
    let fingerprints =
        ["ed25519", "ecdsa"].map(|name| world.sshd.host_key_fingerprint(name).unwrap());
    let named = warnings
        .iter()
        .any(|line| fingerprints.iter().any(|fingerprint| line.to_string().contains(fingerprint)));
    assert!(named, "no warning names the host key: {}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn nothing_secret_is_logged_at_the_finest_level() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "events": true }));
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.env("RUST_LOG", "trace");
    });
    let mut sidecar = sidecar.await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let payload = b"SELECT password FROM customers";
    stream.write_all(payload).await.unwrap();
    let mut echo = vec![0; payload.len()];
    timeout(LIMIT, stream.read_exact(&mut echo)).await.unwrap().unwrap();
    drop(stream);
    let renewed = "renewedSecretRenewedSecretRenewedSecret1";
    let line = json!({
        "type": "credentials",
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": renewed,
        "session_token": renewed,
    });
    sidecar.write(format!("{line}\nnot json {renewed}\n").as_bytes()).await.unwrap();
    sidecar.log_line(LIMIT, |line| line.contains("credentials")).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();

    let text = exit.text();
    assert!(text.contains("TRACE") || text.contains("DEBUG"), "the level was not raised: {text}");
    assert_no_secret(&text, &config);
    assert!(!text.contains(renewed), "a renewed key shows");
    assert!(!text.contains("SELECT password"), "what a customer sends shows");
    for token in world.emulator.journal().tokens() {
        assert!(!text.contains(&token), "a session's token shows");
    }
    world.finish().await;
}

#[tokio::test]
async fn text_where_asked_for() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.args(["--log-format", "text"]);
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert!(!exit.stderr.is_empty());
    assert!(exit.logs().is_empty(), "JSON among text: {}", exit.text());
    world.finish().await;
}
