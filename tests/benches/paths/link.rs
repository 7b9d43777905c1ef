//! One network leg between two sockets: adds latency to bytes and a round trip to connecting.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Forwards connections to a port of 127.0.0.1, delaying each byte; ends when dropped.
#[derive(Debug)]
pub(crate) struct Leg {
    address: SocketAddr,
    first_byte: Arc<OnceLock<Instant>>,
    /// Ends the server when dropped.
    _server: JoinSet<()>,
}

impl Leg {
    pub(crate) async fn to(port: u16, one_way: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let first_byte = Arc::new(OnceLock::new());
        let noted = Arc::clone(&first_byte);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                // Errors are visible to both ends.
                connections.spawn(async move { drop(carry(near, port, one_way, &noted).await) });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, first_byte, _server: server })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// When the first byte of the first client arrived.
    pub(crate) fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }
}

async fn carry(
    near: TcpStream,
    port: u16,
    one_way: Duration,
    first_byte: &OnceLock<Instant>,
) -> io::Result<()> {
    near.set_nodelay(true)?;
    let connected = Instant::now() + 2 * one_way;
    let far = TcpStream::connect(("127.0.0.1", port)).await?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    // On a real leg, the client could not send before the handshake's round trip.
    let up = late(near_read, far_write, one_way, connected, Some(first_byte));
    let down = late(far_read, near_write, one_way, connected, None);
    tokio::try_join!(up, down).map(drop)
}

async fn late(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    one_way: Duration,
    not_before: Instant,
    first_byte: Option<&OnceLock<Instant>>,
) -> io::Result<()> {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; CHUNK];
    let mut queued = 0;
    let mut open = true;
    while open || !under_way.is_empty() {
        let due = under_way.front().map(|(due, _)| *due);
        tokio::select! {
            biased;
            () = sleep_until(due.unwrap_or(not_before)), if due.is_some() => {
                if let Some((_, bytes)) = under_way.pop_front() {
                    queued -= bytes.len();
                    write.write_all(&bytes).await?;
                }
            }
            count = read.read(&mut buffer), if open && queued < MOST => {
                let count = count?;
                if let Some(first_byte) = first_byte {
                    first_byte.get_or_init(Instant::now);
                }
                open = count > 0;
                queued += count;
                let due = Instant::now().max(not_before) + one_way;
                under_way.push_back((due, buffer.get(..count).unwrap_or_default().to_vec()));
            }
        }
    }
    write.shutdown().await
}

const CHUNK: usize = 64 * 1024;

/// Maximum number of bytes in transit in one direction: more than any window at the rates and delays
/// measured here.
const MOST: usize = 64 << 20;
