//! The promises of the connection, against a server in memory and on the paused clock.

mod server;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use russh::keys::{PrivateKey, ssh_key::private::Ed25519Keypair};
use ssh_client::OpenFailure;
use tokio::{
    io::ReadBuf,
    join,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use super::*;
use server::{Pair, REFUSED_PORT, Seen};

/// Accepts all writes and never has anything to read. While `is_down`, a flush is pending.
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
async fn keepalives_do_not_time_out_while_the_path_is_down() {
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

#[tokio::test(start_paused = true)]
async fn each_step_of_the_handshake_returns_what_it_has_found() {
    let pair = Pair::start(|_| ());
    assert!(!pair.ssh.has_received());
    let server = pair.ssh.identified().await.unwrap();
    assert!(server.starts_with("SSH-2.0-"), "{server}");
    assert!(pair.ssh.has_received());
    let found = pair.ssh.key_exchanged().await.unwrap();
    let expected = ServerIdentity { fingerprint: pair.fingerprint.clone(), pinned: false, server };
    assert_eq!(found, expected);
    assert_eq!(pair.ssh.authenticated().await.unwrap(), expected);
    // A late caller gets the same error.
    assert_eq!(pair.ssh.identified().await.unwrap(), expected.server);
    assert_eq!(pair.ssh.key_exchanged().await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_host_key_that_is_not_the_pinned_one_ends_the_connection_before_the_login() {
    let pin = "SHA256:c1iiOEnnHsd4OaSkkLd0x4/9ifxrgmVOuv3mFmxhrXE".parse().unwrap();
    let pair = Pair::start(|config| config.pins = vec![pin]);
    assert!(pair.ssh.identified().await.is_ok());
    for error in [
        pair.ssh.key_exchanged().await.unwrap_err(),
        pair.ssh.authenticated().await.unwrap_err(),
        pair.ssh.ended().await,
    ] {
        let SshError::Protocol(error) = error else { panic!("{error}") };
        assert!(matches!(*error, Error::HostKeyMismatch { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_come_back_through_a_channel() {
    let mut pair = Pair::start(|_| ());
    let channel = opened(&mut pair).await;
    assert_eq!(write(&channel, b"select 1").await.unwrap(), 8);
    let mut back = Vec::new();
    while back.len() < 8 {
        let bytes = read(&channel).await.unwrap().expect("more bytes");
        channel.consumed(bytes.len());
        back.extend_from_slice(&bytes);
    }
    assert_eq!(back, b"select 1");
}

#[tokio::test(start_paused = true)]
async fn a_channel_beyond_the_most_waits_until_another_one_is_closed() {
    let mut pair = Pair::start(|config| config.max_channels = 1);
    let first = opened(&mut pair).await;
    let ssh = pair.ssh.clone();
    // A task of its own, so that only the closed channel can wake it.
    let mut second = TaskTracker::new().spawn(async move { open(&ssh).await });
    assert!(timeout(Duration::from_mins(1), &mut second).await.is_err(), "beyond the most");
    drop(first);
    assert!(matches!(pair.seen().await, Seen::Closed(_)));
    pair.accept().await;
    let second = within_an_hour(second).await.unwrap();
    assert!(second.unwrap().peek(0).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refused_channel_carries_the_servers_reason_and_leaves_no_trace() {
    let pair = Pair::start(|config| config.max_channels = 1);
    for _ in 0..3 {
        let error = pair.ssh.open("db", REFUSED_PORT, ORIGINATOR.into()).await.unwrap_err();
        let ChannelOpenError::Refused { reason, .. } = error else { panic!("{error}") };
        assert_eq!(reason, OpenFailure::ConnectFailed);
        assert_eq!(pair.ssh.channels(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_channel_is_closed_at_the_server() {
    let mut pair = Pair::start(|_| ());
    let ssh = pair.ssh.clone();
    let (channel, id) = join!(open(&ssh), pair.accept());
    drop(channel.unwrap());
    let Seen::Closed(closed) = pair.seen().await else { panic!("something else was seen") };
    assert_eq!(closed, id);
    within_an_hour(pair.ssh.channels_closed()).await;
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_is_given_up_is_closed_once_the_server_confirms_it() {
    let mut pair = Pair::start(|config| config.max_channels = 1);
    let ssh = pair.ssh.clone();
    assert!(timeout(Duration::from_secs(5), open(&ssh)).await.is_err(), "it is not answered");
    assert_eq!(ssh.channels(), 0);
    let id = pair.accept().await;
    let Seen::Closed(closed) = pair.seen().await else { panic!("something else was seen") };
    assert_eq!(closed, id);
    assert!(opened(&mut pair).await.peek(0).is_some(), "its room is free again");
}

#[tokio::test(start_paused = true)]
async fn a_lost_path_ends_every_channel_with_the_reason() {
    let mut pair = Pair::start(|_| ());
    let channel = opened(&mut pair).await;
    let ssh = pair.ssh.clone();
    let (opening, reading, ()) = join!(open(&ssh), read(&channel), async {
        let asked = pair.seen().await;
        assert!(matches!(asked, Seen::Asked(..)));
        pair.cut();
        drop(asked);
    });
    assert!(matches!(opening, Err(ChannelOpenError::Lost(SshError::StreamEnded))));
    assert!(matches!(reading, Err(ChannelError::Lost(SshError::StreamEnded))), "{reading:?}");
    assert!(matches!(write(&channel, b"x").await, Err(ChannelError::Lost(_))));
    assert!(matches!(ssh.ended().await, SshError::StreamEnded));
    assert!(matches!(open(&ssh).await, Err(ChannelOpenError::Lost(SshError::StreamEnded))));
    assert!(channel.peek(0).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_keepalive_is_given_up_and_its_channels_with_it() {
    let mut pair = Pair::start(|config| {
        config.keepalive_interval = Some(Duration::from_secs(20));
        config.keepalive_max = 3;
    });
    let channel = opened(&mut pair).await;
    let quiet = timeout(Duration::from_hours(1), pair.ssh.ended()).await;
    assert!(quiet.is_err(), "a server that answers is kept: {quiet:?}");
    pair.silence();
    let began = Instant::now();
    let Err(ChannelError::Lost(error)) = read(&channel).await else { panic!("it goes on") };
    let SshError::Protocol(error) = error else { panic!("{error}") };
    assert!(matches!(*error, Error::KeepaliveTimeout { .. }), "{error}");
    let took = began.elapsed();
    let expected = Duration::from_mins(1)..=Duration::from_secs(81);
    assert!(expected.contains(&took), "given up after {took:?}");
}

#[tokio::test(start_paused = true)]
async fn connection_is_disconnected_with_its_last_handle_and_a_channel_is_one() {
    let mut pair = Pair::start(|_| ());
    let channel = opened(&mut pair).await;
    pair.ssh = Pair::start(|_| ()).ssh;
    assert_eq!(write(&channel, b"x").await.unwrap(), 1);
    assert!(read(&channel).await.unwrap().is_some(), "the channel holds the connection");
    drop(channel);
    while !matches!(pair.seen().await, Seen::Left) {}
}

async fn opened(pair: &mut Pair) -> Channel {
    let ssh = pair.ssh.clone();
    let (channel, _) = join!(within_an_hour(open(&ssh)), pair.accept());
    channel.unwrap()
}

async fn open(ssh: &Ssh) -> Result<Channel, ChannelOpenError> {
    ssh.open("db", 5432, ORIGINATOR.into()).await
}

async fn read(channel: &Channel) -> Result<Option<Bytes>, ChannelError> {
    within_an_hour(poll_fn(|context| channel.poll_read(context))).await
}

async fn write(channel: &Channel, data: &[u8]) -> Result<usize, ChannelError> {
    within_an_hour(poll_fn(|context| channel.poll_write(context, data))).await
}

/// Asserts that `future` is woken within an hour, rather than polled only when the time is up.
async fn within_an_hour<T>(future: impl Future<Output = T>) -> T {
    let (hour, began) = (Duration::from_hours(1), Instant::now());
    let output = timeout(hour, future).await.expect("it takes more than an hour");
    assert!(began.elapsed() < hour, "nothing has woken it");
    output
}

const ORIGINATOR: ([u8; 4], u16) = ([127, 0, 0, 1], 1);
