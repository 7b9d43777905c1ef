//! Clients that do not read, targets that do not answer, crowds: each harms only itself, and memory stays
//! within its bound.
//!
//! With longer times and more clients, by hand: `SLOW_PARTY_SECONDS=600 CROWD=10000 tests/run --test e2e
//! slow_parties`.

use std::{
    env, fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tests::{
    emulator::Pacing,
    fixtures::{KeyPair, KeyType, Sshd, TcpServer, eventually, pattern},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    echo::ping,
    world::{LIMIT, Tunnel, World},
};

/// The most that each connection can hold (`sidecar/README.md`, Memory): the SSH window of data its client
/// has not read, the queue of data its target has not accepted, and the buffer between.
const PER_CONNECTION_KIB: u64 = 512 + 256 + 16;

/// The process, one lane with all its buffers in use, and memory that the allocator keeps.
const PROCESS_KIB: u64 = 40 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parties_that_stall_harm_only_themselves() {
    // sshd disconnects a client that leaves four probes unanswered, one a second.
    let options = ["ClientAliveInterval 1", "ClientAliveCountMax 4"];
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let sshd = Arc::new(Sshd::start_with(key, &options).await.unwrap());
    let world = World::around(sshd, |builder| builder.pacing(Pacing::Unpaced)).await;
    let server = parties().await;
    let tunnel = world.tunnel(server.port()).await;

    // Clients that do not read, targets that do not read, targets that send nothing.
    let mut stalled = Vec::new();
    let mut uploads = JoinSet::new();
    for _ in 0..20 {
        stalled.push(connect(&tunnel, b'd').await);
        stalled.push(connect(&tunnel, b's').await);
        let mut upload = connect(&tunnel, b's').await;
        uploads.spawn(async move {
            let flood = vec![7; 1 << 20];
            while upload.write_all(&flood).await.is_ok() {}
        });
    }
    let mut echo = connect(&tunnel, b'e').await;
    let mut trickle = connect(&tunnel, b't').await;
    // Until the floods have filled all buffers, they slow everything down.
    let flooded = Instant::now();
    while timeout(Duration::from_secs(1), ping(&mut echo, LIMIT)).await != Ok(Some(*b"ping")) {
        assert!(flooded.elapsed() < 3 * LIMIT, "the echo is held up");
        echo = connect(&tunnel, b'e').await;
    }
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    while began.elapsed() < stall() {
        let asked = Instant::now();
        assert_eq!(ping(&mut echo, LIMIT).await, Some(*b"ping"));
        slowest = slowest.max(asked.elapsed());
        let byte = timeout(LIMIT, trickle.read_u8()).await.unwrap().unwrap();
        assert_eq!(byte, b't');
    }
    // Half of the stall: a connection that waited for a stalled party would wait for all of it.
    assert!(slowest < stall() / 2, "an echo beside stalled parties took {slowest:?}");

    let (bound, peak) = (PROCESS_KIB + 62 * PER_CONNECTION_KIB, peak_kib(&tunnel));
    eprintln!("62 stalled: peak {peak} KiB, bound {bound} KiB, slowest echo {slowest:?}");
    assert!(peak < bound, "{peak} KiB where {bound} KiB is the bound");
    // Stalled parties can continue.
    let mut reader = stalled.swap_remove(0);
    let mut bytes = Vec::with_capacity(DOWNLOAD);
    timeout(LIMIT, reader.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes == pattern(DOWNLOAD), "the stalled download is damaged");
    drop((stalled, uploads));
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_does_not_queue_behind_buffered_download_data() {
    let world = World::start().await;
    let server = parties().await;
    // Compressed, the pattern would be only a few bytes.
    let tunnel =
        world.tunnel_with(server.port(), &json!({ "tunnel": { "compression": "off" } })).await;
    let mut echo = connect(&tunnel, b'e').await;
    // The minimum of many: delays on a busy machine count as well, and may leave few answers beside one download.
    let (mut ahead, mut answers) = (usize::MAX, 0);
    while answers < 30 {
        let mut download = connect(&tunnel, b'd').await;
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(bytes @ 1..) = download.read(&mut buffer).await {
                count.fetch_add(bytes, Relaxed);
            }
        });
        let in_full_course = || async { received.load(Relaxed) > DOWNLOAD / 3 };
        assert!(eventually(LIMIT, in_full_course).await, "no download");
        while received.load(Relaxed) < DOWNLOAD / 3 * 2 {
            let before = received.load(Relaxed);
            assert_eq!(ping(&mut echo, LIMIT).await, Some(*b"ping"));
            ahead = ahead.min(received.load(Relaxed) - before);
            answers += 1;
        }
        reader.join_all().await;
        assert_eq!(received.load(Relaxed), DOWNLOAD);
    }
    assert!(ahead < 64 * 1024, "{ahead} bytes of the download came before any answer");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_greedy_connection_among_64_starves_none() {
    let world = World::start().await;
    let server = parties().await;
    let tunnel = world.tunnel(server.port()).await;
    let mut crowd = Vec::new();
    for _ in 0..63 {
        crowd.push(connect(&tunnel, b'e').await);
    }
    let mut greedy = connect(&tunnel, b'd').await;
    let mut download = JoinSet::new();
    let finished = download.spawn(async move {
        let mut bytes = Vec::with_capacity(DOWNLOAD);
        greedy.read_to_end(&mut bytes).await.unwrap();
        bytes
    });
    // The agent's pace makes the download last for seconds.
    let mut rounds = 0;
    let mut slowest = Duration::ZERO;
    while !finished.is_finished() {
        for stream in &mut crowd {
            stream.write_all(b"ping").await.unwrap();
        }
        let asked = Instant::now();
        for stream in &mut crowd {
            let mut answer = [0; 4];
            timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer, b"ping");
        }
        slowest = slowest.max(asked.elapsed());
        rounds += 1;
    }
    assert!(rounds > 2, "the crowd was served {rounds} times during the download");
    // An answer queues at most behind the greedy connection's window, sent at 0.6 MB/s or more.
    assert!(slowest < Duration::from_secs(5), "a round of the crowd took {slowest:?}");
    let downloaded = download.join_all().await.remove(0);
    assert!(downloaded == pattern(DOWNLOAD), "the download is damaged");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_connections_one_after_another_leave_nothing_behind() {
    let crowd: usize = from_env("CROWD", 1_500);
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = parties().await;
    let tunnel = world.tunnel(server.port()).await;
    let port = tunnel.port;
    let visits = |count: usize| async move {
        let mut visitors = JoinSet::new();
        for visitor in 0..16 {
            visitors.spawn(async move {
                for _ in (visitor..count).step_by(16) {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    stream.write_u8(b'e').await.unwrap();
                    assert_eq!(ping(&mut stream, LIMIT).await, Some(*b"ping"));
                }
            });
        }
        visitors.join_all().await;
    };
    // Files open after the first crowd: what the process keeps then is no leak.
    visits(crowd).await;
    let (files, memory) = (open_files(&tunnel), peak_kib(&tunnel));
    visits(crowd).await;
    let settled = || async { open_files(&tunnel) <= files };
    assert!(eventually(LIMIT, settled).await, "{} files, {files} before", open_files(&tunnel));
    let grown = peak_kib(&tunnel).saturating_sub(memory);
    eprintln!("{crowd} connections: {grown} KiB more, {files} files");
    assert!(grown < 8 << 10, "{grown} KiB more after {crowd} connections");
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!(summary["connections"], 2 * crowd, "{summary}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_beyond_the_limit_is_served_in_turn() {
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = parties().await;
    let limit = json!({ "tunnel": { "max_connections": 4 } });
    let tunnel = Tunnel::open(&world.config(server.port()).with(&limit)).await;
    let port = tunnel.port;
    let mut flood = JoinSet::new();
    for _ in 0..100 {
        flood.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_u8(b'e').await.unwrap();
            ping(&mut stream, LIMIT).await
        });
    }
    let answers = timeout(2 * LIMIT, flood.join_all()).await.unwrap();
    assert!(answers.iter().all(|answer| *answer == Some(*b"ping")), "{answers:?}");
    tunnel.close().await;
    world.finish().await;
}

/// A server whose behaviour is chosen by its client's first byte: `d`ownload, `e`cho, `t`rickle, or
/// `s`ilence.
async fn parties() -> TcpServer {
    let server = TcpServer::start(|mut stream| async move {
        match stream.read_u8().await? {
            b'd' => {
                stream.write_all(&pattern(DOWNLOAD)).await?;
                stream.shutdown().await
            }
            b'e' => {
                let (mut input, mut output) = stream.split();
                tokio::io::copy(&mut input, &mut output).await.map(drop)
            }
            b't' => loop {
                stream.write_u8(b't').await?;
                // The interval of a trickle; there is no event to wait for.
                sleep(Duration::from_millis(50)).await;
            },
            _ => std::future::pending().await,
        }
    });
    server.await.unwrap()
}

async fn connect(tunnel: &Tunnel, kind: u8) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_u8(kind).await.unwrap();
    stream
}

/// Peak memory of the sidecar's two processes together so far, in KiB. The kernel adds up what each processor has
/// counted, now and then only: a later reading may be a few pages below an earlier one.
pub(crate) fn peak_kib(tunnel: &Tunnel) -> u64 {
    let processes = [tunnel.sidecar.pid(), tunnel.sidecar.worker()];
    let peaks = processes.into_iter().map(|pid| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    });
    peaks.sum()
}

fn open_files(tunnel: &Tunnel) -> usize {
    fs::read_dir(format!("/proc/{}/fd", tunnel.sidecar.worker().unwrap())).unwrap().count()
}

fn stall() -> Duration {
    Duration::from_secs(from_env("SLOW_PARTY_SECONDS", 16))
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// Bytes of a download; more than all buffers on the path hold.
const DOWNLOAD: usize = 3 << 20;
