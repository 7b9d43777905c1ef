//! Other processes on this host, of the same user and of other users.

use std::{fs, time::Duration};

use serde_json::json;
use tests::{
    emulator::Pacing,
    fixtures::{TcpServer, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Neighbour, Watch, ask, assert_answers};
use crate::world::{LIMIT, STOP, Tunnel, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_connections_leaves_room_for_the_next_one() {
    let neighbour = Neighbour::start().await;
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::echo().await.unwrap();
    let limit = json!({ "tunnel": { "max_connections": 16 } });
    let tunnel = Tunnel::open(&world.config(server.port()).with(&limit)).await;
    let watch = Watch::on(&tunnel.sidecar);
    let port = tunnel.port;
    let mut taken = 0;
    for _ in 0..5 {
        let mut crowd = JoinSet::new();
        for number in 0..60 {
            crowd.spawn(async move {
                let connecting = TcpStream::connect(("127.0.0.1", port));
                let mut stream = timeout(Duration::from_secs(4), connecting).await.ok()?.ok()?;
                // Some send nothing, some are reset, some close at once, some send and do not read.
                match number % 4 {
                    0 => {}
                    1 => stream.set_zero_linger().ok()?,
                    2 => stream.shutdown().await.ok()?,
                    _ => {
                        let flood = vec![7; 64 * 1024];
                        let flooding = async { while stream.write_all(&flood).await.is_ok() {} };
                        drop(timeout(Duration::from_millis(200), flooding).await);
                    }
                }
                (number % 4 != 1).then_some(stream)
            });
        }
        let held: Vec<_> = crowd.join_all().await.into_iter().flatten().collect();
        taken += held.len();
    }
    assert!(taken > 60, "{taken} connections were accepted");
    let began = Instant::now();
    assert_answers(port, "flood of connections").await;
    println!("answered after {:?}", began.elapsed());
    watch.assert_within("flood of connections", &neighbour, 4 * STOP);
    tunnel.close().await;
    world.finish().await;
    neighbour.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_half_open_are_no_burden() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let files = || {
        let worker = tunnel.sidecar.worker().unwrap();
        fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count()
    };
    let before = files();
    let mut half = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        ask(&mut stream).await.unwrap();
        stream.shutdown().await.unwrap();
        // The end of input is forwarded to the server and comes back.
        assert_eq!(timeout(LIMIT, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
        half.push(stream);
    }
    // Our half of the connection is still open, the sidecar's is not.
    let gone = eventually(LIMIT, || async { files() <= before + 1 }).await;
    assert!(gone, "{} files, {before} before", files());
    tunnel.close().await;
    world.finish().await;
}
