//! The config: how it may arrive, which mistakes are reported, and that its secrets stay secret.

use std::{
    fs,
    io::{Seek as _, Write as _},
    process::Stdio,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{Config, KeyFormat, KeyPair, KeyType, Sidecar, TcpServer};

use crate::world::{Failure, LIMIT, STOP, World, assert_fails, assert_no_secret, with_key};

/// The failure of an invalid config.
const INVALID: Failure =
    Failure { code: "config.invalid", status: 65, phase: "config", blame: "customer" };

#[tokio::test]
async fn compact_pretty_and_piecemeal_configs_are_the_same() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let texts = [
        ("compact", config.compact()),
        ("pretty", config.pretty()),
        ("spaces ahead, newline behind", format!("\n \t{}\n", config.compact())),
    ];
    for (name, text) in texts {
        let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
        sidecar.write(text.as_bytes()).await.unwrap();
        let ready = sidecar.ready(LIMIT).await;
        assert!(ready.is_ok(), "{name}: {ready:?}");
        sidecar.close_stdin();
        assert_eq!(sidecar.exit(STOP).await.unwrap().status.code(), Some(0), "{name}");
    }

    let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
    for piece in config.pretty().as_bytes().chunks(100) {
        sidecar.write(piece).await.unwrap();
        // Makes it likely that each piece is read separately; the test holds in any case.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn braces_and_quotes_in_strings_do_not_end_the_config() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let memo = r#"} \" { [ ] } \\" 日本語 "#;
    let config = world.config(server.port()).with(&json!({ "memo": memo }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn config_in_a_file_needs_no_stdin_and_ends_by_signal() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("connection.json");
    fs::write(&file, world.config(server.port()).pretty()).unwrap();
    let sidecar = Sidecar::spawn_silent(|command| {
        command.arg("--config").arg(&file).stdin(Stdio::null());
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.signal(Signal::SIGTERM).unwrap();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn missing_file_is_named() {
    let path = "/nonexistent/connection.json";
    let sidecar = Sidecar::spawn_silent(|command| {
        command.args(["--config", path]);
    });
    let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
    INVALID.assert("missing_file", &exit, &Config::new("none"));
}

#[tokio::test]
async fn everything_that_is_not_one_object_is_refused() {
    let too_long = format!(r#"{{"name":"{}"}}"#, "x".repeat(1 << 20));
    let cases = [
        ("nothing", ""),
        ("half_a_document", r#"{"name": "a", "aws": {"#),
        ("an_array", r#"[{"name": "a"}]"#),
        ("a_text", r#""name""#),
        ("no_json", "name: a\n"),
        ("a_comma_too_many", r#"{"name": "a",}"#),
        ("more_than_1_mib", &too_long),
    ];
    for (name, text) in cases {
        let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
        // The sidecar may exit before it has read the excess.
        drop(sidecar.write(text.as_bytes()).await);
        sidecar.close_stdin();
        let exit = sidecar.exit(STOP).await.unwrap();
        INVALID.assert(name, &exit, &Config::new("none"));
    }
}

#[tokio::test]
async fn stdin_that_is_null_is_the_operators_mistake() {
    for arguments in [&[][..], &["check"], &["policy"]] {
        let sidecar = Sidecar::spawn_silent(|command| {
            command.args(arguments).stdin(Stdio::null());
        });
        let exit = sidecar.await.unwrap().exit(STOP).await.unwrap();
        assert_eq!(exit.status.code(), Some(65), "{arguments:?}: {}", exit.text());
        assert!(exit.text().contains("`docker run -i`"), "{arguments:?}: {}", exit.text());
        if arguments.is_empty() {
            let failure = Failure { blame: "operator", ..INVALID };
            failure.assert("no_stdin", &exit, &Config::new("none"));
        }
    }
}

#[tokio::test]
async fn stdin_that_is_a_file_ends_the_lease_with_a_word() {
    let world = World::start().await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(world.config(5432).pretty().as_bytes()).unwrap();
    file.rewind().unwrap();
    let sidecar = Sidecar::spawn_silent(|command| {
        command.stdin(file);
    });
    let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    let told = exit.logs().iter().any(|line| {
        line["level"] == "WARN" && line["message"].to_string().contains("stdin is a file")
    });
    assert!(told && exit.text().contains("`--config FILE`"), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn name_that_is_no_region_is_refused_with_the_nearest_one() {
    let world = World::start().await;
    for (cause, region) in [("zone_as_region", "ap-northeast-1a"), ("city_as_region", "Tokyo")] {
        let config = world.config(5432).with(&json!({ "aws": { "region": region } }));
        assert_fails(&config, INVALID, cause).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn config_over_the_limit_is_refused_while_stdin_stays_open() {
    let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
    let endless = format!(r#"{{"memo":"{}"#, "x".repeat(2 << 20));
    drop(sidecar.write(endless.as_bytes()).await);
    let exit = sidecar.exit(STOP).await.unwrap();
    INVALID.assert("more_than_1_mib", &exit, &Config::new("none"));
}

#[tokio::test]
async fn all_mistakes_are_reported_at_once_by_path() {
    let world = World::start().await;
    let config = world.config(5432).with(&json!({
        "name": "",
        "aws": { "secret_access_key": null, "endpoint_url": "http://example.com" },
        "bastion": { "instance_id": "i-xyz", "ssh_port": 0 },
        "target": { "host": null },
        "listen": { "address": "0.0.0.0" },
        "timeouts": { "ready_s": 601 },
        "tunnel": { "sessions": 17, "message_bytes": 255, "compression": "maybe" },
    }));
    let failure = assert_fails(&config, INVALID, "many_mistakes").await;
    let message = failure["message"].as_str().unwrap();
    let paths = [
        "name",
        "aws.secret_access_key",
        "aws.endpoint_url",
        "bastion.instance_id",
        "bastion.ssh_port",
        "target.host",
        "listen.address",
        "timeouts.ready_s",
        "tunnel.sessions",
        "tunnel.message_bytes",
        "tunnel.compression",
    ];
    for path in paths {
        assert!(message.contains(path), "`{path}` is not mentioned in: {message}");
    }
    world.finish().await;
}

#[tokio::test]
async fn key_that_takes_too_long_to_open_is_refused_with_the_way_to_mend_it() {
    let world = World::start().await;
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    // The derivation takes about as long to encrypt as to decrypt: just above the bound.
    let slow = tokio::task::spawn_blocking(move || key.encrypt_slowly("correct horse", 1001));
    let slow = slow.await.unwrap().unwrap();
    let config = world.config(5432).with(&json!({ "bastion": {
        "ssh_private_key": slow.text,
        "ssh_private_key_passphrase": slow.passphrase,
    } }));
    let failure = Failure { code: "config.key_unreadable", ..INVALID };
    assert_fails(&config, failure, "takes_too_long").await;
    world.finish().await;
}

#[tokio::test]
async fn keys_that_cannot_be_read_are_reported_with_all_other_mistakes() {
    let world = World::start().await;
    let config = world.config(5432).with(&json!({
        "bastion": {
            "ssh_private_key": "ssh-ed25519 AAAA the public half",
            "ssh_host_key": ["SHA256:short", world.sshd.host_key_fingerprint("ed25519").unwrap()],
        },
        "target": { "host": null },
    }));
    let failure = assert_fails(&config, INVALID, "keys_among_many_mistakes").await;
    let message = failure["message"].as_str().unwrap();
    for path in ["target.host: ", "bastion.ssh_private_key: ", "bastion.ssh_host_key[0]: "] {
        assert!(message.contains(path), "`{path}` is not mentioned in: {message}");
    }
    assert!(!message.contains("ssh_host_key[1]"), "{message}");
    world.finish().await;
}

#[tokio::test]
async fn unknown_field_is_refused_with_the_nearest_name() {
    let world = World::start().await;
    let cases = [
        (json!({ "bastion": { "ssh_private_keys": "x" } }), "unknown_field"),
        (json!({ "targt": {} }), "unknown_section"),
        (json!({ "aws": { "acces_key_id": "x" } }), "unknown_key_id"),
    ];
    for (change, cause) in cases {
        assert_fails(&world.config(5432).with(&change), INVALID, cause).await;
    }
    // This field's name resembles that of a plain SSH tunnel's config, but it is not one of ours.
    let config = world.config(5432).with(&json!({ "ssh_tunnel": { "host": "b" } }));
    assert_fails(&config, INVALID, "ssh_tunnel").await;
    world.finish().await;
}

#[tokio::test]
async fn secret_in_the_wrong_place_is_not_repeated() {
    let world = World::start().await;
    let secret = "hunter2-hunter2-hunter2";
    let changes = [
        ("text_for_a_port", json!({ "bastion": { "ssh_port": secret } })),
        ("list_for_a_text", json!({ "aws": { "secret_access_key": [secret] } })),
        ("text_for_a_section", json!({ "tunnel": secret })),
        ("unknown_hardening", json!({ "hardening": secret })),
        ("unknown_engine", json!({ "target": { "engine": secret } })),
    ];
    for (cause, change) in changes {
        let config = world.config(5432).with(&change);
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.env("RUST_LOG", "trace");
        });
        let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
        INVALID.assert(cause, &exit, &config);
        assert!(!exit.text().contains(secret), "{change}: {}", exit.text());
    }
    world.finish().await;
}

#[tokio::test]
async fn version_from_the_future() {
    let world = World::start().await;
    let config = world.config(5432).with(&json!({ "version": 2 }));
    let failure = Failure { code: "config.version", ..INVALID };
    assert_fails(&config, failure, "from_the_future").await;
    world.finish().await;
}

#[tokio::test]
async fn unreadable_private_key() {
    let world = World::start().await;
    let whole = &world.sshd.client_key().private;
    let damaged = whole.replacen("AAAA", "BBBB", 1);
    let cases = [
        ("no_key", "not a key".to_owned()),
        ("public_key", world.sshd.client_key().public.clone()),
        ("damaged", damaged),
        ("character_that_does_not_belong", whole.replacen("AAAA", "AA\u{2013}AA", 1)),
        ("putty", "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\n".to_owned()),
    ];
    for (cause, text) in cases {
        let config = world.config(5432);
        let config = config.with(&json!({ "bastion": { "ssh_private_key": text } }));
        let failure = Failure { code: "config.key_unreadable", ..INVALID };
        assert_fails(&config, failure, cause).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn passphrase_that_is_missing_or_wrong() {
    let world = World::start().await;
    let pair = KeyPair::generate(KeyType::Rsa(2048)).unwrap();
    for format in [KeyFormat::OpenSsh, KeyFormat::Traditional, KeyFormat::Pkcs8] {
        let key = pair.write(format, Some("right passphrase")).unwrap();
        let cases = [
            (Value::Null, "config.passphrase_required", "missing"),
            (json!("wrong passphrase"), "config.passphrase_wrong", "wrong"),
        ];
        for (passphrase, code, cause) in cases {
            let config = world
                .config(5432)
                .with(&with_key(&key))
                .with(&json!({ "bastion": { "ssh_private_key_passphrase": passphrase } }));
            let failure = assert_fails(&config, Failure { code, ..INVALID }, cause).await;
            assert_no_secret(&failure.to_string(), &config);
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn wrong_command_line_is_64_and_no_line_on_stdout() {
    for arguments in [&["--no-such-flag"][..], &["no-such-command"], &["--config"]] {
        let sidecar = Sidecar::spawn_silent(|command| {
            command.args(arguments);
        });
        let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
        assert_eq!(exit.status.code(), Some(64), "{arguments:?}: {}", exit.text());
        assert!(exit.stdout.is_empty(), "{arguments:?}: {}", exit.text());
        assert!(!exit.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn schema_describes_every_field_of_the_contract() {
    let sidecar = Sidecar::spawn_silent(|command| {
        command.arg("schema");
    });
    let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    let schema: Value = serde_json::from_str(&exit.stdout.join("\n")).unwrap();
    assert!(schema["$schema"].is_string(), "{schema}");
    let text = schema.to_string();
    let fields = [
        "version",
        "name",
        "memo",
        "job_id",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "credentials",
        "assume_role",
        "role_arn",
        "external_id",
        "session_name",
        "region",
        "endpoint_url",
        "stream_endpoint_url",
        "instance_id",
        "ssh_port",
        "ssh_user",
        "ssh_private_key",
        "ssh_private_key_passphrase",
        "ssh_host_key",
        "engine",
        "host",
        "port",
        "address",
        "allow_non_loopback",
        "fd",
        "netns",
        "allowed_uids",
        "hardening",
        "sessions",
        "compression",
        "message_bytes",
        "max_connections",
        "ready_s",
        "connect_s",
        "reconnect_s",
        "events",
        "health",
        "listen",
    ];
    for field in fields {
        assert!(text.contains(&format!(r#""{field}":"#)), "`{field}` is not in the schema");
    }
}
