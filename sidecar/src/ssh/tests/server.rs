//! An SSH server over a path in memory that can fall silent or break.

use std::{future::pending, sync::Arc, time::Duration};

use russh::{
    Channel, ChannelId, ChannelOpenFailure,
    keys::{HashAlg, PrivateKey, ssh_key::private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey},
};
use ssh_client::Config;
use tokio::{
    io::{copy_bidirectional, duplex},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::ssh::{self, Ssh};

/// A client connected to a server.
pub(super) struct Pair {
    pub(super) ssh: Ssh,
    /// `SHA256:…` of the server's host key.
    pub(super) fingerprint: String,
    seen: mpsc::Receiver<Seen>,
    path: JoinHandle<()>,
    silence: Option<oneshot::Sender<()>>,
}

/// What reached the server.
pub(super) enum Seen {
    /// The client requests a channel, which has this number at the server and opens once the handle accepts it.
    Asked(ChannelId, ChannelOpenHandle),
    /// A channel was closed.
    Closed(ChannelId),
    /// The client's connection has ended.
    Left,
}

impl Pair {
    /// Starts both; `adjust` changes the client's settings.
    pub(super) fn start(adjust: impl FnOnce(&mut Config)) -> Self {
        let (near, mut near_end) = duplex(BUFFER);
        let (far, mut far_end) = duplex(BUFFER);
        let (silence, silent) = oneshot::channel();
        let tasks = TaskTracker::new();
        let path = tasks.spawn(async move {
            tokio::select! {
                _ = copy_bidirectional(&mut near_end, &mut far_end) => (),
                Ok(()) = silent => pending().await,
            }
        });

        let host_key = key(1);
        let fingerprint = host_key.public_key().fingerprint(HashAlg::Sha256).to_string();
        let (sender, seen) = mpsc::channel(100);
        tasks.spawn(async move {
            let config = server::Config { keys: vec![host_key], ..server::Config::default() };
            let visitor = Visitor { seen: sender.clone() };
            if let Ok(session) = server::run_stream(Arc::new(config), far, visitor).await {
                drop(session.await);
            }
            drop(sender.send(Seen::Left).await);
        });
        let mut config = Config::new("user", Arc::new(key(2)));
        adjust(&mut config);
        let ssh = ssh::start(near, config, || None, &tasks);
        Self { ssh, fingerprint, seen, path, silence: Some(silence) }
    }

    /// Waits for what reaches the server next.
    pub(super) async fn seen(&mut self) -> Seen {
        let seen = timeout(Duration::from_mins(1), self.seen.recv()).await;
        seen.expect("nothing has reached the server").expect("the server is gone")
    }

    /// Accepts the next request for a channel; returns the channel's number.
    pub(super) async fn accept(&mut self) -> ChannelId {
        let Seen::Asked(id, reply) = self.seen().await else { panic!("something else was seen") };
        reply.accept().await;
        id
    }

    /// From now on the path accepts bytes at both ends and delivers none.
    pub(super) fn silence(&mut self) {
        self.silence.take().unwrap().send(()).unwrap();
    }

    /// Closes the path at both ends.
    pub(super) fn cut(&self) {
        self.path.abort();
    }
}

struct Visitor {
    seen: mpsc::Sender<Seen>,
}

impl Handler for Visitor {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if port == u32::from(REFUSED_PORT) {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        } else {
            drop(self.seen.send(Seen::Asked(channel.id(), reply)).await);
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        drop(self.seen.send(Seen::Closed(channel)).await);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.data(channel, data.to_vec())
    }
}

/// The server refuses channels to this port.
pub(super) const REFUSED_PORT: u16 = 1;

/// Capacity of each part of the path in each direction, in bytes.
const BUFFER: usize = 64 * 1024;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}
