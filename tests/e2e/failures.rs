//! Each code of the contract that is caused on the customer's side or on this host: the whole `failed`
//! line, the exit status, no secret, and no session left. The codes of AWS are in `failures_aws.rs`.

use std::{process::Stdio, sync::Arc, time::Duration};

use serde_json::json;
use tests::fixtures::{
    Bastion, Certificate, FullQueue, KeyPair, KeyType, Sidecar, Sshd, TcpServer, eventually,
    free_port,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::world::{Failure, LIMIT, World, assert_fails, assert_fails_within, may_terminate};

#[tokio::test]
async fn ssh_unreachable_when_nothing_listens() {
    // The agent's worker has died: within a minute, such a session can be ended only through the
    // API.
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let port = free_port().unwrap();
    let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": port } }));
    let failure = unavailable("ssh.unreachable", "ssh");
    assert_fails(&config, failure, "nothing_listens").await;
    world.finish().await;
}

#[tokio::test]
async fn ssh_unreachable_when_nobody_says_a_word() {
    let world = World::start().await;
    let deaf = TcpServer::deaf().await.unwrap();
    let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": deaf.port() } }));
    assert_fails(&config, unavailable("ssh.unreachable", "ssh"), "nobody_says_a_word").await;
    world.finish().await;
}

#[tokio::test]
async fn target_unreachable() {
    let world = World::start().await;
    let port = free_port().unwrap();
    let failure = unavailable("target.unreachable", "target");
    assert_fails(&world.config(port), failure, "nothing_listens").await;
    world.finish().await;
}

#[tokio::test]
async fn target_unresolved() {
    let world = World::start().await;
    let config = world.config(5432).with(&json!({ "target": { "host": "database.invalid" } }));
    assert_fails(&config, unavailable("target.unresolved", "target"), "no_such_name").await;
    world.finish().await;
}

#[tokio::test]
async fn old_sshd_that_calls_everything_prohibited_is_asked_whether_it_forwards_at_all() {
    let world = World::start().await;
    for (forwards, failure, golden) in [
        (true, unavailable("target.unresolved", "target"), "openssh_7_4"),
        (false, refused("ssh.forwarding_denied", "target"), "openssh_7_4"),
    ] {
        let bastion = Bastion::start_as_openssh_7_4(forwards).await.unwrap();
        let config = world.config(5432).with(&json!({
            "bastion": {
                "ssh_port": bastion.port(),
                "ssh_user": Bastion::USER,
                "ssh_private_key": bastion.client_key(),
                "ssh_host_key": bastion.fingerprint(),
            },
            "target": { "host": "database.internal" },
        }));
        assert_fails(&config, failure, golden).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn ssh_auth_rejected() {
    let world = World::start().await;
    let other = KeyPair::generate(KeyType::Ed25519).unwrap();
    let key = json!({ "bastion": { "ssh_private_key": other.private } });
    let config = world.config(5432).with(&key);
    assert_fails(&config, refused("ssh.auth_rejected", "ssh"), "other_key").await;
    let user = json!({ "bastion": { "ssh_user": "nobody-of-that-name" } });
    let config = world.config(5432).with(&user);
    assert_fails(&config, refused("ssh.auth_rejected", "ssh"), "other_user").await;
    world.finish().await;
}

#[tokio::test]
async fn ssh_auth_rejected_where_the_key_is_not_enough() {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let options = ["PasswordAuthentication yes", "AuthenticationMethods publickey,password"];
    let sshd = Arc::new(Sshd::start_with(key, &options).await.unwrap());
    let world = World::around(sshd, |builder| builder).await;
    let failure = refused("ssh.auth_rejected", "ssh");
    assert_fails(&world.config(5432), failure, "further_method").await;
    world.finish().await;
}

#[tokio::test]
async fn ssh_host_key_mismatch() {
    let world = World::start().await;
    let pin = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let config = world.config(5432).with(&json!({ "bastion": { "ssh_host_key": pin } }));
    let failure = refused("ssh.host_key_mismatch", "ssh");
    let line = assert_fails(&config, failure, "other_key").await;
    let presented = world.sshd.host_key_fingerprint("ed25519").unwrap();
    assert!(
        line["message"].as_str().unwrap().contains(&presented),
        "names the presented key: {line}"
    );
    world.finish().await;
}

#[tokio::test]
async fn ssh_forwarding_denied() {
    for option in ["AllowTcpForwarding no", "DisableForwarding yes", "PermitOpen 127.0.0.1:1"] {
        let key = KeyPair::generate(KeyType::Ed25519).unwrap();
        let sshd = Arc::new(Sshd::start_with(key, &[option]).await.unwrap());
        let world = World::around(sshd, |builder| builder).await;
        let failure = refused("ssh.forwarding_denied", "target");
        assert_fails(&world.config(5432), failure, "sshd_option").await;
        world.finish().await;
    }
}

#[tokio::test]
async fn ssh_protocol_when_it_is_no_ssh_server() {
    let world = World::start().await;
    let cases: [(&str, &'static [u8]); 3] = [
        ("other_server", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        ("ssh_1", b"SSH-1.5-antique\r\n"),
        (
            "broken_packet",
            b"SSH-2.0-broken\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ),
    ];
    for (cause, banner) in cases {
        let server = TcpServer::banner(banner).await.unwrap();
        let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": server.port() } }));
        let failure = Failure { code: "ssh.protocol", status: 76, phase: "ssh", blame: "customer" };
        assert_fails(&config, failure, cause).await;
    }
    world.finish().await;
}

#[tokio::test]
async fn ssh_protocol_when_no_algorithm_is_in_common() {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let options = ["KexAlgorithms diffie-hellman-group14-sha1"];
    let sshd = Arc::new(Sshd::start_with(key, &options).await.unwrap());
    let world = World::around(sshd, |builder| builder).await;
    let failure = Failure { code: "ssh.protocol", status: 76, phase: "ssh", blame: "customer" };
    assert_fails(&world.config(5432), failure, "nothing_in_common").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_ssh() {
    let world = World::start().await;
    let server = TcpServer::banner(b"SSH-2.0-silent\r\n").await.unwrap();
    let config = world.config(5432).with(&json!({
        "bastion": { "ssh_port": server.port() },
        "timeouts": { "ready_s": 5 },
    }));
    assert_fails(&config, passing("timeout.ssh", "ssh", "customer"), "silent_server").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_target_by_the_limit_for_connections() {
    let world = World::start().await;
    let target = FullQueue::start().await.unwrap();
    let config = world.config(target.port()).with(&json!({ "timeouts": { "connect_s": 2 } }));
    let failure = passing("timeout.target", "target", "customer");
    assert_fails(&config, failure, "connect_s").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_target_by_the_limit_for_the_start() {
    let world = World::start().await;
    let target = FullQueue::start().await.unwrap();
    let config = world.config(target.port()).with(&json!({ "timeouts": { "ready_s": 4 } }));
    let failure = passing("timeout.target", "target", "customer");
    assert_fails(&config, failure, "ready_s").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_session_when_the_gateway_does_not_answer() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let gateway = TcpServer::deaf().await.unwrap();
    let config = world.config(5432).with(&json!({
        "aws": { "stream_endpoint_url": format!("ws://127.0.0.1:{}", gateway.port()) },
        "timeouts": { "ready_s": 4 },
    }));
    let failure = passing("timeout.session", "session", "operator");
    assert_fails(&config, failure, "silent_gateway").await;
    world.finish().await;
}

#[tokio::test]
async fn aws_unreachable_when_nothing_listens_at_the_endpoint() {
    let world = World::start().await;
    let endpoint = format!("http://127.0.0.1:{}", free_port().unwrap());
    let config = world.config(5432).with(&json!({
        "aws": { "endpoint_url": endpoint },
        "timeouts": { "ready_s": 10 },
    }));
    let failure = passing("aws.unreachable", "start_session", "operator");
    assert_fails(&config, failure, "nothing_listens").await;
    world.finish().await;
}

#[tokio::test]
async fn local_proxy_when_the_setting_is_unusable() {
    let world = World::start().await;
    let config = world.config(5432);
    for (cause, setting) in [
        ("proxy_of_another_kind", "socks5://user:hunter2@127.0.0.1:1080"),
        ("second_at", "http://user:hunter2@hunter2@127.0.0.1:3128"),
    ] {
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.env("HTTPS_PROXY", setting);
        });
        let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
        local("local.proxy").assert(cause, &exit, &config);
        assert!(!exit.text().contains("hunter2"), "{}", exit.text());
    }
    world.finish().await;
}

#[tokio::test]
async fn local_proxy_when_the_proxy_refuses() {
    let world = World::start().await;
    let api = json!({ "aws": { "endpoint_url": "https://ssm.example" } });
    let config = world.config(5432).with(&api);
    for (cause, answer) in [
        (
            "ntlm_only",
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: NTLM\r\n\r\n",
        ),
        ("forbidden", "HTTP/1.1 403 Forbidden\r\n\r\n"),
        ("speaks_tls", "\u{15}\u{3}\u{1}\0\u{2}\u{2}F"),
    ] {
        let proxy = TcpServer::start(move |mut stream| async move {
            if stream.read(&mut [0; 16 << 10]).await? > 0 {
                stream.write_all(answer.as_bytes()).await?;
            }
            stream.shutdown().await
        });
        let proxy = proxy.await.unwrap();
        let url = format!("http://user:hunter2@127.0.0.1:{}", proxy.port());
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.env("HTTPS_PROXY", url);
        });
        let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
        let failure = Failure { phase: "start_session", ..local("local.proxy") };
        failure.assert(cause, &exit, &config);
        assert!(!exit.text().contains("hunter2"), "{}", exit.text());
    }
    world.finish().await;
}

#[tokio::test]
async fn aws_untrusted_when_the_issuer_is_unknown() {
    let world = World::start().await;
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let certificate = Certificate::make(folder.path()).unwrap();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}"), "-cert"]);
    server.arg(&certificate.certificate).arg("-key").arg(&certificate.key);
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let server = server.spawn().unwrap();
    let up = eventually(LIMIT, || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() });
    assert!(up.await, "openssl does not listen");
    let api = json!({ "aws": { "endpoint_url": format!("https://127.0.0.1:{port}") } });
    let failure = Failure { phase: "start_session", ..local("aws.untrusted") };
    assert_fails(&world.config(5432).with(&api), failure, "unknown_issuer").await;
    drop(server);
    world.finish().await;
}

#[tokio::test]
async fn proxy_for_everything_that_speaks_another_protocol_is_passed_over() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.env("ALL_PROXY", "socks5://user:hunter2@127.0.0.1:1080");
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(LIMIT).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    assert!(exit.text().contains("`ALL_PROXY` is not an HTTP proxy"), "{}", exit.text());
    assert!(!exit.text().contains("hunter2"), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn aws_internal_when_another_server_answers() {
    let world = World::start().await;
    let server = TcpServer::start(|mut stream| async move {
        // Its first bytes show that a request has arrived; a response without a request would not
        // be HTTP.
        if stream.read(&mut [0; 16 << 10]).await? > 0 {
            stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\nnever").await?;
        }
        stream.shutdown().await
    });
    let server = server.await.unwrap();
    let config = world.config(5432).with(&json!({
        "aws": { "endpoint_url": format!("http://127.0.0.1:{}", server.port()) },
        "timeouts": { "ready_s": 3 },
    }));
    let failure = passing("aws.internal", "start_session", "operator");
    assert_fails(&config, failure, "other_server").await;
    world.finish().await;
}

#[tokio::test]
async fn timeout_start_session_when_the_endpoint_does_not_answer() {
    let world = World::start().await;
    let endpoint = TcpServer::deaf().await.unwrap();
    let config = world.config(5432).with(&json!({
        "aws": { "endpoint_url": format!("http://127.0.0.1:{}", endpoint.port()) },
        "timeouts": { "ready_s": 3 },
    }));
    let failure = passing("timeout.start_session", "start_session", "aws");
    assert_fails_within(&config, failure, "silent_endpoint", Duration::from_secs(15)).await;
    world.finish().await;
}

#[tokio::test]
async fn local_listen_when_the_port_is_taken() {
    let world = World::start().await;
    let holder = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = holder.local_addr().unwrap().port();
    let config = world.config(5432).with(&json!({ "listen": { "port": port } }));
    assert_fails(&config, local("local.listen"), "port_taken").await;
    let sessions = world.emulator.journal().open_sessions();
    assert!(sessions.is_empty(), "no session is started: {sessions:?}");
    world.finish().await;
}

#[tokio::test]
async fn local_listen_when_the_inherited_descriptor_is_no_socket() {
    let world = World::start().await;
    let config = world.config(5432).with(&json!({ "listen": { "fd": 77 } }));
    assert_fails(&config, local("local.listen"), "no_socket").await;
    world.finish().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn local_namespace_when_it_is_missing() {
    let world = World::start().await;
    let path = "/run/netns/no-such-namespace";
    let config = world.config(5432).with(&json!({ "listen": { "netns": path } }));
    assert_fails(&config, local("local.namespace"), "missing").await;
    world.finish().await;
}

/// The customer's side is unavailable.
fn unavailable(code: &'static str, phase: &'static str) -> Failure {
    Failure { code, status: 69, phase, blame: "customer" }
}

/// The customer's side refuses.
fn refused(code: &'static str, phase: &'static str) -> Failure {
    Failure { code, status: 77, phase, blame: "customer" }
}

/// A transient failure.
fn passing(code: &'static str, phase: &'static str, blame: &'static str) -> Failure {
    Failure { code, status: 75, phase, blame }
}

/// This host refuses.
fn local(code: &'static str) -> Failure {
    Failure { code, status: 71, phase: "config", blame: "operator" }
}
