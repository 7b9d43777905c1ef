//! Probes and metrics: what a kubelet and a metrics collector see, and that they never touch the target.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use serde_json::json;
use tests::{
    emulator::{ApiFault, Break, Cut, Failure as Fault, Plan},
    fixtures::{Config, Sidecar, TcpServer, binary, eventually, free_port},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::world::{
    ACCESS_KEY_ID, Failure, INSTANCE, LIMIT, STOP, World, assert_fails, may_terminate,
};

#[tokio::test]
async fn ready_is_answered_from_ready_until_the_path_breaks() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let (config, address) = with_health(&world.config(server.port()));
    let config = config.with(&json!({ "events": true, "timeouts": { "reconnect_s": 30 } }));
    // A slow API, so that probes can be sent during the start.
    let slow = ApiFault::new(Fault::Delayed(Duration::from_secs(2)));
    world.emulator.control().set_faults(Plan::default().api(slow));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.word("phase", LIMIT).await.unwrap();
    assert_eq!(get(address, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz").await, (503, "starting\n".to_owned()));
    assert_eq!(probe(address, "/readyz").await, 1, "before `ready`");

    sidecar.ready(LIMIT).await.unwrap();
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(probe(address, "/readyz").await, 0, "after `ready`");
    assert_eq!(get(address, "/nothing").await.0, 404);
    assert_eq!(send(address, "POST /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.0, 405);

    let gone = ApiFault::new(Fault::ConnectionClosed);
    world.emulator.control().set_faults(Plan::default().api(gone).cut(Cut::after(0, Break::Reset)));
    sidecar.word("degraded", LIMIT).await.unwrap();
    assert_eq!(get(address, "/readyz").await, (503, "no lane is up\n".to_owned()));
    assert_eq!(get(address, "/livez").await.0, 200);
    world.emulator.control().set_faults(Plan::default());
    sidecar.word("recovered", LIMIT).await.unwrap();
    let back = eventually(LIMIT, || async { get(address, "/readyz").await.0 == 200 }).await;
    assert!(back, "not ready again");

    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    assert_eq!(probe(address, "/livez").await, 1, "after its exit");
    for session in world.emulator.journal().open_sessions() {
        world.emulator.control().terminate(&session, "lost on the way");
    }
    world.finish().await;
}

#[tokio::test]
async fn metrics_count_what_clients_do_and_name_the_job_alone() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let (config, address) = with_health(&world.config(server.port()));
    let config = config.with(&json!({ "job_id": "job-4711", "events": true }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(b"seven b").await.unwrap();
    let mut echoed = [0; 7];
    client.read_exact(&mut echoed).await.unwrap();

    let counted = eventually(LIMIT, || async {
        metric(address, "ssm_sidecar_from_target_bytes_total").await > 6.5
    });
    assert!(counted.await, "{}", get(address, "/metrics").await.1);
    for (name, expected) in [
        ("ssm_sidecar_ready", 1.0),
        ("ssm_sidecar_lanes_up", 1.0),
        ("ssm_sidecar_sessions_started_total", 1.0),
        ("ssm_sidecar_connections_total", 1.0),
        ("ssm_sidecar_connections_open", 1.0),
        ("ssm_sidecar_to_target_bytes_total", 7.0),
        ("ssm_sidecar_resumes_total", 0.0),
        ("ssm_sidecar_log_lines_dropped_total", 0.0),
    ] {
        assert!((metric(address, name).await - expected).abs() < 1e-9, "{name}");
    }
    for name in [
        r#"ssm_sidecar_job_info{job_id="job-4711"}"#,
        r#"ssm_sidecar_start_phase_seconds{phase="start_session"}"#,
        r#"ssm_sidecar_round_trip_seconds{lane="1"}"#,
    ] {
        assert!(metric(address, name).await > 0.0, "{name}");
    }
    drop(client);
    let closed =
        eventually(LIMIT, || async { metric(address, "ssm_sidecar_connections_open").await < 0.5 });
    assert!(closed.await, "a closed connection counts as open");

    let (status, page) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(page.ends_with("# EOF\n"), "{page}");
    for private in ["a test's connection", INSTANCE, ACCESS_KEY_ID, "127.0.0.1"] {
        assert!(!page.contains(private), "`{private}` in {page}");
    }
    // The client's only connection, which took over the one that proved the target.
    let sessions = metric(address, "ssm_sidecar_sessions_started_total").await;
    sidecar.close_stdin();
    let closed = sidecar.exit(STOP).await.unwrap().closed().unwrap();
    assert_eq!(closed["sessions"].as_f64(), Some(sessions), "{closed}");
    assert_eq!((&closed["connections"], &closed["bytes_to_target"]), (&json!(1), &json!(7)));
    world.finish().await;
}

#[tokio::test]
async fn probes_never_touch_the_target() {
    let world = World::start().await;
    let (sender, mut accepted) = tokio::sync::mpsc::channel(16);
    let server = TcpServer::start(move |mut stream| {
        sender.try_send(()).unwrap();
        async move { stream.read(&mut [0]).await.map(drop) }
    });
    let server = server.await.unwrap();
    let (config, address) = with_health(&world.config(server.port()));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    for path in ["/livez", "/readyz", "/metrics"].repeat(20) {
        assert_eq!(get(address, path).await.0, 200);
    }
    accepted.recv().await.unwrap();
    assert!(accepted.try_recv().is_err(), "more than the one connection that proves the target");
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn silent_and_endless_probes_harm_nobody() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let (config, address) = with_health(&world.config(server.port()));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let long = format!("GET /livez HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let (status, _) = send(address, &long).await;
    assert!([0, 400, 431].contains(&status), "an endless header is answered {status}");
    // Behind all silent clients: they are disconnected.
    assert_eq!(get(address, "/livez").await.0, 200);
    drop(silent);
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn local_listen_when_the_port_of_the_health_endpoint_is_taken() {
    let world = World::start().await;
    let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = taken.local_addr().unwrap();
    let config = world.config(5432).with(&json!({ "health": { "listen": address } }));
    let failure = Failure { code: "local.listen", status: 71, phase: "config", blame: "operator" };
    assert_fails(&config, failure, "health_port_taken").await;
    assert!(world.emulator.journal().sessions().is_empty(), "no session is started");
    world.finish().await;
}

#[tokio::test]
async fn probe_fails_by_itself_where_nobody_answers() {
    let deaf = TcpServer::deaf().await.unwrap();
    assert_eq!(probe(SocketAddr::from(([127, 0, 0, 1], deaf.port())), "/readyz").await, 1);
    for url in ["https://127.0.0.1/readyz", "/readyz", "ftp://127.0.0.1/"] {
        let status = run_probe(url).await;
        assert!([1, 64].contains(&status), "{url}: {status}");
    }
}

/// The config with a health endpoint on its own port.
fn with_health(config: &Config) -> (Config, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    (config.clone().with(&json!({ "health": { "listen": address } })), address)
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    send(address, &format!("GET {path} HTTP/1.1\r\nhost: probe\r\n\r\n")).await
}

/// Status and body of the response; status 0 without a response.
async fn send(address: SocketAddr, request: &str) -> (u16, String) {
    let mut answer = Vec::new();
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    // Without a response the status is 0, which the caller checks.
    drop(tokio::time::timeout(LIMIT, exchange).await);
    let text = String::from_utf8(answer).unwrap();
    let status = text.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status, body.unwrap_or_default())
}

async fn metric(address: SocketAddr, name: &str) -> f64 {
    let (_, page) = get(address, "/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no `{name}` in {page}")).parse().unwrap()
}

async fn probe(address: SocketAddr, path: &str) -> i32 {
    run_probe(&format!("http://{address}{path}")).await
}

async fn run_probe(url: &str) -> i32 {
    let path = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut command = Command::new(path);
    command.args(["probe", url]).env_clear().stdin(Stdio::null()).stderr(Stdio::null());
    tokio::time::timeout(LIMIT, command.status()).await.unwrap().unwrap().code().unwrap()
}
