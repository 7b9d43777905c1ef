//! The gateway's limits for what a client sends; their figures are tested beside their code.

use std::time::Duration;

use super::{
    builder,
    client::{Client, Event, signal},
    connected, keys, ssm,
};
use crate::{
    emulator::{
        Emulator, Ending, Entry, FlowClose, FlowControl, Limit, Link, Plan, Record,
        codec::{Message, PAUSE_PUBLICATION, START_PUBLICATION, payload_type},
    },
    fixtures::TcpServer,
};

/// What may be unacknowledged, and what may follow a pause, in bytes.
const ALLOWED: usize = 256 * 1024;

/// Size of a message, in bytes.
const MESSAGE: usize = 1_024;

async fn send(client: &mut Client, bytes: usize, message: usize) -> Vec<Message> {
    let payload = vec![7; message];
    let mut sent = Vec::new();
    for _ in 0..bytes / message {
        sent.push(client.send(payload_type::OUTPUT, &payload).await);
    }
    sent
}

/// What was paused for.
fn pauses(emulator: &Emulator) -> Vec<Limit> {
    let paused = |entry: &Entry| match &entry.record {
        Record::PublicationPaused { limit, .. } => Some(*limit),
        _ => None,
    };
    emulator.journal().records().iter().filter_map(paused).collect()
}

/// A client whose handshake is done, at an agent that receives nothing more.
async fn client_without_acknowledges(emulator: &Emulator) -> (Client, String) {
    let server = TcpServer::echo().await.unwrap();
    let (mut client, id) = connected(emulator, server.port()).await;
    client.acknowledged(0).await;
    emulator.control().set_faults(Plan::default().up(Link::clean().dropping(1.0)));
    (client, id)
}

#[tokio::test]
async fn full_window_is_paused_until_half_of_it_is_acknowledged() {
    let model = FlowControl::none().window();
    let emulator = builder().flow_control(model).build().await.unwrap();
    let server = TcpServer::echo().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    client.deliver(payload_type::OUTPUT, b"begins").await;
    emulator.control().set_faults(Plan::default().up(Link::clean().dropping(1.0)));
    let sent = send(&mut client, ALLOWED + MESSAGE, MESSAGE).await;
    while signal(&mut client).await != PAUSE_PUBLICATION {}
    assert_eq!(pauses(&emulator), [Limit::Window]);

    emulator.control().set_faults(Plan::default());
    let (most, few) = sent.split_at(120);
    for message in most {
        client.frame(2, &message.encode()).await;
    }
    client.acknowledged(most.last().unwrap().sequence).await;
    let started = |entry: &Entry| matches!(entry.record, Record::PublicationStarted { .. });
    assert!(!emulator.journal().records().iter().any(started), "more than half is left");
    for message in &few[..20] {
        client.frame(2, &message.encode()).await;
    }
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
    let stats = emulator.journal().stats(&id);
    assert_eq!((stats.pauses, stats.closes_provoked), (1, 0));
}

#[tokio::test]
async fn client_that_goes_on_after_a_pause_loses_its_session() {
    let emulator = builder().flow_control(FlowControl::all()).build().await.unwrap();
    let (mut client, id) = client_without_acknowledges(&emulator).await;
    send(&mut client, ALLOWED + MESSAGE, MESSAGE).await;
    assert_eq!(signal(&mut client).await, PAUSE_PUBLICATION);
    send(&mut client, ALLOWED + MESSAGE, MESSAGE).await;
    assert_eq!(client.end().await, "");
    let journal = emulator.journal();
    assert_eq!(journal.ending(&id), Some(Ending::FlowControl));
    assert_eq!((journal.pauses(), journal.closes_provoked()), (1, 1));
    assert_eq!(journal.violations(), [""; 0]);
}

#[tokio::test]
async fn client_that_goes_on_may_resume_where_only_its_websocket_is_closed() {
    let model = FlowControl::all().closing(FlowClose::WebSocket);
    let emulator = builder().flow_control(model).build().await.unwrap();
    let (mut client, id) = client_without_acknowledges(&emulator).await;
    send(&mut client, ALLOWED + MESSAGE, MESSAGE).await;
    assert_eq!(signal(&mut client).await, PAUSE_PUBLICATION);
    send(&mut client, ALLOWED + MESSAGE, MESSAGE).await;
    loop {
        match client.event().await {
            Event::Message(_) | Event::Pong => {}
            Event::Close(code, _) => break assert_eq!(code, 1000),
            Event::End => panic!("no close frame"),
        }
    }
    let resumed = ssm(&emulator, keys()).resume_session().session_id(&id).send().await.unwrap();
    client.resume(resumed.stream_url().unwrap(), resumed.token_value().unwrap()).await;
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
    let journal = emulator.journal();
    assert_eq!((journal.closes_provoked(), journal.open_sessions()), (1, vec![id]));
}

#[tokio::test]
async fn fast_client_is_paused_until_its_last_second_was_slow() {
    let emulator = builder().flow_control(FlowControl::none().rate(0.1)).build().await.unwrap();
    let (mut client, _) = client_without_acknowledges(&emulator).await;
    let begin = tokio::time::Instant::now();
    send(&mut client, 110_000, 1_000).await;
    assert_eq!(signal(&mut client).await, PAUSE_PUBLICATION);
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    assert_eq!(pauses(&emulator), [Limit::Rate]);
}

#[tokio::test]
async fn large_messages_are_paused_and_usual_ones_are_not() {
    let model = FlowControl::none().large_messages();
    let emulator = builder().flow_control(model).build().await.unwrap();
    let (mut client, _) = client_without_acknowledges(&emulator).await;
    send(&mut client, 4 * ALLOWED, MESSAGE).await;
    send(&mut client, ALLOWED, 8 * MESSAGE).await;
    client.frame(9, b"keepalive").await;
    while !matches!(client.event().await, Event::Pong) {}
    assert_eq!(pauses(&emulator), []);
    send(&mut client, 8 * MESSAGE, 8 * MESSAGE).await;
    assert_eq!(signal(&mut client).await, PAUSE_PUBLICATION);
    assert_eq!(pauses(&emulator), [Limit::LargeMessages]);
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
}

#[tokio::test]
async fn limits_can_be_changed_while_a_channel_is_open() {
    let emulator = builder().flow_control(FlowControl::none()).build().await.unwrap();
    let (mut client, _) = client_without_acknowledges(&emulator).await;
    send(&mut client, 2 * ALLOWED, MESSAGE).await;
    client.frame(9, b"keepalive").await;
    while !matches!(client.event().await, Event::Pong) {}
    assert_eq!(pauses(&emulator), []);
    emulator.control().set_flow_control(FlowControl::none().window());
    assert_eq!(signal(&mut client).await, PAUSE_PUBLICATION);
    emulator.control().set_flow_control(FlowControl::none());
    assert_eq!(signal(&mut client).await, START_PUBLICATION);
}
