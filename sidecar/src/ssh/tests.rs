use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::Context,
    time::Duration,
};

use russh::keys::{PrivateKey, ssh_key::private::Ed25519Keypair};
use tokio::{
    io::ReadBuf,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use super::*;

/// Takes everything and says nothing; whether it carries anything is told by its flush.
#[derive(Clone, Default)]
struct Silent {
    is_down: Arc<AtomicBool>,
}

impl AsyncRead for Silent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_down.load(Relaxed) { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_not_held_against_a_server_while_the_path_is_down() {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let mut config = Config::new("user", Arc::new(key));
    config.keepalive_interval = Some(Duration::from_secs(20));
    let stream = Silent::default();
    stream.is_down.store(true, Relaxed);
    let ssh = start(stream.clone(), config, || None, &TaskTracker::new());
    assert!(timeout(Duration::from_hours(1), ssh.ended()).await.is_err(), "given up");
    stream.is_down.store(false, Relaxed);
    let began = Instant::now();
    let error = ssh.ended().await;
    let SshError::Protocol(error) = error else { panic!("{error}") };
    assert!(matches!(*error, Error::KeepaliveTimeout { .. }), "{error}");
    let took = began.elapsed();
    let expected = Duration::from_mins(1)..=Duration::from_secs(101);
    assert!(expected.contains(&took), "given up after {took:?}");
}
