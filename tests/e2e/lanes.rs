//! Several sessions: opened for connections, one ahead of the next connection, never more than allowed.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::Pacing,
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
async fn each_connection_finds_an_empty_session_up_to_the_number_allowed() {
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::echo().await.unwrap();
    let mut tunnel =
        world.tunnel_with(server.port(), &json!({ "tunnel": { "sessions": SESSIONS } })).await;
    let journal = world.emulator.journal();
    assert_eq!(journal.sessions().len(), 1, "no session is opened without a connection");

    let mut connections = Vec::new();
    for count in 1..=SESSIONS + 2 {
        let mut connection = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        timeout(LIMIT, connection.write_all(b"?")).await.unwrap().unwrap();
        timeout(LIMIT, connection.read_exact(&mut [0])).await.unwrap().unwrap();
        connections.push(connection);
        // One for each connection, and one for the next.
        if count < SESSIONS {
            let opened = |line: &str| {
                line.contains("lane opened") && line.contains(&format!("\"lane\":{}", count + 1))
            };
            tunnel.sidecar.log_line(LIMIT, opened).await.unwrap();
        }
    }
    assert_eq!(journal.sessions().len(), SESSIONS);
    // A session too many would be opened within this time.
    let more = || async { journal.sessions().len() > SESSIONS };
    assert!(!eventually(Duration::from_secs(1), more).await, "{SESSIONS} are allowed");
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
    let mut tunnel = Tunnel::open(&world.config(server.port()).with(&changes)).await;
    let mut download = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    download.write_all(b"d").await.unwrap();
    let opened = |line: &str| line.contains("lane opened");
    tunnel.sidecar.log_line(LIMIT, opened).await.unwrap();
    // From here on the download counts as bulk.
    timeout(LIMIT, download.read_exact(&mut vec![0; 512 * 1024])).await.unwrap().unwrap();

    let mut reader = JoinSet::new();
    reader.spawn(async move { while download.read(&mut vec![0; 64 * 1024]).await.unwrap() > 0 {} });
    let journal = world.emulator.journal();
    let second = journal.sessions().pop().unwrap();
    let mut connections = Vec::new();
    for count in 1..=4 {
        let before = journal.stats(&second).input_messages;
        let mut connection = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        timeout(LIMIT, connection.write_all(b"?")).await.unwrap().unwrap();
        timeout(LIMIT, connection.read_exact(&mut [0])).await.unwrap().unwrap();
        let asked = journal.stats(&second).input_messages - before;
        assert!(asked > 0, "connection {count} was put on the download's session");
        connections.push(connection);
    }
    drop((connections, reader));
    tunnel.close().await;
    world.finish().await;
}

const SESSIONS: usize = 3;
