//! The service closes every data channel after about an hour. If sessions may be resumed, clients do not
//! notice; if not, lanes are replaced before they break. The hour is shortened to seconds, for the emulator
//! and, with `--channel-life`, for the sidecar.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::{Break, Ending, Policy, Record},
    fixtures::{Config, Sidecar, TcpServer, eventually, source_bytes},
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

/// Lifetime of a data channel, in place of the hour.
const LIFE: Duration = Duration::from_secs(12);

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
    let tunnel = short_lived_by(&config).await;
    let journal = world.emulator.journal();
    let mut first = Echo::connect(tunnel.port).await;
    assert!(first.answers().await);
    let mut second = Echo::connect(tunnel.port).await;
    assert!(second.answers().await);
    assert!(eventually(LIMIT, || async { journal.sessions().len() >= 2 }).await);
    // Two generations of each of the two lanes; a lane is available at any time.
    assert!(eventually(LIMIT, || async { journal.sessions().len() >= 4 }).await);
    for _ in 0..3 {
        let mut new = Echo::connect(tunnel.port).await;
        assert!(new.answers().await);
    }
    let exit = tunnel.close().await;
    let lines = &exit.stdout;
    assert!(!lines.iter().any(|line| line.starts_with("degraded")), "{lines:?}");
    world.finish().await;
}

#[tokio::test]
async fn successor_takes_new_connections_before_the_close_and_old_ones_last_until_it() {
    // A session whose channel is closed can be ended only through the API.
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = short_lived(&world, server.port()).await;
    tunnel.sidecar.log_line(LIMIT, |line| line.contains("ssm:ResumeSession")).await.unwrap();

    let mut old = Echo::connect(tunnel.port).await;
    let replaced = |line: &str| line.contains("replaced before its channel is closed");
    tunnel.sidecar.log_line(LIMIT, replaced).await.unwrap();
    assert!(old.answers().await, "the old connection was cut off when a successor was opened");
    let mut new = Echo::connect(tunnel.port).await;
    assert!(new.answers().await);

    // The old lane and its session are ended before its channel is closed.
    timeout(LIMIT, old.cut()).await.expect("the old connection outlives its session");
    assert!(new.answers().await, "the new connection was on the old lane");
    let exit = tunnel.close().await;
    let lines = &exit.stdout;
    assert!(
        !lines.iter().any(|line| line.starts_with("degraded")),
        "a lane is always available: {lines:?}"
    );
    assert_eq!(world.emulator.journal().sessions().len(), 2);
    world.finish().await;
}

/// With `ssm:StartSession` alone, a session can be ended only through its channel.
#[tokio::test]
async fn replaced_lane_is_ended_before_the_close_so_that_nothing_is_left() {
    // The service closes a little later than assumed, as the assumed lifetime is only an estimate.
    let late = LIFE + Duration::from_secs(4);
    let world = World::with(|builder| builder.channel_lifetime(late)).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = short_lived(&world, server.port()).await;
    let mut old = Echo::connect(tunnel.port).await;
    assert!(old.answers().await);
    let first = world.emulator.journal().sessions().remove(0);
    timeout(LIMIT, old.cut()).await.expect("the old connection outlives its session");
    let ended = || async { world.emulator.journal().ending(&first) == Some(Ending::Flag) };
    assert!(eventually(LIMIT, ended).await, "{:?}", world.emulator.journal().ending(&first));
    let mut new = Echo::connect(tunnel.port).await;
    assert!(new.answers().await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn lane_that_nobody_uses_is_ended_once_it_has_a_successor() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = short_lived(&world, server.port()).await;
    let journal = world.emulator.journal();
    // Three generations, one session at a time, ended by the sidecar and not by the close of the
    // channel.
    let generations = || async { journal.sessions().len() >= 3 };
    assert!(eventually(2 * LIMIT, generations).await, "{:?}", journal.sessions());
    let first = journal.sessions().remove(0);
    assert!(eventually(LIMIT, || async { journal.ending(&first).is_some() }).await);
    assert!(!journal.calls("TerminateSession").is_empty());
    assert!(journal.open_sessions().len() <= 2, "{:?}", journal.open_sessions());
    let mut stream = Echo::connect(tunnel.port).await;
    assert!(stream.answers().await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn permission_that_is_granted_in_time_makes_successors_needless() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE)).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = short_lived(&world, server.port()).await;
    tunnel.sidecar.log_line(LIMIT, |line| line.contains("ssm:ResumeSession")).await.unwrap();
    let mut stream = Echo::connect(tunnel.port).await;
    world.emulator.control().set_policy(Policy::full(INSTANCE));
    let resumed = |line: &str| line.contains("session resumed");
    tunnel.sidecar.log_line(LIMIT, resumed).await.unwrap();
    assert!(stream.answers().await, "cut although the session was resumed");
    tunnel.close().await;
    assert_eq!(world.emulator.journal().sessions().len(), 1);
    world.finish().await;
}

#[tokio::test]
async fn break_right_after_a_replacement_is_not_charged_for_an_older_one() {
    let world = World::with(|builder| builder.channel_lifetime(LIFE).policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    // The first outage's budget would be used up long before the second break.
    let change = json!({ "timeouts": { "reconnect_s": 6 }, "events": true });
    let mut tunnel = short_lived_by(&world.config(server.port()).with(&change)).await;
    let break_path = async |tunnel: &mut Tunnel| {
        world.emulator.control().disconnect_all(Break::Reset).await;
        tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
        tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    };
    break_path(&mut tunnel).await;
    let replaced = |line: &str| line.contains("replaced before its channel is closed");
    tunnel.sidecar.log_line(LIMIT, replaced).await.unwrap();
    break_path(&mut tunnel).await;
    assert!(Echo::connect(tunnel.port).await.answers().await);
    tunnel.close().await;
    world.finish().await;
}

/// A tunnel whose sidecar knows the short lifetime.
async fn short_lived(world: &World, target_port: u16) -> Tunnel {
    short_lived_by(&world.config(target_port).with(&json!({ "events": true }))).await
}

async fn short_lived_by(config: &Config) -> Tunnel {
    let life = LIFE.as_secs().to_string();
    let sidecar = Sidecar::spawn_with(config, |command| {
        command.args(["--channel-life", &life]);
    });
    let mut sidecar = sidecar.await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    Tunnel { sidecar, port }
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
