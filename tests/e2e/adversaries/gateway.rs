//! A hostile message gateway, or an attacker in its place.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tests::{
    emulator::forgery::{BINARY, PING, TEXT, frame, frame_header},
    fixtures::{Sidecar, TcpServer},
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};

use super::{Neighbour, Watch, assert_answers};
use crate::world::{Failure, LIMIT, STOP, World, may_terminate};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_on_the_upgrade_ends_in_one_line_and_a_session_that_is_over() {
    let neighbour = Neighbour::start().await;
    let cases: [(&str, &str, bool, &str, i32); 3] = [
        // What is sent repeatedly, and whether as fast as possible.
        (
            "endless headers",
            "X-Endless: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
            true,
            "session.lost",
            75,
        ),
        ("endless header", "a", true, "session.lost", 75),
        ("slow headers", "X-Slow: a\r\n", false, "session.lost", 75),
    ];
    for (name, piece, fast, code, status) in cases {
        let gateway = TcpServer::start(move |mut stream| async move {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").await?;
            let block = piece.repeat(if fast { 1000 } else { 1 });
            loop {
                stream.write_all(block.as_bytes()).await?;
                if !fast {
                    // A connection that is never idle and never makes progress.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let gateway = gateway.await.unwrap();
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let endpoint = format!("ws://127.0.0.1:{}", gateway.port());
        let config = world.config(5432).with(&json!({
            "aws": { "stream_endpoint_url": endpoint },
            "timeouts": { "ready_s": READY.as_secs() },
        }));
        let sidecar = Sidecar::spawn(&config).await.unwrap();
        let watch = Watch::on(&sidecar);
        let exit = sidecar.exit(LIMIT).await.unwrap();
        Failure { code, status, phase: "session", blame: "operator" }.assert(name, &exit, &config);
        watch.assert_within(name, &neighbour, Duration::from_secs(5));
        world.finish().await;
    }
    neighbour.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_every_wrong_kind_cost_the_socket_and_not_the_tunnel() {
    let neighbour = Neighbour::start().await;
    let kilobyte = [0_u8; 1024];
    let cases: [(&str, Vec<Bytes>); 8] = [
        ("frame of a terabyte", vec![frame_header(BINARY, 1 << 40).into()]),
        ("frame of more than is taken", vec![frame_header(BINARY, 5 << 20).into()]),
        (
            "fragments without end",
            [frame(0x02, &kilobyte)]
                .into_iter()
                .chain(std::iter::repeat_n(frame(0x00, &kilobyte), 10_000))
                .collect(),
        ),
        (
            "empty fragments without end",
            vec![frame(0x02, b""), frame(0x00, b"").repeat(500_000).into(), frame(0x80, b"")],
        ),
        ("compressed frame", vec![frame(BINARY | 0x40, b"x")]),
        ("reserved bits", vec![frame(BINARY | 0x30, b"x")]),
        ("unknown kind", vec![frame(0x8f, b"x")]),
        ("text that is none", vec![frame(TEXT, &[0xff; 100])]),
    ];
    for (name, frames) in cases {
        attacked(&neighbour, name, &frames).await;
    }
    neighbour.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_pings_costs_no_memory_and_no_connection() {
    let neighbour = Neighbour::start().await;
    let pings = Bytes::from(frame(PING, &[b'p'; 125]).repeat(10_000));
    attacked(&neighbour, "pings", &vec![pings; 20]).await;
    neighbour.finish().await;
}

/// Sends `frames` to the client of a tunnel, and asserts that the tunnel still works, with a new session if
/// necessary.
async fn attacked(neighbour: &Neighbour, name: &str, frames: &[Bytes]) {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let watch = Watch::on(&tunnel.sidecar);
    let session = world.emulator.journal().sessions().remove(0);
    let control = world.emulator.control();
    let began = Instant::now();
    for bytes in frames {
        if !control.inject(&session, bytes.clone()).await {
            // The client has already disconnected.
            break;
        }
    }
    assert_answers(tunnel.port, name).await;
    println!("{name}: {:?}", began.elapsed());
    let exit = tunnel.close().await;
    assert_eq!(exit.status.code(), Some(0), "{name}: {}", exit.text());
    watch.assert_within(name, neighbour, 2 * STOP);
    world.finish().await;
}

const READY: Duration = Duration::from_secs(20);
