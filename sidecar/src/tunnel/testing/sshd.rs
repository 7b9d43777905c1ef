//! An SSH server whose every target echoes, some of them after words of their own.

use std::{future::pending, sync::Arc};

use russh::{
    Channel, ChannelId, ChannelOpenFailure,
    keys::{PrivateKey, ssh_key::private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey},
};
use tokio::io::{AsyncWriteExt as _, DuplexStream};

use super::Refusal;

/// Serves one connection until it ends.
pub(super) async fn serve(connection: DuplexStream) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
    let config = server::Config { keys: vec![key], ..server::Config::default() };
    if let Ok(session) = server::run_stream(Arc::new(config), connection, Echo).await {
        drop(session.await);
    }
}

/// Refuses one connection.
pub(super) async fn refuse(mut connection: DuplexStream, refusal: Refusal) {
    match refusal {
        Refusal::HangsUp(words) => connection.write_all(words).await.unwrap(),
        Refusal::Stuck(words) => {
            connection.write_all(words).await.unwrap();
            pending::<()>().await;
        }
    }
}

/// The target's port at which nothing listens.
pub(crate) const REFUSED_PORT: u16 = 1;

/// What a target does before its client has said anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FirstWords {
    None,
    /// MySQL's.
    Greeting,
    /// MySQL's, when `connect_timeout` has passed.
    GreetingThenTimeout,
    GreetingThenEof,
    TooManyConnections,
    Close,
}

impl FirstWords {
    const ALL: [Self; 6] = [
        Self::None,
        Self::Greeting,
        Self::GreetingThenTimeout,
        Self::GreetingThenEof,
        Self::TooManyConnections,
        Self::Close,
    ];

    /// The port of such a target.
    pub(crate) fn port(self) -> u16 {
        FIRST_PORT + self as u16
    }

    /// What it says.
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::None | Self::Close => Vec::new(),
            Self::Greeting | Self::GreetingThenEof => GREETING.to_vec(),
            Self::GreetingThenTimeout => [GREETING, TIMEOUT].concat(),
            Self::TooManyConnections => TOO_MANY.to_vec(),
        }
    }
}

/// Of MySQL 9.7.4, as received.
const GREETING: &[u8] =
    b"K\x00\x00\x00\n9.7.4-2\x00\n\x00\x00\x00vC+ rD\"\x06\x00\xff\xff\xff\x02\x00\xff\xdf\x15\
    \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00yRgF,]XszUS!\x00caching_sha2_password\x00";

/// Of MySQL 9.7.4 with `connect_timeout`, sent behind its greeting.
const TIMEOUT: &[u8] = b"2\x00\x00\x01\xff\x87\x04#08S01Got timeout reading communication packets";

/// Of MySQL 9.7.4, in place of its greeting.
const TOO_MANY: &[u8] = b"\x17\x00\x00\x00\xff\x10\x04Too many connections";

/// The port of the first of [`FirstWords`].
const FIRST_PORT: u16 = 2;

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
            reply.accept().await;
            let words = FirstWords::ALL.into_iter().find(|words| u32::from(words.port()) == port);
            if let Some(words) = words {
                // By the handle, whose messages are sent after the acceptance.
                channel.data(&*words.bytes()).await?;
                match words {
                    FirstWords::GreetingThenEof => channel.eof().await?,
                    FirstWords::Close => channel.close().await?,
                    _ => (),
                }
            }
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
