//! The WebSocket drops at any moment: either the session is resumed and connections only pause, or a new
//! session replaces it and connections are reset at once, on the same port.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use tests::{
    emulator::{Action, ApiFault, Break, Cut, Failure as Fault, Link, Pacing, Plan, Policy},
    fixtures::{TcpServer, eventually, source_bytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{
    clients::{output, psql},
    echo::echoes,
    slow_parties::peak_kib,
    world::{
        Failure, INSTANCE, LIMIT, SECRET_ACCESS_KEY, Tunnel, World, may_terminate, postgres_server,
    },
};

/// Time limit for detecting a silent path, even if it is idle.
const NOTICED: Duration = Duration::from_secs(10);

#[tokio::test]
async fn connection_only_pauses_however_the_socket_drops() {
    for how in [Break::Close, Break::Reset, Break::Silence] {
        let world = resumable().await;
        let bytes = 3_000_000;
        let server = TcpServer::source(bytes).await.unwrap();
        let tunnel = world.tunnel(server.port()).await;
        let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let mut received = vec![0; bytes];
        let mut filled = 0;
        for part in [200_000, 1_500_000, bytes] {
            timeout(LIMIT, stream.read_exact(&mut received[filled..part])).await.unwrap().unwrap();
            filled = part;
            assert_eq!(world.emulator.control().disconnect_all(how).await, 1);
        }
        assert!(received == source_bytes(bytes), "{how:?}: not the bytes that were sent");
        drop(stream);
        assert!(resumed(&world, 3).await, "{how:?}: {:?}", world.emulator.journal().calls(RESUME));
        let exit = tunnel.close().await;
        let summary = exit.logs().pop().unwrap();
        assert_eq!(summary["sessions"], 1, "{how:?}: {summary}");
        assert_eq!(summary["resets"], 0, "{how:?}: {summary}");
        world.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_through_several_drops_have_the_right_checksum() {
    join_all([Break::Close, Break::Reset, Break::Silence].map(copies_are_whole)).await;
}

async fn copies_are_whole(how: Break) {
    const ROWS: &str =
        "SELECT i, md5(i::text) || md5((i + 1)::text) FROM generate_series(1, 25000) i";
    let server = postgres_server().await;
    let direct = psql_output(server.port(), &format!("COPY ({ROWS}) TO STDOUT")).await;
    let plan = Plan::seeded(1).cut(Cut::after(400, how).times(4));
    let world = World::with(|builder| builder.policy(Policy::full(INSTANCE)).faults(plan)).await;
    let tunnel = world.tunnel(server.port()).await;
    let came = psql_output(tunnel.port, &format!("COPY ({ROWS}) TO STDOUT")).await;
    assert!(came == direct, "{how:?}: {} bytes read", came.len());

    let table = format!("copied_{how:?}");
    psql_output(server.port(), &format!("CREATE TABLE {table} (i int, digest text)")).await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("rows");
    std::fs::write(&file, format!("{came}\n")).unwrap();
    // Setting the faults restarts the count of the cuts.
    let plan = Plan::seeded(2).cut(Cut::after(400, how).times(12));
    world.emulator.control().set_faults(plan);
    let mut copy_in = psql(tunnel.port);
    copy_in.args(["-c", &format!("COPY {table} FROM STDIN")]);
    copy_in.stdin(std::fs::File::open(&file).unwrap());
    timeout(4 * LIMIT, output(copy_in)).await.unwrap();
    world.emulator.control().set_faults(Plan::default());
    let went = psql_output(server.port(), &format!("COPY {table} TO STDOUT")).await;
    assert!(went == direct, "{how:?}: {} bytes written", went.len());

    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert!(summary["resumes"].as_u64() >= Some(6), "{how:?}: {summary}");
    assert_eq!((&summary["sessions"], &summary["resets"]), (&json!(1), &json!(0)), "{summary}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_is_held_back_while_the_path_is_down_and_loses_nothing() {
    const BYTES: usize = 24 << 20;
    let world =
        World::with(|builder| builder.policy(Policy::full(INSTANCE)).pacing(Pacing::Unpaced));
    let world = world.await;
    let server = TcpServer::count().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(&[7; 1_000]).await.unwrap();
    let before = peak_kib(&tunnel);
    let refused = ApiFault::new(Fault::InternalServerError).on(Action::ResumeSession);
    world.emulator.control().set_faults(Plan::default().api(refused));
    assert_eq!(world.emulator.control().disconnect_all(Break::Reset).await, 1);

    let mut taken = 1_000;
    let piece = vec![7; 64 << 10];
    // When blocked, it accepts nothing for a while.
    while let Ok(written) = timeout(Duration::from_secs(2), stream.write(&piece)).await {
        taken += written.unwrap();
        assert!(taken < BYTES, "the writer is not blocked");
    }
    let grown = peak_kib(&tunnel).saturating_sub(before);
    assert!(grown < 8 << 10, "{taken} bytes are kept in {grown} KiB more");

    world.emulator.control().set_faults(Plan::default());
    let rest = vec![7; BYTES - taken];
    timeout(2 * LIMIT, stream.write_all(&rest)).await.unwrap().unwrap();
    stream.shutdown().await.unwrap();
    let mut count = String::new();
    timeout(2 * LIMIT, stream.read_to_string(&mut count)).await.unwrap().unwrap();
    assert_eq!(count, BYTES.to_string());
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 1);
    world.finish().await;
}

#[tokio::test]
async fn new_connection_waits_for_the_path_and_not_against_its_own_limit() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let change = json!({ "timeouts": { "connect_s": 1 } });
    let tunnel = world.tunnel_with(server.port(), &change).await;
    let refused = ApiFault::new(Fault::InternalServerError).on(Action::ResumeSession);
    let plan = Plan::default().api(refused.lasting(Duration::from_secs(4)));
    world.emulator.control().set_faults(plan);
    world.emulator.control().disconnect_all(Break::Reset).await;
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await, "reset after {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(2), "the path was not down for long");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn attempts_to_resume_are_spaced_out_even_if_each_gets_a_socket() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let change = json!({ "timeouts": { "reconnect_s": 6 } });
    let config = world.config(server.port()).with(&change);
    let tunnel = Tunnel::open(&config).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    // Each WebSocket breaks with its first frame.
    world.emulator.control().set_faults(Plan::default().cut(Cut::after(1, Break::Close)));
    let began = Instant::now();
    stream.write_all(b"hello").await.unwrap();
    let exit = tunnel.sidecar.exit(LIMIT).await.unwrap();
    let failure = Failure { code: "session.lost", status: 75, phase: "tunnel", blame: "operator" };
    failure.assert("sockets_come_to_nothing", &exit, &config);
    assert!(began.elapsed() > Duration::from_secs(4), "given up after {:?}", began.elapsed());
    let calls = world.emulator.journal().calls(RESUME).len();
    assert!((4..=16).contains(&calls), "{calls} attempts in 6 s");
    world.emulator.control().set_faults(Plan::default());
    world.finish().await;
}

#[tokio::test]
async fn session_whose_openings_are_refused_again_and_again_is_replaced() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let (status, code, message) = (410, "Gone".to_owned(), "no such session".to_owned());
    let refused = ApiFault::new(Fault::Error { status, code, message });
    let plan = Plan::default().api(refused.on(Action::OpenDataChannel).times(5));
    world.emulator.control().set_faults(plan);
    world.emulator.control().disconnect_all(Break::Reset).await;
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 2);
    world.finish().await;
}

/// The service answers pings and calls, but the instance is dead: only sshd's silence shows it.
#[tokio::test]
async fn instance_that_is_gone_is_noticed_and_the_one_that_comes_back_serves_the_same_port() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let mut old = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut old).await);
    world.emulator.control().set_faults(Plan::default().both(Link::clean().dropping(1.0)));
    old.write_all(b"x").await.unwrap();
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("agent does not answer"), "{reason}");
    world.emulator.control().set_faults(Plan::default());
    tunnel.sidecar.word("recovered", 2 * LIMIT).await.unwrap();
    let mut new = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut new).await);
    tunnel.close().await;
    world.finish().await;
}

/// The client's WebSocket stays up, and the agent's master reports the loss only after a minute.
#[tokio::test]
async fn agent_whose_worker_was_killed_is_noticed_and_replaced() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let mut old = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut old).await);
    let session = world.emulator.journal().sessions().remove(0);
    world.emulator.control().kill_worker(&session);
    old.write_all(b"x").await.unwrap();
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("agent does not answer"), "{reason}");
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    let mut new = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut new).await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn agent_that_is_killed_and_comes_back_serves_the_same_port() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let mut old = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut old).await);
    world.emulator.control().kill_agent(Duration::from_secs(14));
    old.write_all(b"x").await.unwrap();
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    tunnel.sidecar.word("recovered", 2 * LIMIT).await.unwrap();
    let mut new = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut new).await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn session_whose_agent_never_answers_is_given_up_for_another() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    // As on an instance that has just died: the service starts sessions and answers pings, the
    // agent sends nothing.
    let control = world.emulator.control();
    control.set_faults(Plan::default().both(Link::clean().dropping(1.0)));
    control.disconnect_all(Break::Reset).await;
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let journal = world.emulator.journal();
    let again = eventually(2 * LIMIT, || async { journal.sessions().len() >= 3 }).await;
    assert!(again, "it still waits for {:?}", journal.sessions());
    control.set_faults(Plan::default());
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn refusal_of_a_new_session_for_good_ends_the_job_with_its_own_code() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let tunnel = Tunnel::open(&config).await;
    world.emulator.control().set_policy(Policy::nothing());
    world.emulator.control().disconnect_all(Break::Reset).await;
    let exit = tunnel.sidecar.exit(LIMIT).await.unwrap();
    let failure =
        Failure { code: "aws.access_denied", status: 77, phase: "tunnel", blame: "customer" };
    failure.assert("start_session_again", &exit, &config);
}

#[tokio::test]
async fn silent_path_is_noticed_within_10_seconds_also_when_idle() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    world.emulator.control().disconnect_all(Break::Silence).await;
    let began = Instant::now();
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let took = began.elapsed();
    // One second for a slow machine.
    assert!(took < NOTICED + Duration::from_secs(1), "noticed after {took:?}");
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn refused_resume_resets_connections_and_a_new_session_serves_the_same_port() {
    // `ssm:StartSession` only.
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let mut old = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut old).await);
    world.emulator.control().disconnect_all(Break::Reset).await;
    let end = timeout(LIMIT, old.read(&mut [0; 16])).await.expect("reset at once");
    assert!(end.is_err(), "ended in order, as if it were complete");
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("ssm:ResumeSession"), "which permission is missing: {reason}");
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    let mut new = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut new).await);
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 2);
}

#[tokio::test]
async fn session_that_the_service_has_ended_is_replaced() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let session = world.emulator.journal().sessions().remove(0);
    let text = "Your session timed out due to inactivity and has been terminated.";
    world.emulator.control().terminate(&session, text);
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("inactivity"), "{reason}");
    // Without a lane, a connection waits for the new one.
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 2);
    world.finish().await;
}

#[tokio::test]
async fn path_that_does_not_come_back_in_time_is_session_lost() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let change = json!({ "timeouts": { "reconnect_s": 2 } });
    let config = world.config(server.port()).with(&change);
    let tunnel = Tunnel::open(&config).await;
    let gone = |action| ApiFault::new(Fault::InternalServerError).on(action);
    let plan = Plan::default().api(gone(Action::ResumeSession)).api(gone(Action::StartSession));
    world.emulator.control().set_faults(plan);
    world.emulator.control().disconnect_all(Break::Reset).await;
    let exit = tunnel.sidecar.exit(LIMIT).await.unwrap();
    let failure = Failure { code: "session.lost", status: 75, phase: "tunnel", blame: "operator" };
    failure.assert("service_failed", &exit, &config);
    world.finish().await;
}

#[tokio::test]
async fn path_that_comes_back_each_time_is_never_given_up_however_often_it_breaks() {
    // Sessions cannot be resumed, and none lasts long. All outages together exceed the limit of
    // one.
    const RECONNECT: Duration = Duration::from_secs(8);
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let change = json!({ "timeouts": { "reconnect_s": RECONNECT.as_secs() } });
    let tunnel = world.tunnel_with(server.port(), &change).await;
    let began = Instant::now();
    while began.elapsed() < RECONNECT * 3 / 2 {
        world.emulator.control().disconnect_all(Break::Reset).await;
        // A connection made before the break is noticed is reset with the old session.
        let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        while !echoes(&mut stream).await {
            assert!(began.elapsed() < 2 * LIMIT, "the path does not come back");
            stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        }
        // Little of the reconnect time is used up, since the path works for longer than it was
        // broken.
        let recovered = Instant::now();
        while recovered.elapsed() < RECONNECT / 3 {
            assert!(echoes(&mut stream).await, "after {:?}", began.elapsed());
        }
    }
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn keys_that_expire_are_waited_for_and_the_renewed_ones_resume_the_session() {
    const RENEWED: &str = "AKIAI44QH8DHBEXAMPLE";
    let world = World::with(|builder| {
        builder.policy(Policy::full(INSTANCE)).access_key(RENEWED, SECRET_ACCESS_KEY)
    });
    let world = world.await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    world.emulator.control().expire_credentials(Some(crate::world::ACCESS_KEY_ID));
    world.emulator.control().disconnect_all(Break::Close).await;
    let refused = || async {
        world.emulator.journal().calls(RESUME).iter().flatten().any(|code| code.contains("Expired"))
    };
    assert!(eventually(LIMIT, refused).await, "{:?}", world.emulator.journal().calls(RESUME));
    let keys = json!({
        "type": "credentials",
        "access_key_id": RENEWED,
        "secret_access_key": SECRET_ACCESS_KEY,
    });
    tunnel.sidecar.write(format!("{keys}\n").as_bytes()).await.unwrap();
    assert!(echoes(&mut stream).await, "the connection did not survive");
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 1);
    world.finish().await;
}

/// A world whose customer allows sessions to be resumed.
async fn resumable() -> World {
    World::with(|builder| builder.policy(Policy::full(INSTANCE))).await
}

/// Whether data channels were opened again this many times.
async fn resumed(world: &World, times: usize) -> bool {
    let opened = || async {
        let records = world.emulator.journal().records();
        let is_opening = |record: &_| matches!(record, tests::emulator::Record::Opened { .. });
        records.iter().filter(|entry| is_opening(&entry.record)).count() > times
    };
    eventually(LIMIT, opened).await
}

/// The output of psql for a command.
async fn psql_output(port: u16, command: &str) -> String {
    let mut psql = psql(port);
    psql.args(["-c", command]);
    timeout(4 * LIMIT, output(psql)).await.unwrap()
}

const RESUME: &str = "ResumeSession";
