//! Every way in which a session ends, and the text that the service sends with it.

use std::time::Duration;

use super::{
    INSTANCE, builder,
    client::{Client, Event, LIMIT},
    connected, keys, ssm, start,
};
use crate::{
    emulator::{AgentSettings, Ending, Journal, Plan, Policy, codec::payload_type},
    fixtures::{TcpServer, free_port},
};

async fn ended(journal: &Journal, id: &str) -> Ending {
    journal.wait_for(|_| journal.ending(id).is_some(), LIMIT).await.unwrap();
    journal.ending(id).unwrap()
}

#[tokio::test]
async fn by_the_api() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    let api = ssm(&emulator, keys());
    api.terminate_session().session_id(&id).send().await.unwrap();
    assert_eq!(client.end().await, "");
    assert_eq!(emulator.journal().ending(&id), Some(Ending::Api));
    api.terminate_session().session_id(&id).send().await.unwrap();
    let resumed = api.resume_session().session_id(&id).send().await.unwrap();
    assert_eq!(resumed.token_value(), None, "the session is over");
}

#[tokio::test]
async fn by_the_servers_close_after_all_that_it_said() {
    let server = TcpServer::start(|mut stream| async move {
        use tokio::io::AsyncWriteExt as _;
        stream.write_all(&[7; 5_000]).await?;
        stream.shutdown().await
    });
    let server = server.await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    assert_eq!(client.bytes(5_000).await, [7; 5_000]);
    assert_eq!(client.end().await, "");
    assert_eq!(emulator.journal().ending(&id), Some(Ending::ServerClosed));
    assert_eq!(emulator.journal().violations(), [""; 0]);
}

#[tokio::test]
async fn by_the_console_with_its_text() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    emulator.control().terminate(&id, "the words");
    assert_eq!(client.end().await, "the words");
    assert_eq!(emulator.journal().ending(&id), Some(Ending::Operator));
}

#[tokio::test]
async fn by_idleness_which_input_alone_prevents() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().idle_timeout(Duration::from_millis(400)).build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(800) {
        client.send(payload_type::OUTPUT, b"x").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(emulator.journal().ending(&id), None);
    while start.elapsed() < Duration::from_millis(1_600) {
        client.frame(9, b"keepalive").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(client.end().await.contains("due to inactivity"));
    assert_eq!(emulator.journal().ending(&id), Some(Ending::Idle));
}

#[tokio::test]
async fn by_age() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().maximum_duration(Duration::from_millis(100)).build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    assert!(client.end().await.contains("maximum session duration"));
    assert_eq!(emulator.journal().ending(&id), Some(Ending::MaximumDuration));
}

#[tokio::test]
async fn by_a_handshake_that_is_not_answered() {
    let agent = AgentSettings::default().handshake_timeout(Duration::from_millis(100));
    let emulator = builder().agent(agent).build().await.unwrap();
    let started = start(&emulator, 22).await;
    let mut client = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    assert!(client.end().await.contains("Handshake timed out"));
    let id = started.session_id().unwrap();
    assert_eq!(emulator.journal().ending(id), Some(Ending::HandshakeTimedOut));
}

#[tokio::test]
async fn by_encryption_that_the_client_does_not_know() {
    let emulator = builder().agent(AgentSettings::default().encryption()).build().await.unwrap();
    let started = start(&emulator, 22).await;
    let mut client = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    let request = client.output().await.unwrap();
    assert!(String::from_utf8_lossy(&request.payload).contains("KMSEncryption"));
    let response = r#"{"ClientVersion":"1.2.764.0","ProcessedClientActions":[{"ActionType":"SessionType","ActionStatus":1,"ActionResult":null,"Error":""},{"ActionType":"KMSEncryption","ActionStatus":3,"ActionResult":null,"Error":"not for ports"}],"Errors":["not for ports"]}"#;
    client.send(payload_type::HANDSHAKE_RESPONSE, response.as_bytes()).await;
    assert!(client.end().await.contains("not for ports"));
    let id = started.session_id().unwrap();
    assert_eq!(emulator.journal().ending(id), Some(Ending::HandshakeRefused));
    assert_eq!(emulator.journal().violations(), [""; 0]);
}

#[tokio::test]
async fn by_an_agent_too_old_for_ports() {
    let agent =
        AgentSettings::default().version([2, 3, 50, 0]).start_delay(Duration::from_millis(50));
    let emulator = builder().agent(agent).build().await.unwrap();
    let started = start(&emulator, 22).await;
    let mut client = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    assert!(client.end().await.contains("Plugin with name Port is not supported"));
}

#[tokio::test]
async fn by_silence_where_nothing_listens() {
    let agent = AgentSettings::default().unreachable_silence(Duration::from_millis(600));
    let emulator = builder().agent(agent).build().await.unwrap();
    let (mut client, id) = connected(&emulator, free_port().unwrap()).await;
    let start = tokio::time::Instant::now();
    assert!(client.end().await.starts_with("document process failed unexpectedly"));
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(emulator.journal().ending(&id), Some(Ending::PortUnreachable));
}

#[tokio::test]
async fn by_the_flag_also_for_a_client_that_is_gone() {
    let server = TcpServer::echo().await.unwrap();
    let agent = AgentSettings::default().drain(Duration::from_millis(100));
    let emulator = builder().agent(agent).build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    client.acknowledged(0).await;
    client.send(payload_type::FLAG, &[0, 0, 0, 2]).await;
    drop(client);
    assert_eq!(ended(&emulator.journal(), &id).await, Ending::Flag);

    let (mut client, id) = connected(&emulator, server.port()).await;
    client.acknowledged(0).await;
    client.send(payload_type::FLAG, &[0, 0, 0, 1]).await;
    client.end().await;
    assert_eq!(emulator.journal().ending(&id), Some(Ending::DisconnectFlag));
    assert_eq!(emulator.journal().violations().len(), 1, "that flag is not for SSH sessions");
}

#[tokio::test]
async fn by_a_close_without_a_message_where_the_plan_says_so() {
    let server = TcpServer::echo().await.unwrap();
    let plan = Plan::seeded(1).ending_without_word();
    let emulator = builder().faults(plan).build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    emulator.control().terminate(&id, "never seen");
    let last = client.output().await.unwrap_err();
    assert!(matches!(last, Event::Close(1000, _)), "{last:?}");
}

#[tokio::test]
async fn a_session_that_is_left_stays_open() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().policy(Policy::least_privilege(INSTANCE)).build().await.unwrap();
    let (client, id) = connected(&emulator, server.port()).await;
    drop(client);
    let journal = emulator.journal();
    let gone = |text: &str| text.contains("Disconnected");
    journal
        .wait_for(|all| all.iter().any(|entry| gone(&format!("{:?}", entry.record))), LIMIT)
        .await
        .unwrap();
    assert_eq!(journal.open_sessions(), [id]);
}
