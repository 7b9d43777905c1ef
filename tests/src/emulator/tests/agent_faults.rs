//! An agent whose own channel breaks, and one that is killed.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    builder,
    channel::dialled,
    client::{Client, Event, LIMIT, signal},
    connected, start,
};
use crate::{
    emulator::{
        AgentBreak, AgentFailure, AgentSettings, Emulator, Ending, FlowControl, Plan, Record,
        codec::{PAUSE_PUBLICATION, START_PUBLICATION, payload_type},
    },
    fixtures::TcpServer,
};

/// An agent that reconnects and reports sooner than the real one.
fn quick() -> AgentSettings {
    AgentSettings::default()
        .reconnect_delay(Duration::from_millis(50))
        .report_delay(Duration::from_millis(300))
}

async fn seen(emulator: &Emulator, condition: impl Fn(&Record) -> bool, times: usize) {
    let journal = emulator.journal();
    let count = |all: &[crate::emulator::Entry]| {
        all.iter().filter(|entry| condition(&entry.record)).count() >= times
    };
    journal.wait_for(count, LIMIT).await.unwrap();
}

fn is_back(record: &Record) -> bool {
    matches!(record, Record::AgentBack { .. })
}

/// A client of an echo server, whose first payload has come back.
async fn client_of(emulator: &Emulator) -> (Client, String, TcpServer) {
    let server = TcpServer::echo().await.unwrap();
    let (mut client, id) = connected(emulator, server.port()).await;
    dialled(&emulator.journal()).await;
    client.deliver(payload_type::OUTPUT, b"begin").await;
    assert_eq!(client.bytes(5).await, b"begin");
    (client, id, server)
}

#[tokio::test]
async fn payload_that_the_agents_break_meets_is_written_twice_and_no_other() {
    for by_plan in [true, false] {
        let plan = Plan::default().agent(AgentFailure::ChannelBreaks, 2);
        let plan = if by_plan { plan } else { Plan::default() };
        let emulator = builder().agent(quick()).faults(plan).build().await.unwrap();
        let (mut client, id, _server) = client_of(&emulator).await;
        if !by_plan {
            emulator.control().break_agent(&id, AgentBreak::WithNextPayload);
        }
        let twice = client.send(payload_type::OUTPUT, b"twice").await;
        let amid = |record: &Record| matches!(record, Record::AgentAway { amid_payload: true, .. });
        seen(&emulator, amid, 1).await;
        assert!(!client.acknowledged.contains(&twice.sequence));
        client.again(&twice).await;
        client.deliver(payload_type::OUTPUT, b"once").await;
        assert_eq!(client.bytes(14).await, b"twicetwiceonce", "by plan: {by_plan}");
        assert_eq!(emulator.journal().violations(), [""; 0]);
    }
}

#[tokio::test]
async fn break_of_an_idle_agent_loses_nothing() {
    let emulator = builder().agent(quick()).build().await.unwrap();
    let (mut client, id, _server) = client_of(&emulator).await;
    emulator.control().break_agent(&id, AgentBreak::AtOnce);
    seen(&emulator, is_back, 1).await;
    client.deliver(payload_type::OUTPUT, b"once").await;
    assert_eq!(client.bytes(4).await, b"once");
}

#[tokio::test]
async fn agents_channel_is_closed_by_schedule_too() {
    let agent = quick().channel_lifetime(Duration::from_millis(100));
    let emulator = builder().agent(agent).build().await.unwrap();
    let (mut client, _, _server) = client_of(&emulator).await;
    seen(&emulator, is_back, 2).await;
    client.deliver(payload_type::OUTPUT, b"on").await;
    assert!(client.bytes(2).await.starts_with(b"o"));
}

#[tokio::test]
async fn client_is_paused_while_the_agent_is_away_where_the_service_says_so() {
    let model = FlowControl::none().agent_away();
    let emulator = builder().agent(quick()).flow_control(model).build().await.unwrap();
    let (mut client, id, _server) = client_of(&emulator).await;
    emulator.control().break_agent(&id, AgentBreak::AtOnce);
    while signal(&mut client).await != PAUSE_PUBLICATION {}
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
    assert_eq!(emulator.journal().stats(&id).pauses, 1);
}

#[tokio::test]
async fn killed_worker_is_silent_until_its_master_reports_it() {
    for by_plan in [true, false] {
        let plan = Plan::default().agent(AgentFailure::WorkerKilled, 2);
        let plan = if by_plan { plan } else { Plan::default() };
        let emulator = builder().agent(quick()).faults(plan).build().await.unwrap();
        let (mut client, id, _server) = client_of(&emulator).await;
        let killed = Instant::now();
        if !by_plan {
            emulator.control().kill_worker(&id);
        }
        let lost = client.send(payload_type::OUTPUT, b"lost").await;
        seen(&emulator, |record| matches!(record, Record::WorkerKilled { .. }), 1).await;
        client.frame(9, b"keepalive").await;
        while !matches!(client.event().await, Event::Pong) {}
        assert!(client.end().await.starts_with("document process failed unexpectedly"));
        assert!(killed.elapsed() >= Duration::from_millis(300), "{:?}", killed.elapsed());
        assert!(!client.acknowledged.contains(&lost.sequence), "by plan: {by_plan}");
        assert_eq!(emulator.journal().ending(&id), Some(Ending::WorkerKilled));
    }
}

#[tokio::test]
async fn killed_agent_begins_sessions_only_when_it_is_back() {
    let emulator = builder().agent(quick()).build().await.unwrap();
    let (mut client, id, _server) = client_of(&emulator).await;
    let killed = Instant::now();
    emulator.control().kill_agent(Duration::from_millis(300));
    let server = TcpServer::echo().await.unwrap();
    let started = start(&emulator, server.port()).await;
    let mut other = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    other.open(started.token_value().unwrap()).await;
    other.frame(9, b"keepalive").await;
    while !matches!(other.event().await, Event::Pong) {}
    other.handshake().await;
    assert!(killed.elapsed() >= Duration::from_millis(300), "{:?}", killed.elapsed());
    seen(&emulator, |record| matches!(record, Record::Dialled { .. }), 2).await;
    other.deliver(payload_type::OUTPUT, b"alive").await;
    assert_eq!(other.bytes(5).await, b"alive");
    client.end().await;
    assert!(killed.elapsed() >= Duration::from_millis(600), "{:?}", killed.elapsed());
    assert_eq!(emulator.journal().ending(&id), Some(Ending::WorkerKilled));
}

#[tokio::test]
async fn data_right_after_the_handshake_is_lost_only_where_the_agent_is_careless() {
    for (share, arrives) in [(0.0, true), (1.0, false)] {
        let server = TcpServer::echo().await.unwrap();
        let agent = AgentSettings::default()
            .complete_delay(Duration::from_millis(200))
            .complete_delay_share(share);
        let emulator = builder().agent(agent).build().await.unwrap();
        let (mut client, _) = connected(&emulator, server.port()).await;
        client.deliver(payload_type::OUTPUT, b"early").await;
        client.deliver(payload_type::OUTPUT, b"late!").await;
        // Both were acknowledged before the agent dialled, or both were written.
        let dialled = |record: &Record| matches!(record, Record::Dialled { .. });
        seen(&emulator, dialled, 1).await;
        client.deliver(payload_type::OUTPUT, b"final").await;
        let first = client.bytes(5).await;
        assert_eq!(first == b"early", arrives, "{}", first.escape_ascii());
    }
}
