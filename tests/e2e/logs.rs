//! stderr: JSON lines, a summary at the end, and never a secret.

use std::process::Output;

use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tests::{
    emulator::{AgentSettings, Policy},
    fixtures::{Config, Exit, Sidecar, TcpServer, binary, free_port},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::world::{ACCESS_KEY_ID, INSTANCE, LIMIT, STOP, Tunnel, World, assert_no_secret};

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
async fn job_that_ends_as_asked_logs_nothing_that_needs_attention() {
    for policy in [Policy::least_privilege(INSTANCE), Policy::full(INSTANCE)] {
        let world = World::with(|builder| builder.policy(policy)).await;
        let server = TcpServer::banner(b"hello").await.unwrap();
        let config = world.config(server.port());
        let tunnel = Tunnel::open(&config).await;
        let mut client = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        let mut greeting = [0; 5];
        timeout(LIMIT, client.read_exact(&mut greeting)).await.unwrap().unwrap();
        let exit = tunnel.close().await;
        assert!(!exit.stderr.is_empty());
        assert_calm(&exit.stderr.join("\n"));

        let exec = sidecar(&config, &["exec"], &["--", "true"], None).await;
        assert_eq!(text(&exec.stderr), "", "`exec` logs warnings alone");
        assert!(exec.status.success());

        let check = sidecar(&config, &["check"], &[], None).await;
        assert_eq!(text(&check.stderr), "", "`check` logs nothing unasked");
        let check = sidecar(&config, &["check"], &[], Some("info")).await;
        assert!(text(&check.stderr).contains("session started"), "{}", text(&check.stderr));
        assert_calm(text(&check.stderr));
        world.finish().await;
    }
}

/// Asserts that JSON log lines contain none of level `WARN` or `ERROR`.
fn assert_calm(lines: &str) {
    for line in lines.lines() {
        let parsed: Value = serde_json::from_str(line).unwrap();
        assert!(!["WARN", "ERROR"].contains(&parsed["level"].as_str().unwrap()), "{lines}");
    }
}

#[tokio::test]
async fn every_line_of_both_processes_names_the_job() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config =
        world.config(server.port()).with(&json!({ "job_id": "job \"4711\"", "events": true }));
    let exit = Tunnel::open(&config).await.close().await;
    let lines = exit.logs();
    assert!(lines.len() > 5, "{}", exit.text());
    for line in lines {
        assert_eq!(line["job_id"], "job \"4711\"", "{line}");
        assert_eq!(line["name"], "a test's connection", "{line}");
    }
    assert_eq!(exit.closed().unwrap()["job_id"], "job \"4711\"", "{}", exit.text());

    let failing = config.with(&json!({ "target": { "port": free_port().unwrap() } }));
    let text_lines = Sidecar::spawn_with(&failing, |command| {
        command.args(["--log-format", "text"]);
    });
    let exit = text_lines.await.unwrap().exit(LIMIT).await.unwrap();
    assert_eq!(exit.status.code(), Some(69), "{}", exit.text());
    // From the worker, and from the monitor.
    for part in ["closed reason=", "ERROR"] {
        assert!(exit.stderr.iter().any(|line| line.contains(part)), "{}", exit.text());
    }
    for line in &exit.stderr {
        let labels = r#" name="a test's connection" job_id="job \"4711\"""#;
        assert!(line.ends_with(labels), "{line}");
    }
    world.finish().await;
}

#[tokio::test]
async fn level_that_means_nothing_is_named_once_and_does_not_silence_the_log() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let sidecar_process = Sidecar::spawn_with(&config, |command| {
        command.env("RUST_LOG", "loud");
    });
    let mut running = sidecar_process.await.unwrap();
    running.ready(LIMIT).await.unwrap();
    running.close_stdin();
    let exit: Exit = running.exit(STOP).await.unwrap();
    let complaints: Vec<_> = exit.stderr.iter().filter(|line| line.contains("RUST_LOG")).collect();
    assert_eq!(complaints.len(), 1, "{}", exit.text());
    assert!(complaints[0].contains("`loud` is neither a level nor"), "{complaints:?}");
    assert!(exit.logs().iter().any(|line| line["message"] == "ready"), "{}", exit.text());

    for (command, rest) in [("exec", &["--", "true"][..]), ("check", &[])] {
        let output = sidecar(&config, &[command], rest, Some("loud")).await;
        let stderr = text(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("`RUST_LOG` is ignored"), "{stderr}");
        assert!(output.status.success(), "{stderr}");
    }
    world.finish().await;
}

#[tokio::test]
async fn terminal_gets_colours_unless_no_color_is_set() {
    let world = World::start().await;
    let server = TcpServer::banner(b"x").await.unwrap();
    let file = config_file(&world.config(server.port()));
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let (program, file) = (program.display(), file.path().display());
    let commands = format!(
        "{program} exec --config {file} -- true && {program} check --config {file} && {program} --help"
    );
    for (variable, coloured) in [(None, true), (Some("1"), false), (Some(""), true)] {
        let mut command = Command::new("script");
        command.args(["-qefc", &commands, "/dev/null"]).env_clear().kill_on_drop(true);
        command.env("PATH", std::env::var_os("PATH").unwrap());
        command.envs([("RUST_LOG", "info"), ("TERM", "xterm"), ("SHELL", "/bin/sh")]);
        command.envs(variable.map(|value| ("NO_COLOR", value)));
        let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
        let text = text(&output.stdout);
        for part in ["session started", "the tunnel works", "Usage:"] {
            assert!(text.contains(part), "no `{part}` in {text}");
        }
        let colours = text.split("\u{1b}[").skip(1).filter(|rest| {
            rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
        });
        assert_eq!(colours.count() > 0, coloured, "NO_COLOR={variable:?}: {text:?}");
    }
    world.finish().await;
}

/// Runs a command of the sidecar with the config in a file; `level`: `RUST_LOG`.
async fn sidecar(config: &Config, before: &[&str], behind: &[&str], level: Option<&str>) -> Output {
    let file = config_file(config);
    let path = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut command = Command::new(path);
    command.args(before).arg("--config").arg(file.path()).args(behind);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).kill_on_drop(true);
    command.envs(level.map(|level| ("RUST_LOG", level)));
    timeout(LIMIT, command.output()).await.unwrap().unwrap()
}

fn config_file(config: &Config) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.pretty()).unwrap();
    file
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
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
