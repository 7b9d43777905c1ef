//! Whatever the path to the agent does, bytes arrive complete and in order, or the connection is reset.
//!
//! The faults are given by a plan and a seed. A failing test prints both, and the emulator its journal.
//! `FAULT_SEED=17 cargo test --workspace --test e2e -- every_fault` runs only that seed, `FAULT_SEEDS=100`
//! that many. The rules themselves are tested with thousands of seeds in the crate `data-channel`, on a
//! virtual clock.

use std::{env, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use tests::{
    emulator::{AgentBreak, AgentSettings, Break, Cut, Link, Pacing, Plan, Policy, Record},
    fixtures::{Sidecar, TcpServer, eventually, pattern, source_bytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    echo::echoes,
    world::{Failure, INSTANCE, LIMIT, Tunnel, World},
};

/// A path that loses one message in ten is slow: the real agent retransmits ten messages a second.
const PATIENCE: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_whole_on_a_path_with_every_fault() {
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("FAULT_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("FAULT_SEEDS").unwrap_or(3),
    };
    join_all(seeds.map(|seed| async move {
        let name = format!("FAULT_SEED={seed}");
        carries_bytes_whole(&name, any_plan(seed), AgentSettings::default()).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_whole_on_a_path_with_one_fault() {
    let millis = Duration::from_millis;
    let cases = [
        ("one in ten lost", Link::clean().dropping(0.1)),
        ("one in five doubled", Link::clean().duplicating(0.2)),
        ("one in five overtaken", Link::clean().reordering(0.2)),
        ("up to 400 ms late", Link::clean().delayed(millis(20), millis(380))),
        ("400 ms late", Link::clean().delayed(millis(400), millis(0))),
    ];
    // In the other direction these faults would reach sshd, since the agent checks no digests.
    let down_only = [
        ("one in twenty damaged", Link::clean().damaging(0.05)),
        ("one in twenty cut short", Link::clean().truncating(0.05)),
        ("half of what comes was never sent", Link::clean().forging(1.0)),
    ];
    let both = cases.map(|(name, link)| (name, Plan::seeded(1).both(link)));
    let down = down_only.map(|(name, link)| (name, Plan::seeded(1).down(link)));
    let runs = both.into_iter().chain(down);
    join_all(runs.map(|(name, plan)| carries_bytes_whole(name, plan, AgentSettings::default())))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_sends_a_message_again_for_ever_does_no_harm() {
    let agent = AgentSettings::default().resending_for_ever(4);
    carries_bytes_whole("an agent that repeats itself", Plan::seeded(1), agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_acknowledges_nothing_again_does_no_harm() {
    let agent = AgentSettings::default().version([3, 1, 0, 0]);
    let plan = Plan::seeded(1).both(Link::clean().dropping(0.05));
    carries_bytes_whole("an old agent", plan, agent).await;
}

#[tokio::test]
async fn connection_outlives_an_agent_that_is_away_for_a_minute() {
    let world = World::with(|builder| builder.policy(Policy::full(INSTANCE))).await;
    let server = TcpServer::source(500_000).await.unwrap();
    // For so long a lane keeps its connections whose agent does not answer.
    let patient = json!({ "timeouts": { "reconnect_s": 90 } });
    let tunnel = world.tunnel_with(server.port(), &patient).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut received = vec![0; 500_000];
    let (first, rest) = received.split_at_mut(100_000);
    timeout(LIMIT, stream.read_exact(first)).await.unwrap().unwrap();
    // The service is reachable and answers pings; the messages between client and agent are lost.
    world.emulator.control().set_faults(Plan::default().both(Link::clean().dropping(1.0)));
    // The minute is part of the promise.
    sleep(Duration::from_mins(1)).await;
    world.emulator.control().set_faults(Plan::default());
    timeout(PATIENCE, stream.read_exact(rest)).await.unwrap().unwrap();
    assert!(received == source_bytes(500_000), "not the bytes that were sent");
    drop(stream);
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!(summary["resets"], 0, "{summary}");
    world.finish().await;
}

/// Seen with the real agent: its own channel breaks when it has written a payload to sshd and not acknowledged it. It
/// writes the payload again when that is sent again.
#[tokio::test]
async fn agent_that_writes_a_payload_twice_costs_its_lane_and_is_told_as_such() {
    let world = World::with(|builder| builder.policy(Policy::full(INSTANCE))).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel = world.tunnel_with(server.port(), &json!({ "events": true })).await;
    let session = world.emulator.journal().sessions().remove(0);
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    world.emulator.control().break_agent(&session, AgentBreak::WithNextPayload);
    let payload = vec![7; 64 * 1024];
    let upload = async { while stream.write_all(&payload).await.is_ok() {} };
    timeout(LIMIT, upload).await.expect("the upload goes on");
    let reason = tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    assert!(reason.contains("sshd") || reason.contains("corrupt"), "{reason}");
    tunnel.sidecar.word("recovered", LIMIT).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    assert!(echoes(&mut stream).await);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn pause_of_the_service_holds_new_bytes_until_it_is_over() {
    // A lost `start_publication` is compensated by time.
    for is_started in [true, false] {
        let world = World::start().await;
        let server = TcpServer::echo().await.unwrap();
        let config = world.config(server.port());
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.env("RUST_LOG", "debug");
        });
        let mut sidecar = sidecar.await.unwrap();
        let port = sidecar.ready(LIMIT).await.unwrap();
        let (journal, control) = (world.emulator.journal(), world.emulator.control());
        let session = journal.sessions().remove(0);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut answer = [0; 5];
        stream.write_all(b"hello").await.unwrap();
        timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        // What is counted while paused ends with a message of the agent, so wait until it sends no more.
        let mut before = journal.stats(&session);
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = journal.stats(&session);
            if std::mem::replace(&mut before, now) == now {
                break;
            }
        }
        assert!(control.pause(&session).await);
        sidecar.log_line(LIMIT, |line| line.contains("has paused the upload")).await.unwrap();
        stream.write_all(b"held!").await.unwrap();
        let early = timeout(Duration::from_secs(3), stream.read_exact(&mut answer)).await;
        assert!(early.is_err(), "sent in spite of the pause");
        assert_eq!(journal.stats(&session).input_while_paused, 0);
        if is_started {
            assert!(control.start(&session).await);
        }
        timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"held!");
        Tunnel { sidecar, port }.close().await;
        world.finish().await;
    }
}

#[tokio::test]
async fn close_at_any_moment_of_the_start_ends_in_one_failure_line() {
    // Given by the number of stream messages in each direction, including those of the handshake.
    for (phase, delivered, answered) in [("session", 0, 0), ("session", 1, 1), ("ssh", 4, 3)] {
        // Slow enough that the close falls into the phase.
        let link = Link::clean().delayed(Duration::from_millis(100), Duration::ZERO);
        let world = World::with(|builder| builder.faults(Plan::default().both(link))).await;
        let server = TcpServer::echo().await.unwrap();
        let config = world.config(server.port());
        let sidecar = Sidecar::spawn(&config).await.unwrap();
        let journal = world.emulator.journal();
        let is_open = |entries: &[tests::emulator::Entry]| {
            entries.iter().any(|entry| matches!(entry.record, Record::Opened { .. }))
        };
        journal.wait_for(is_open, LIMIT).await.unwrap();
        let session = journal.sessions().remove(0);
        let reached = || async {
            let stats = journal.stats(&session);
            stats.delivered >= delivered && stats.input_messages >= answered
        };
        assert!(eventually(LIMIT, reached).await, "{:?}", journal.stats(&session));
        world.emulator.control().terminate(&session, "ended by a test");
        let exit = sidecar.exit(LIMIT).await.unwrap();
        let ended = Failure { code: "session.ended", status: 69, phase, blame: "customer" };
        ended.assert(&format!("by_somebody_else_in_{phase}"), &exit, &config);
        world.finish().await;
    }
}

/// Faults of every kind, up to the rates of a really bad path.
fn any_plan(seed: u64) -> Plan {
    // Only spreads the bits of the seed: the emulator has its own generator.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut up_to = |most: f64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed);
        let share = u32::try_from(state >> 33).unwrap_or(0) % 1_001;
        most * f64::from(share) / 1_000.0
    };
    let mut link = |towards_client: bool| {
        let link = Link::clean()
            .dropping(up_to(0.1))
            .duplicating(up_to(0.1))
            .reordering(up_to(0.2))
            .delayed(Duration::from_secs_f64(up_to(0.2)), Duration::from_secs_f64(up_to(0.2)));
        if towards_client {
            link.damaging(up_to(0.03)).truncating(up_to(0.03)).forging(up_to(0.5))
        } else {
            link
        }
    };
    let (up, down) = (link(false), link(true));
    let how = [Break::Close, Break::Reset, Break::Silence][usize::try_from(seed % 3).unwrap_or(0)];
    Plan::seeded(seed).up(up).down(down).cut(Cut::after(300, how).times(2))
}

/// Opens a tunnel through `plan`, sends bytes in both directions at once, and compares them.
async fn carries_bytes_whole(name: &str, plan: Plan, agent: AgentSettings) {
    let (down_bytes, up_bytes) = (200_000, 100_000);
    let world = World::with(|builder| {
        let builder = builder.policy(Policy::full(INSTANCE)).pacing(Pacing::Real);
        builder.faults(plan).agent(agent)
    });
    let world = world.await;
    let server = TcpServer::start(move |mut stream| async move {
        let (mut input, mut output) = stream.split();
        let mut heard = Vec::new();
        let say = source_bytes(down_bytes);
        let (said, hearing) = tokio::join!(output.write_all(&say), input.read_to_end(&mut heard));
        said?;
        hearing?;
        output.write_all(if heard == pattern(up_bytes) { WHOLE } else { b"-" }).await?;
        output.shutdown().await
    });
    let server = server.await.unwrap();
    let patient = json!({ "timeouts": { "ready_s": 300, "reconnect_s": 300, "connect_s": 120 } });
    let config = world.config(server.port()).with(&patient);
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    let port = sidecar.ready(PATIENCE).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let tunnel = Tunnel { sidecar, port };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut input, mut output) = stream.split();
    let say = async {
        output.write_all(&pattern(up_bytes)).await?;
        output.shutdown().await
    };
    let mut received = Vec::new();
    let exchange = async { tokio::join!(say, input.read_to_end(&mut received)) };
    let (said, heard) =
        timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("{name}: hangs"));
    said.unwrap_or_else(|error| panic!("{name}: {error}"));
    heard.unwrap_or_else(|error| panic!("{name}: {error}"));
    let verdict = received.split_off(down_bytes.min(received.len()));
    assert!(received == source_bytes(down_bytes), "{name}: {} bytes received", received.len());
    assert_eq!(verdict, WHOLE, "{name}: the bytes sent");
    drop(stream);
    world.emulator.control().set_faults(Plan::default());
    tunnel.close().await;
    world.finish().await;
}

/// Sent by the far end when it has received all bytes correctly.
const WHOLE: &[u8] = b"+";
