//! Sessions side by side: opened for connections, ahead of the next one, never more than allowed.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::Pacing,
    fixtures::{TcpServer, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::{LIMIT, Tunnel, World};

#[tokio::test]
async fn each_connection_finds_an_empty_session_up_to_the_number_allowed() {
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::echo().await.unwrap();
    let document =
        world.document(server.port()).with(&json!({ "tunnel": { "sessions": SESSIONS } }));
    let mut tunnel = Tunnel::open(&document).await;
    let journal = world.emulator.journal();
    assert_eq!(journal.sessions().len(), 1, "no session is opened for nobody");

    let mut connections = Vec::new();
    for count in 1..=SESSIONS + 2 {
        let mut connection = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        timeout(LIMIT, connection.write_all(b"?")).await.unwrap().unwrap();
        timeout(LIMIT, connection.read_exact(&mut [0])).await.unwrap().unwrap();
        connections.push(connection);
        // One for each connection, and one for the next.
        if count < SESSIONS {
            let opened = |line: &str| {
                line.contains("a further session is open")
                    && line.contains(&format!("\"lane\":{}", count + 1))
            };
            tunnel.sidecar.log_line(LIMIT, opened).await.unwrap();
        }
    }
    assert_eq!(journal.sessions().len(), SESSIONS);
    // A session too many would come within this time.
    let more = || async { journal.sessions().len() > SESSIONS };
    assert!(!eventually(Duration::from_secs(1), more).await, "{SESSIONS} are allowed");
    tunnel.close().await;
    world.finish().await;
}

const SESSIONS: usize = 3;
