//! A connection whose client does not read stalls only itself.

use std::{fs, sync::Arc, time::Duration};

use tests::{
    emulator::Pacing,
    fixtures::{KeyPair, KeyType, Sshd, TcpServer, pattern},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::world::{LIMIT, World};

/// How long the client does not read: far longer than every keepalive limit below.
const STALL: Duration = Duration::from_secs(20);

/// More than all windows and socket buffers of the path can hold.
const DOWNLOAD: usize = 48 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_does_not_read_stalls_itself_alone() {
    // An sshd that disconnects a client whose keepalives are unanswered for three seconds.
    let options = ["ClientAliveInterval 1", "ClientAliveCountMax 3"];
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let sshd = Arc::new(Sshd::start_with(key, &options).await.unwrap());
    let world = World::around(sshd, |builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::start(|mut stream| async move {
        // `e` for an echo, `d` for a download.
        if stream.read_u8().await? == b'd' {
            stream.write_all(&pattern(DOWNLOAD)).await?;
            return stream.shutdown().await;
        }
        let (mut input, mut output) = stream.split();
        tokio::io::copy(&mut input, &mut output).await.map(drop)
    });
    let server = server.await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let connect = async |kind: u8| {
        let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        stream.write_u8(kind).await.unwrap();
        stream
    };

    let mut stalled = connect(b'd').await;
    let mut echo = connect(b'e').await;
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut downloads = 0;
    while started.elapsed() < STALL {
        let asked = Instant::now();
        echo.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        timeout(LIMIT, echo.read_exact(&mut answer)).await.unwrap().unwrap();
        slowest = slowest.max(asked.elapsed());
        if downloads < 2 {
            // A complete download beside the stalled one, compared.
            let mut stream = connect(b'd').await;
            let mut bytes = Vec::with_capacity(DOWNLOAD);
            timeout(LIMIT, stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
            assert!(bytes == pattern(DOWNLOAD), "a download beside the stalled one is damaged");
            downloads += 1;
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(downloads, 2, "downloads went on beside the stalled one");
    assert!(slowest < Duration::from_secs(1), "an echo took {slowest:?}");
    #[cfg(target_os = "linux")]
    {
        let memory = resident_kib(tunnel.sidecar.worker().unwrap().as_raw());
        assert!(memory < 64 << 10, "the sidecar holds {memory} KiB");
    }

    let mut bytes = Vec::with_capacity(DOWNLOAD);
    timeout(LIMIT, stalled.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes == pattern(DOWNLOAD), "the stalled download is damaged");
    tunnel.close().await;
    world.finish().await;
}

/// Memory that a process currently uses, in KiB.
#[cfg(target_os = "linux")]
fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
