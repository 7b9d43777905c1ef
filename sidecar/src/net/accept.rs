//! Accepts connections, a limited number at once.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tracing::warn;

/// A listener with a limit of connections.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Acceptor {
    /// `limit`: how many permits are given at once; further connections wait in the listen queue.
    pub(crate) fn new(listener: TcpListener, limit: usize) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(limit)) }
    }

    /// Accepts the next connection, with a permit that is to be held for its life. Errors, such as a full descriptor
    /// table, are logged, and accepting is retried. Cancel-safe.
    pub(crate) async fn accept(&self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        // Acquired first, so that connections beyond the limit wait in the listen queue.
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, permit),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    sleep(RETRY_DELAY).await;
                }
            }
        }
    }
}

/// After a failed `accept`, which would otherwise fail again at once.
const RETRY_DELAY: Duration = Duration::from_millis(50);
