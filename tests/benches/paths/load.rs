//! Bytes through a port of 127.0.0.1, counted where they arrive.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::Rng as _;
use tests::fixtures::TcpServer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::Outcome;

/// Targets that send random bytes without end, or count what they receive.
#[derive(Debug)]
pub(crate) struct Target {
    /// Sends to each client.
    pub(crate) source: TcpServer,
    /// Receives from each client.
    pub(crate) sink: TcpServer,
    taken: Arc<AtomicU64>,
}

/// What was carried in an interval.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    pub(crate) bytes_per_second: f64,
    /// Processor time of the path's process for a hundred million bytes.
    pub(crate) cpu_per_100_mb: f64,
    /// Share of one processor.
    pub(crate) cpu_share: f64,
}

impl Target {
    pub(crate) async fn start() -> Outcome<Self> {
        let source = TcpServer::start(|mut stream| async move {
            stream.set_nodelay(true)?;
            loop {
                stream.write_all(&RANDOM).await?;
            }
        })
        .await?;
        let taken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&taken);
        let sink = TcpServer::start(move |mut stream| {
            let count = Arc::clone(&count);
            async move {
                let mut buffer = vec![0; PIECE];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => return Ok(()),
                        bytes => count.fetch_add(widen(bytes), Relaxed),
                    };
                }
            }
        })
        .await?;
        Ok(Self { source, sink, taken })
    }

    /// Sends through `port`, which leads to the sink, over this many connections.
    pub(crate) async fn upload(
        &self,
        port: u16,
        connections: usize,
        time: Stretch,
        cpu: impl Fn() -> Duration,
    ) -> Outcome<Carried> {
        let mut senders = JoinSet::new();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            senders.spawn(async move { while stream.write_all(&RANDOM).await.is_ok() {} });
        }
        Ok(time.measure(&self.taken, cpu).await)
    }
}

/// Reads from `port`, which leads to a source, over this many connections.
pub(crate) async fn download(
    port: u16,
    connections: usize,
    time: Stretch,
    cpu: impl Fn() -> Duration,
) -> Outcome<Carried> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(TcpStream::connect(("127.0.0.1", port)).await?);
    }
    download_from(streams, time, cpu).await
}

/// The same over connections that are already open.
pub(crate) async fn download_from(
    streams: Vec<TcpStream>,
    time: Stretch,
    cpu: impl Fn() -> Duration,
) -> Outcome<Carried> {
    let taken = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for mut stream in streams {
        let taken = Arc::clone(&taken);
        readers.spawn(async move {
            let mut buffer = vec![0; PIECE];
            while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
                taken.fetch_add(widen(bytes), Relaxed);
            }
        });
    }
    Ok(time.measure(&taken, cpu).await)
}

/// How long to warm a path up, and how long to measure it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
}

impl Stretch {
    pub(crate) async fn measure(self, count: &AtomicU64, cpu: impl Fn() -> Duration) -> Carried {
        sleep(self.warm_up).await;
        let (start, bytes, spent) = (Instant::now(), count.load(Relaxed), cpu());
        sleep(self.window).await;
        let bytes = usize::try_from(count.load(Relaxed) - bytes).unwrap_or(usize::MAX);
        let (time, spent) = (start.elapsed(), cpu().saturating_sub(spent));
        let bytes_per_second = per_second(bytes, time);
        let cpu_share = spent.as_secs_f64() / time.as_secs_f64();
        let cpu_per_100_mb = cpu_share / (bytes_per_second / 1e8).max(f64::MIN_POSITIVE);
        Carried { bytes_per_second, cpu_per_100_mb, cpu_share }
    }
}

impl Carried {
    /// In units of 10^6 bytes a second.
    pub(crate) fn megabytes(self) -> f64 {
        self.bytes_per_second / 1e6
    }
}

#[expect(clippy::cast_precision_loss, reason = "three digits are enough")]
pub(crate) fn per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}

fn widen(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or_default()
}

/// Incompressible: repetitions are farther apart than a compressor's window.
static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 4 << 20];
    rand::rng().fill_bytes(&mut bytes);
    bytes
});

const PIECE: usize = 256 * 1024;
