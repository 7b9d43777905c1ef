//! The loopback listener: one SSH channel for each accepted connection, copied both ways.
//!
//! A connection ends as its far end did: half-close is carried through, and whatever was not complete is
//! reset, never silently cut.

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
    io::AsyncWriteExt as _,
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::Semaphore,
    time::sleep,
};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::{
    runtime::shutdown::Shutdown,
    ssh::{Channel, ChannelError},
    tunnel::{lanes::Lanes, listener::Listener},
};

/// What the connections of this process add up to.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Of those, how many have ended.
    pub finished: AtomicU64,
    /// Connections that were reset for a reason on our side of the bastion or at the target.
    pub resets: AtomicU64,
    /// Connections of users that `listen.allowed_uids` does not name.
    pub refused: AtomicU64,
    /// Bytes from clients to the target.
    pub bytes_up: AtomicU64,
    /// Bytes from the target to clients.
    pub bytes_down: AtomicU64,
}

impl Traffic {
    /// Connections that are open at present.
    pub fn open(&self) -> u64 {
        // In this order, so that one that ends in between is never counted below zero.
        let finished = self.finished.load(Relaxed);
        self.connections.load(Relaxed).saturating_sub(finished)
    }
}

/// Limits of the listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once; further ones wait in the listen queue.
    pub max_connections: usize,
    /// Time for each connection to reach the target; while no lane carries bytes it does not run, and the
    /// connection waits.
    pub connect: Duration,
}

/// Accepts connections until dropped; the connections themselves end with `shutdown`.
pub async fn serve(
    listener: Listener,
    lanes: Arc<Lanes>,
    limits: Limits,
    traffic: Arc<Traffic>,
    shutdown: &Shutdown,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    for number in 1_u64.. {
        // Acquired before accepting: whoever must wait does so in the listen queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (client, peer) = accept(&listener.socket).await;
        if let Err(refusal) = listener.admit(&client, peer) {
            traffic.refused.fetch_add(1, Relaxed);
            warn!(%peer, %refusal, "connection refused");
            drop(ResetOnDrop::new(client));
            continue;
        }
        traffic.connections.fetch_add(1, Relaxed);
        let (lanes, traffic) = (Arc::clone(&lanes), Arc::clone(&traffic));
        let connection = async move {
            carry(client, peer, &lanes, limits.connect, &traffic).await;
            traffic.finished.fetch_add(1, Relaxed);
            drop(permit);
        };
        shutdown.spawn(connection.instrument(info_span!("connection", number)));
    }
}

/// Accepts the next connection; trouble such as a full descriptor table is waited out.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn carry(
    client: TcpStream,
    peer: SocketAddr,
    lanes: &Lanes,
    connect: Duration,
    traffic: &Traffic,
) {
    let mut client = ResetOnDrop::new(client);
    let channel = match lanes.open(peer, connect).await {
        Ok(channel) => channel,
        Err(error) => {
            traffic.resets.fetch_add(1, Relaxed);
            warn!(%error, "target not reached, connection reset");
            return;
        }
    };
    debug!(%peer, "connected");
    match relay(&mut client.stream, &channel, traffic).await {
        Ok(()) => {
            client.complete = true;
            debug!("connection complete");
        }
        Err(error) => {
            traffic.resets.fetch_add(1, Relaxed);
            info!(%error, "connection reset");
        }
    }
}

/// Copies both ways until both directions are complete, or one is cut.
async fn relay(
    client: &mut TcpStream,
    channel: &Channel,
    traffic: &Traffic,
) -> Result<(), RelayError> {
    let (reader, writer) = client.split();
    tokio::try_join!(upwards(reader, channel, traffic), downwards(writer, channel, traffic))?;
    // What the client sent last may still be queued, and closing the channel would drop it: the server
    // closes once it has both ends of data.
    Ok(poll_fn(|context| channel.poll_closed(context)).await?)
}

async fn upwards(
    client: ReadHalf<'_>,
    channel: &Channel,
    traffic: &Traffic,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
    loop {
        tokio::select! {
            ready = client.readable() => ready?,
            closed = poll_fn(|context| channel.poll_closed(context)) => return Ok(closed?),
        }
        let read = match client.try_read(&mut buffer) {
            Ok(0) => {
                channel.finish();
                // The target may still have much to say; its own direction ends the connection.
                return Ok(());
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = buffer.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let written = poll_fn(|context| channel.poll_write(context, rest)).await?;
            rest = rest.get(written..).unwrap_or_default();
        }
        traffic.bytes_up.fetch_add(read as u64, Relaxed);
    }
}

async fn downwards(
    mut client: WriteHalf<'_>,
    channel: &Channel,
    traffic: &Traffic,
) -> Result<(), RelayError> {
    while let Some(bytes) = poll_fn(|context| channel.poll_read(context)).await? {
        client.write_all(&bytes).await?;
        // Only now: a client that does not read must stall its own window, and nothing else.
        channel.consumed(bytes.len());
        traffic.bytes_down.fetch_add(bytes.len() as u64, Relaxed);
    }
    client.shutdown().await?;
    Ok(())
}

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("the client went away: {0}")]
    Client(#[from] io::Error),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// A client's socket that is reset when dropped before its connection was complete: a half-delivered
/// result must never look like a whole one.
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

/// Pause after a failed `accept`, which would otherwise fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Read from a client at once.
const BUFFER_BYTES: usize = 16 * 1024;
