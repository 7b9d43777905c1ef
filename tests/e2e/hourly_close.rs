//! The service closes every data channel after about an hour. If sessions may be resumed, clients do not
//! notice; if not, lanes are replaced before they break. The emulator's hour is seconds. The sidecar expects an
//! hour at first, so it loses two lanes to the close, and learns from them when the next one comes.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::{Break, Ending, Policy, Record},
    fixtures::{Config, Exit, TcpServer, eventually, source_bytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    echo::echoes,
    world::{INSTANCE, LIMIT, Tunnel, World, may_terminate},
};

/// Lifetime of a data channel, in place of the hour. A sixth of it is enough to open a lane on a loaded machine, and
/// the sidecar learns from no channel younger than 10 s.
const LIFE: Duration = Duration::from_secs(12);

/// Lanes that are lost to the close until the lifetime is known, as two closes must agree.
const LOST: usize = 2;

#[tokio::test]
async fn nobody_notices_the_close_where_sessions_may_be_resumed() {
    let world = World::with(|builder| {
        builder.policy(Policy::full(INSTANCE)).channel_lifetime(Duration::from_secs(2))
    });
    let world = world.await;
    let bytes = 5_000_000;
    let server = TcpServer::source(bytes).await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut received = Vec::new();
    timeout(4 * LIMIT, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == source_bytes(bytes), "{} bytes, not those that were sent", received.len());
    drop(stream);

    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!(summary["sessions"], 1, "{summary}");
    assert!(summary["resumes"].as_u64() >= Some(2), "{summary}");
    assert_eq!(summary["resets"], 0, "{summary}");
    // The emulator accepts no URL, token or signature twice: each opening used new ones, at the
    // first attempt.
    let mut openings = 0;
    for entry in world.emulator.journal().records() {
        match entry.record {
            Record::Opened { signed, .. } => {
                openings += 1;
                assert!(signed, "opening {openings} is not signed");
            }
            Record::OpeningRefused { why, .. } => panic!("refused: {why}"),
            _ => (),
        }
    }
    assert_eq!(summary["resumes"], openings - 1, "{summary}");
    world.finish().await;
}

#[tokio::test]
async fn each_of_several_lanes_has_its_successor_in_time() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let config = config.with(&json!({ "events": true, "tunnel": { "sessions": 2 } }));
    let tunnel = learned(&config).await;
    let journal = world.emulator.journal();
    let mut first = Echo::connect(tunnel.port).await;
    assert!(first.answers().await);
    let mut second = Echo::connect(tunnel.port).await;
    assert!(second.answers().await);
    assert!(eventually(LIMIT, || async { journal.sessions().len() >= LOST + 2 }).await);
    // Two generations of each of the two lanes; a lane is available at any time.
    assert!(eventually(LIMIT, || async { journal.sessions().len() >= LOST + 4 }).await);
    for _ in 0..3 {
        let mut new = Echo::connect(tunnel.port).await;
        assert!(new.answers().await);
    }
    let exit = tunnel.close().await;
    assert!(!is_degraded_after_learning(&exit), "{:?}", exit.stdout);
    world.finish().await;
}

#[tokio::test]
async fn successor_takes_new_connections_before_the_close_and_old_ones_last_until_it() {
    // A session whose channel is closed can be ended only through the API.
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = Tunnel::open(&with_events(&world, server.port())).await;
    // Until the lifetime is known, connections end with their lane.
    for _ in 0..LOST {
        let mut lost = Echo::connect(tunnel.port).await;
        assert!(lost.answers().await);
        lane_lost(&mut tunnel).await;
        timeout(LIMIT, lost.cut()).await.expect("the connection outlives its session");
    }
    learns(&mut tunnel).await;

    let mut old = Echo::connect(tunnel.port).await;
    let replaced = |line: &str| line.contains("replaced before its channel is closed");
    tunnel.sidecar.log_line(LIMIT, replaced).await.unwrap();
    assert!(old.answers().await, "the old connection was cut off when a successor was opened");
    let mut new = Echo::connect(tunnel.port).await;
    assert!(new.answers().await);

    // With its channel, and not before.
    timeout(LIMIT, old.cut()).await.expect("the old connection outlives its session");
    assert!(new.answers().await, "the new connection was on the old lane");
    let exit = tunnel.close().await;
    assert!(!is_degraded_after_learning(&exit), "a lane is always available: {:?}", exit.stdout);
    assert_eq!(world.emulator.journal().sessions().len(), LOST + 2);
    world.finish().await;
}

/// As an unsigned opening's channel was seen to live on.
#[tokio::test]
async fn service_that_does_not_close_a_replaced_lane_cuts_no_connection_and_neither_do_we() {
    // The API may end the sessions that are lost until the lifetime is known.
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = Tunnel::open(&with_events(&world, server.port())).await;
    let (control, journal) = (world.emulator.control(), world.emulator.journal());
    lane_lost(&mut tunnel).await;
    control.set_channel_lifetime(Duration::from_hours(1));
    lane_lost(&mut tunnel).await;
    learns(&mut tunnel).await;
    assert!(eventually(LIMIT, || async { journal.open_sessions().len() == 1 }).await);
    control.set_policy(Policy::least_privilege(INSTANCE));

    let mut old = Echo::connect(tunnel.port).await;
    assert!(old.answers().await);
    let third = journal.sessions().remove(LOST);
    let outlived = |line: &str| line.contains("data channels live longer than expected");
    tunnel.sidecar.log_line(LIMIT, outlived).await.unwrap();
    assert!(old.answers().await, "cut on an assumption");
    drop(old);
    let ended = || async { journal.ending(&third) == Some(Ending::Flag) };
    assert!(eventually(LIMIT, ended).await, "{:?}", journal.ending(&third));
    let mut new = Echo::connect(tunnel.port).await;
    assert!(new.answers().await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn lane_that_nobody_uses_is_ended_once_it_has_a_successor() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = learned(&with_events(&world, server.port())).await;
    let journal = world.emulator.journal();
    // Three generations, one session at a time, ended by the sidecar and not by the close of the
    // channel.
    let generations = || async { journal.sessions().len() >= LOST + 3 };
    assert!(eventually(2 * LIMIT, generations).await, "{:?}", journal.sessions());
    let first = journal.sessions().remove(LOST);
    assert!(eventually(LIMIT, || async { journal.ending(&first).is_some() }).await);
    assert!(!is_closed_by_service(&world, &first), "{journal:?}");
    assert!(!journal.calls("TerminateSession").is_empty());
    assert!(journal.open_sessions().len() <= 2, "{:?}", journal.open_sessions());
    let mut stream = Echo::connect(tunnel.port).await;
    assert!(stream.answers().await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn permission_that_is_granted_in_time_makes_successors_needless() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = learned(&with_events(&world, server.port())).await;
    let journal = world.emulator.journal();
    // Denied when a lane was lost, and not asked for before.
    assert_eq!(journal.calls("ResumeSession").len(), LOST);
    let mut stream = Echo::connect(tunnel.port).await;
    world.emulator.control().set_policy(Policy::full(INSTANCE));
    let resumed = |line: &str| line.contains("session resumed");
    tunnel.sidecar.log_line(LIMIT, resumed).await.unwrap();
    assert!(stream.answers().await, "cut although the session was resumed");
    tunnel.close().await;
    assert_eq!(journal.sessions().len(), LOST + 1);
    world.finish().await;
}

#[tokio::test]
async fn break_right_after_a_replacement_is_not_charged_for_an_older_one() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    // The budget of the outage by which the lifetime is learned would be used up long before the break.
    let change = json!({ "timeouts": { "reconnect_s": 6 } });
    let mut tunnel = learned(&with_events(&world, server.port()).with(&change)).await;
    let replaced = |line: &str| line.contains("replaced before its channel is closed");
    tunnel.sidecar.log_line(LIMIT, replaced).await.unwrap();
    world.emulator.control().disconnect_all(Break::Reset).await;
    lane_lost(&mut tunnel).await;
    assert!(Echo::connect(tunnel.port).await.answers().await);
    tunnel.close().await;
    world.finish().await;
}

fn with_events(world: &World, target_port: u16) -> Config {
    world.config(target_port).with(&json!({ "events": true }))
}

/// A tunnel whose sidecar has learned the short lifetime: its only lane is number `LOST` + 1, just opened. `config`
/// switches events on.
async fn learned(config: &Config) -> Tunnel {
    let mut tunnel = Tunnel::open(config).await;
    for _ in 0..LOST {
        lane_lost(&mut tunnel).await;
    }
    learns(&mut tunnel).await;
    tunnel
}

/// Waits until all lanes are lost and another is open.
async fn lane_lost(tunnel: &mut Tunnel) {
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
}

/// Waits until the lifetime is learned.
async fn learns(tunnel: &mut Tunnel) {
    let learned = |line: &str| line.contains("are expected to be closed at this age");
    tunnel.sidecar.log_line(LIMIT, learned).await.unwrap();
}

/// Whether there was a time without a lane after the lifetime was known.
fn is_degraded_after_learning(exit: &Exit) -> bool {
    let is_change = |line: &&String| line.starts_with("degraded") || line.starts_with("recovered");
    let mut changes = exit.stdout.iter().filter(is_change);
    for _ in 0..LOST {
        assert!(changes.any(|line| line.starts_with("recovered")), "{:?}", exit.stdout);
    }
    changes.next().is_some()
}

/// Whether the service has closed the session's channel, because of its age.
fn is_closed_by_service(world: &World, session: &str) -> bool {
    let close = format!("{:?}", Break::Close);
    world.emulator.journal().records().into_iter().any(|entry| {
        matches!(entry.record, Record::Disconnected { session: id, why } if id == session && why == close)
    })
}

/// A connection to an echo server.
struct Echo(TcpStream);

impl Echo {
    async fn connect(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).await.unwrap())
    }

    /// Whether a few bytes are echoed.
    async fn answers(&mut self) -> bool {
        echoes(&mut self.0).await
    }

    /// Returns when the connection is reset; panics on an orderly end.
    async fn cut(&mut self) {
        let end = self.0.read(&mut [0; 16]).await;
        assert!(end.is_err(), "ended in order, as if it were complete");
    }
}
