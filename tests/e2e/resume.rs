//! The WebSocket drops at any moment: the session is resumed and connections only pause, or a new session
//! takes its place and connections are reset at once, on the same port.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::{Action, ApiFault, Break, Failure as Fault, Plan, Policy},
    fixtures::{TcpServer, eventually, source_bytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::world::{Failure, INSTANCE, LIMIT, SECRET_ACCESS_KEY, Tunnel, World};

/// Silence of an idle path is noticed within this.
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

#[tokio::test]
async fn silent_path_is_noticed_within_10_seconds_also_when_idle() {
    let world = resumable().await;
    let server = TcpServer::echo().await.unwrap();
    let document = world.document(server.port()).with(&json!({ "events": true }));
    let mut tunnel = Tunnel::open(&document).await;
    world.emulator.control().disconnect_all(Break::Silence).await;
    let began = Instant::now();
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let took = began.elapsed();
    // The machine may be slow, the sidecar may not.
    assert!(took < NOTICED + Duration::from_secs(1), "noticed after {took:?}");
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn refused_resume_resets_connections_and_a_new_session_serves_the_same_port() {
    // `ssm:StartSession` alone.
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let document = world.document(server.port()).with(&json!({ "events": true }));
    let mut tunnel = Tunnel::open(&document).await;
    let mut old = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut old).await);
    world.emulator.control().disconnect_all(Break::Reset).await;
    let end = timeout(LIMIT, old.read(&mut [0; 16])).await.expect("reset at once");
    assert!(end.is_err(), "ended as if it were complete");
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
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
    let document = world.document(server.port()).with(&json!({ "events": true }));
    let mut tunnel = Tunnel::open(&document).await;
    let session = world.emulator.journal().sessions().remove(0);
    let text = "Your session timed out due to inactivity and has been terminated.";
    world.emulator.control().terminate(&session, text);
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("inactivity"), "{reason}");
    // While there is no lane a connection waits for the new one.
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
    let document = world.document(server.port()).with(&change);
    let tunnel = Tunnel::open(&document).await;
    let gone = |action| ApiFault::new(Fault::InternalServerError).on(action);
    let plan = Plan::default().api(gone(Action::ResumeSession)).api(gone(Action::StartSession));
    world.emulator.control().set_faults(plan);
    world.emulator.control().disconnect_all(Break::Reset).await;
    let exit = tunnel.sidecar.exit(LIMIT).await.unwrap();
    let failure = Failure { code: "session.lost", status: 75, phase: "tunnel", blame: "operator" };
    failure.assert(&exit, &document);
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

/// Whether channels were opened again so often.
async fn resumed(world: &World, times: usize) -> bool {
    let opened = || async {
        let records = world.emulator.journal().records();
        let is_opening = |record: &_| matches!(record, tests::emulator::Record::Opened { .. });
        records.iter().filter(|entry| is_opening(&entry.record)).count() > times
    };
    eventually(LIMIT, opened).await
}

/// Whether a few bytes come back.
async fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    let exchange = async {
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut answer).await
    };
    timeout(2 * LIMIT, exchange).await.expect("an answer or an end").is_ok() && &answer == b"hello"
}

const RESUME: &str = "ResumeSession";
