//! Forwards client connections: one SSH channel for each, copied both ways.
//!
//! A connection ends as the target's end did: half-close is carried through, and an incomplete connection is reset,
//! never closed as if it were complete.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tracing::{Instrument as _, debug, info, info_span, warn};

use super::{
    lanes::{ClientEnd, Connection, LanePool, TargetConnectError},
    listener::Listener,
};
use crate::{
    net::accept::Acceptor,
    runtime::shutdown::Shutdown,
    ssh::{Channel, ChannelError},
};

/// Counters over all client connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionStats {
    /// Connections accepted.
    pub(crate) connections: AtomicU64,
    /// Accepted connections that have ended.
    pub(crate) finished: AtomicU64,
    /// Connections that were reset, by this process or after a reset of the target.
    pub(crate) resets: AtomicU64,
    /// Connections refused by `listen.allowed_uids`.
    pub(crate) refused: AtomicU64,
    /// Bytes from clients to the target.
    pub(crate) bytes_up: AtomicU64,
    /// Bytes from the target to clients.
    pub(crate) bytes_down: AtomicU64,
}

impl ConnectionStats {
    /// Connections open at present.
    pub(crate) fn open(&self) -> u64 {
        // Read in this order, so that a connection that ends in between does not give a negative number.
        let finished = self.finished.load(Relaxed);
        self.connections.load(Relaxed).saturating_sub(finished)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections served at once; further ones wait in the listen queue.
    pub(crate) max_connections: usize,
    /// Time for each connection to reach the target; it counts only while it has a lane that is up.
    pub(crate) connect: Duration,
}

/// Accepts connections until dropped. The connections themselves end with `shutdown`.
pub(crate) async fn serve(
    listener: Listener,
    lanes: Arc<LanePool>,
    limits: Limits,
    stats: Arc<ConnectionStats>,
    shutdown: &Shutdown,
) {
    let Listener { socket, admission, .. } = listener;
    let acceptor = Acceptor::new(socket, limits.max_connections);
    for number in 1_u64.. {
        let (client, peer, permit) = acceptor.accept().await;
        if let Err(refusal) = admission.check(&client, peer) {
            stats.refused.fetch_add(1, Relaxed);
            warn!(%peer, %refusal, "connection refused");
            drop(ResetOnDrop::new(client));
            continue;
        }
        stats.connections.fetch_add(1, Relaxed);
        let (lanes, stats) = (Arc::clone(&lanes), Arc::clone(&stats));
        let connection = async move {
            forward(client, peer, &lanes, limits.connect, &stats).await;
            stats.finished.fetch_add(1, Relaxed);
            drop(permit);
        };
        shutdown.spawn(connection.instrument(info_span!("connection", number)));
    }
}

async fn forward(
    client: TcpStream,
    peer: SocketAddr,
    lanes: &LanePool,
    connect: Duration,
    stats: &ConnectionStats,
) {
    let mut client = ResetOnDrop::new(client);
    // Not `readable`, which may complete without a cause.
    let client_speaks = async { drop(client.stream.peek(&mut [0]).await) };
    let opened = match lanes.take_kept(client_speaks).await {
        Some(connection) => Ok(connection),
        None => lanes.open(peer, connect, client_end(&client.stream)).await,
    };
    let connection = match opened {
        Ok(connection) => connection,
        Err(error @ TargetConnectError::ClientLeft) => {
            stats.resets.fetch_add(1, Relaxed);
            info!(%error, "connection reset");
            return;
        }
        Err(error) => {
            stats.resets.fetch_add(1, Relaxed);
            warn!(%error, "target not reached, connection reset");
            return;
        }
    };
    debug!(%peer, lane = connection.lane(), "connected");
    match relay(client.stream.split(), &connection, stats).await {
        Ok(()) => {
            client.complete = true;
            debug!("connection complete");
        }
        Err(error) => {
            stats.resets.fetch_add(1, Relaxed);
            info!(%error, "connection reset");
        }
    }
}

/// Completes when the client closes its half, or its connection breaks. Reads nothing. Cancel-safe.
#[cfg(target_os = "linux")]
async fn client_end(client: &TcpStream) -> ClientEnd {
    use tokio::io::Interest;

    // `READABLE` would be ready as soon as the client has sent something. There are no urgent data, so that only the end
    // of its half or an error can make this ready.
    let Ok(ready) = client.ready(Interest::PRIORITY | Interest::ERROR).await else {
        return ClientEnd::Left;
    };
    // What was sent before a reset can be read after it.
    let is_broken = ready.is_error();
    match client.peek(&mut [0]).await {
        Ok(1..) if !is_broken => ClientEnd::Finished,
        Ok(_) | Err(_) => ClientEnd::Left,
    }
}

/// Never completes: a client that has hung up is noticed when it has a lane.
#[cfg(not(target_os = "linux"))]
async fn client_end(_: &TcpStream) -> ClientEnd {
    std::future::pending().await
}

/// Copies both ways between the halves of a client's connection and the channel, until both directions are complete or
/// one is cut.
pub(super) async fn relay(
    (reader, writer): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    connection: &Connection,
    stats: &ConnectionStats,
) -> Result<(), RelayError> {
    tokio::try_join!(upwards(reader, connection, stats), downwards(writer, connection, stats))?;
    // The client's last bytes may still be queued, and closing the channel would discard them: the server closes it
    // after both EOFs.
    Ok(poll_fn(|context| connection.poll_closed(context)).await?)
}

async fn upwards(
    mut client: impl AsyncRead + Unpin,
    connection: &Connection,
    stats: &ConnectionStats,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
    loop {
        let read = tokio::select! {
            read = client.read(&mut buffer) => read?,
            closed = poll_fn(|context| connection.poll_closed(context)) => return Ok(closed?),
        };
        if read == 0 {
            connection.finish();
            // The target may still send; its own EOF ends the connection.
            return Ok(());
        }
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let written = poll_fn(|context| connection.poll_write(context, rest)).await?;
            rest = rest.get(written..).unwrap_or_default();
        }
        stats.bytes_up.fetch_add(read as u64, Relaxed);
    }
}

async fn downwards(
    mut client: impl AsyncWrite + Unpin,
    channel: &Channel,
    stats: &ConnectionStats,
) -> Result<(), RelayError> {
    while let Some(bytes) = poll_fn(|context| channel.poll_read(context)).await? {
        client.write_all(&bytes).await?;
        // Not before the write: a client that does not read must stall its own window only.
        channel.consumed(bytes.len());
        stats.bytes_down.fetch_add(bytes.len() as u64, Relaxed);
    }
    client.shutdown().await?;
    Ok(())
}

/// Why a connection was reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("the client closed its connection: {0}")]
    Client(#[from] io::Error),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// A client's socket that is reset when dropped before its connection was complete: a partial result must never look
/// like a complete one.
struct ResetOnDrop {
    stream: TcpStream,
    complete: bool,
}

impl ResetOnDrop {
    fn new(stream: TcpStream) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "small packets may be delayed");
        }
        Self { stream, complete: false }
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if !self.complete
            && let Err(error) = self.stream.set_zero_linger()
        {
            debug!(%error, "the connection is closed instead of reset");
        }
    }
}

/// Read from a client at once, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn client_that_closes_without_a_word_or_breaks_off_has_left() {
        let (client, accepted) = pair().await;
        drop(client);
        assert_eq!(client_end(&accepted).await, ClientEnd::Left);
        let (mut client, accepted) = pair().await;
        client.write_all(b"startup").await.unwrap();
        drop(ResetOnDrop::new(client));
        assert_eq!(client_end(&accepted).await, ClientEnd::Left);
    }

    #[tokio::test]
    async fn client_that_closes_its_half_after_a_question_may_want_the_answer() {
        let (mut client, mut accepted) = pair().await;
        client.write_all(b"question").await.unwrap();
        accepted.readable().await.unwrap();
        assert_eq!(client_end(&accepted).now_or_never(), None, "it has not closed its half");
        client.shutdown().await.unwrap();
        assert_eq!(client_end(&accepted).await, ClientEnd::Finished);
        let mut question = Vec::new();
        accepted.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question", "nothing was read");
    }
}
