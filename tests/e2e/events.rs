//! The lines on stdout: those that a runner gets by default, and the additional ones with `events`.

use serde_json::{Value, json};
use tests::fixtures::TcpServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::world::{Tunnel, World};

#[tokio::test]
async fn without_events_ready_is_the_only_line() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let port = tunnel.port;
    let exit = tunnel.close().await;
    assert_eq!(exit.stdout, [format!("ready {port}")]);
    world.finish().await;
}

#[tokio::test]
async fn events_tell_the_phases_the_host_key_and_the_summary() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "events": true }));
    let tunnel = Tunnel::open(&config).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(b"twelve bytes").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.unwrap();
    let port = tunnel.port;
    let exit = tunnel.close().await;

    let fingerprint = world.sshd.host_key_fingerprint("ed25519").unwrap();
    let expected = [
        "phase start_session".to_owned(),
        "phase session".to_owned(),
        "phase ssh".to_owned(),
        format!("host-key {fingerprint}"),
        "phase target".to_owned(),
        "phase tunnel".to_owned(),
        format!("ready {port}"),
    ];
    let (closed, before) = exit.stdout.split_last().unwrap();
    assert_eq!(before, expected, "{}", exit.text());
    assert!(closed.starts_with("closed "), "{closed}");

    let summary = exit.closed().unwrap();
    assert_eq!(summary["bytes_to_target"], 12, "{summary}");
    assert_eq!(summary["bytes_from_target"], 12, "{summary}");
    assert_eq!(summary["connections"], 1, "{summary}");
    assert_eq!(summary["sessions"], 1, "{summary}");
    assert_eq!(summary["resumes"], 0, "{summary}");
    assert!(summary["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{summary}");
    for phase in ["config", "start_session", "session", "ssh", "target"] {
        let took = summary.pointer(&format!("/phases_ms/{phase}")).and_then(Value::as_u64);
        assert!(took.is_some_and(|took| took < 30_000), "phase {phase}: {summary}");
    }
    world.finish().await;
}

#[tokio::test]
async fn ipv6_loopback_where_asked_for() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel_with(server.port(), &json!({ "listen": { "address": "::1" } })).await;
    assert!(TcpStream::connect(("::1", tunnel.port)).await.is_ok());
    assert!(TcpStream::connect(("127.0.0.1", tunnel.port)).await.is_err());
    tunnel.close().await;
    world.finish().await;
}
