//! Several sessions: one for each of the connections that are open at once, never more than allowed.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use tests::{
    emulator::{AgentSettings, Pacing},
    fixtures::{TcpServer, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::world::{LIMIT, Tunnel, World};

#[tokio::test]
async fn sessions_are_opened_for_connections_that_are_open_at_once_up_to_the_number_allowed() {
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::echo().await.unwrap();
    let sessions = 3;
    let tunnel =
        world.tunnel_with(server.port(), &json!({ "tunnel": { "sessions": sessions } })).await;
    let journal = world.emulator.journal();
    for _ in 0..10 {
        let mut connection = connected(tunnel.port).await;
        // Its end has come back: the next one is not beside it.
        connection.shutdown().await.unwrap();
        assert_eq!(timeout(LIMIT, connection.read(&mut [0])).await.unwrap().unwrap(), 0);
    }
    let mut connections = Vec::new();
    for count in 1..=sessions + 2 {
        connections.push(connected(tunnel.port).await);
        assert_eq!(journal.sessions().len(), count.min(sessions), "{count} connections");
    }
    // A session too many would be opened within this time.
    let more = || async { journal.sessions().len() > sessions };
    assert!(!eventually(Duration::from_secs(1), more).await, "{sessions} are allowed");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_connections_right_after_ready_get_a_session_each() {
    let agent = AgentSettings::default().start_spacing(Duration::from_secs(1));
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced).agent(agent)).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel_with(server.port(), &json!({ "tunnel": { "sessions": 8 } })).await;
    let mut connections = join_all((0..8).map(|_| connected(tunnel.port))).await;

    let journal = world.emulator.journal();
    let sessions = journal.sessions();
    let messages = || sessions.iter().map(|session| journal.stats(session).input_messages);
    let mut used = BTreeSet::new();
    for connection in &mut connections {
        let before: Vec<_> = messages().collect();
        let question = [7; 8 * 1024];
        timeout(LIMIT, connection.write_all(&question)).await.unwrap().unwrap();
        timeout(LIMIT, connection.read_exact(&mut [0; 8 * 1024])).await.unwrap().unwrap();
        let carried = messages().zip(before).map(|(after, before)| after - before);
        used.extend(
            carried.enumerate().max_by_key(|(_, carried)| *carried).map(|(index, _)| index),
        );
    }
    assert_eq!((sessions.len(), used.len()), (8, 8), "{used:?}");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_keep_off_the_session_of_a_download() {
    let world = World::start().await;
    let server = TcpServer::start(|mut stream| async move {
        if stream.read_u8().await? == b'd' {
            let rows = vec![7; 64 * 1024];
            loop {
                stream.write_all(&rows).await?;
            }
        }
        stream.write_all(b"!").await?;
        stream.read(&mut [0]).await.map(drop)
    })
    .await
    .unwrap();
    let changes = json!({ "tunnel": { "sessions": 2, "compression": "off" } });
    let tunnel = Tunnel::open(&world.config(server.port()).with(&changes)).await;
    let mut download = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    download.write_all(b"d").await.unwrap();
    // From here on the download counts as bulk.
    timeout(LIMIT, download.read_exact(&mut vec![0; 512 * 1024])).await.unwrap().unwrap();

    let mut reader = JoinSet::new();
    reader.spawn(async move { while download.read(&mut vec![0; 64 * 1024]).await.unwrap() > 0 {} });
    let journal = world.emulator.journal();
    // The first of these has a session opened for it.
    let mut connections = vec![connected(tunnel.port).await];
    let second = journal.sessions().pop().unwrap();
    assert_eq!(journal.sessions().len(), 2);
    for count in 2..=4 {
        let before = journal.stats(&second).input_messages;
        connections.push(connected(tunnel.port).await);
        let asked = journal.stats(&second).input_messages - before;
        assert!(asked > 0, "connection {count} was put on the download's session");
    }
    drop((connections, reader));
    tunnel.close().await;
    world.finish().await;
}

/// A connection whose question was answered.
async fn connected(port: u16) -> TcpStream {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    timeout(LIMIT, connection.write_all(b"?")).await.unwrap().unwrap();
    timeout(LIMIT, connection.read_exact(&mut [0])).await.unwrap().unwrap();
    connection
}
