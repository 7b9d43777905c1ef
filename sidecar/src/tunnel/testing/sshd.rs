//! An SSH server whose every target echoes.

use std::sync::Arc;

use russh::{
    Channel, ChannelId, ChannelOpenFailure,
    keys::{PrivateKey, ssh_key::private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey},
};
use tokio::io::DuplexStream;

/// Serves one connection until it ends.
pub(super) async fn serve(connection: DuplexStream) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
    let config = server::Config { keys: vec![key], ..server::Config::default() };
    if let Ok(session) = server::run_stream(Arc::new(config), connection, Echo).await {
        drop(session.await);
    }
}

/// The target's port at which nothing listens.
pub(crate) const REFUSED_PORT: u16 = 1;

struct Echo;

impl Handler for Echo {
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
        _channel: Channel<Msg>,
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
            reply.accept().await;
        }
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

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.eof(channel)?;
        session.close(channel)
    }
}
