//! Faults of the link, seen by a client that copes with those of one direction.

use std::time::Duration;

use super::{
    builder,
    client::{Client, Event},
    connected, keys, ssm,
};
use crate::{
    emulator::{Break, Cut, Link, Plan},
    fixtures::{TcpServer, pattern},
};

#[tokio::test]
async fn every_byte_arrives_in_the_end_over_a_faulty_way_down() {
    for seed in 1..4 {
        let link = Link::clean()
            .dropping(0.03)
            .duplicating(0.05)
            .reordering(0.05)
            .damaging(0.02)
            .truncating(0.02)
            .delayed(Duration::from_millis(1), Duration::from_millis(2));
        let server = TcpServer::source(60_000).await.unwrap();
        let emulator = builder().faults(Plan::seeded(seed).down(link)).build().await.unwrap();
        // The agent retransmits the handshake too: its second message is sent again.
        let (mut client, id) = connected(&emulator, server.port()).await;
        assert!(client.bytes(60_000).await == pattern(60_000), "seed {seed}");
        let journal = emulator.journal();
        assert_eq!(journal.violations(), [""; 0], "seed {seed}");
        assert!(journal.stats(&id).output_repeated > 0, "seed {seed}");
    }
}

/// More than is read: at the end of its input the agent would end the session.
const LENGTH: usize = 100_000_000;

#[tokio::test]
async fn connections_break_after_so_many_frames_so_many_times() {
    let server = TcpServer::source(LENGTH).await.unwrap();
    let plan = Plan::seeded(1).cut(Cut::after(60, Break::Reset).times(2));
    let emulator = builder().faults(plan).build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    let api = ssm(&emulator, keys());
    let mut received = Vec::new();
    let mut breaks = 0;
    while received.len() < LENGTH {
        match client.output().await {
            Ok(message) => received.extend_from_slice(&message.payload),
            Err(Event::End) => {
                breaks += 1;
                let resumed = api.resume_session().session_id(&id).send().await.unwrap();
                client.resume(resumed.stream_url().unwrap(), resumed.token_value().unwrap()).await;
                // Messages not acknowledged now would be retransmitted one by one, which takes too
                // long here.
                if breaks == 2 {
                    break;
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(breaks, 2);
    assert!(pattern(1_000_000).starts_with(&received));
    for _ in 0..300 {
        let event = client.event().await;
        assert!(matches!(event, Event::Message(_)), "the third connection stays: {event:?}");
    }
    let url = emulator.stream_url();
    assert_eq!(
        Client::connect(&format!("{url}/v1/data-channel/none?x"), &[]).await.unwrap_err(),
        404
    );
    assert_eq!(emulator.journal().violations(), [""; 0]);
}
