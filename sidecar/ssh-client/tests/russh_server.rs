//! The client against russh's server, which supports `mlkem768x25519-sha256`, unlike the sshd of many systems, and
//! shares no code with OpenSSH.
#![expect(clippy::disallowed_methods, reason = "these run on real time")]
#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

mod common;

use std::{
    borrow::Cow,
    future::Future,
    net::SocketAddr,
    sync::{Arc, mpsc::channel},
    thread,
    time::Duration,
};

use common::{Session, keygen, load, noise};
use russh::{
    Channel, ChannelId, cipher, kex,
    keys::PrivateKey,
    server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session as ServerSession},
};
use ssh_client::{Compression, Error, Event};

/// Accepts every key and sends back what it gets on any channel.
struct Echo;

impl Handler for Echo {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: russh::server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut ServerSession,
    ) -> impl Future<Output = Result<(), russh::Error>> + Send {
        drop(channel);
        async {
            reply.accept().await;
            Ok(())
        }
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut ServerSession,
    ) -> Result<(), russh::Error> {
        session.data(channel, data.to_vec())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut ServerSession,
    ) -> Result<(), russh::Error> {
        session.eof(channel)?;
        session.close(channel)
    }
}

#[test]
fn post_quantum_key_exchange_and_every_cipher_carry_bytes_both_ways() {
    let expected: [(_, &[cipher::Name], _); 3] = [
        ("aes256-gcm@openssh.com", &[cipher::AES_256_GCM], Compression::Off),
        ("chacha20-poly1305@openssh.com", &[cipher::CHACHA20_POLY1305], Compression::Off),
        ("aes256-ctr", &[cipher::AES_256_CTR], Compression::Auto),
    ];
    for (cipher, offered, compression) in expected {
        let (address, dir) = start(|config| config.preferred.cipher = Cow::Borrowed(offered));
        let mut config = config(&dir);
        config.compression = compression;
        let mut session = Session::connect(address, config);
        let id = session.open(address);
        let found = session.events.iter().find_map(|event| match event {
            Event::Authenticated(found) => Some((found.kex, found.cipher)),
            _ => None,
        });
        assert_eq!(found, Some(("mlkem768x25519-sha256", cipher)));
        let data = noise(500_000, 1);
        let (mut sent, mut got) = (0, Vec::new());
        session.until(|session| {
            sent += session.client.write(id, data.get(sent..).unwrap_or_default());
            got.extend_from_slice(&session.take(id));
            got.len() >= data.len()
        });
        assert!(got == data, "{cipher}");
        session.client.finish(id);
        session.until(|session| session.saw(|event| *event == Event::Closed(id)));
    }
}

#[test]
fn keys_are_exchanged_again_by_either_side() {
    let (address, dir) = start(|config| {
        config.limits.rekey_write_limit = 100_000;
        config.limits.rekey_read_limit = 100_000;
    });
    for ours in [50_000, 1 << 30] {
        let mut config = config(&dir);
        config.rekey_bytes = ours;
        // The server checks its limits only after it has sent what the window allows at once.
        config.window = 64 * 1024;
        let mut session = Session::connect(address, config);
        let id = session.open(address);
        let data = noise(1_000_000, 2);
        let (mut sent, mut got) = (0, Vec::new());
        session.until(|session| {
            sent += session.client.write(id, data.get(sent..).unwrap_or_default());
            got.extend_from_slice(&session.take(id));
            got.len() >= data.len()
        });
        assert!(got == data);
        assert!(session.client.statistics().rekeys >= 3, "{:?}", session.client.statistics());
    }
}

#[test]
fn a_server_without_a_common_key_exchange_is_named() {
    let (address, dir) = start(|config| {
        config.preferred.kex = Cow::Borrowed(&[kex::DH_G14_SHA256]);
    });
    let error = Session::connect(address, config(&dir)).until_failure();
    let Error::NoCommonAlgorithm { kind, theirs, .. } = error else { panic!("{error}") };
    assert_eq!(kind, "key exchange method");
    assert!(theirs.contains("diffie-hellman-group14-sha256"), "{theirs}");
}

fn config(dir: &tempfile::TempDir) -> ssh_client::Config {
    ssh_client::Config::new("anyone", Arc::new(key(dir, "user")))
}

fn key(dir: &tempfile::TempDir, name: &str) -> PrivateKey {
    let path = dir.path().join(name);
    if !path.exists() {
        keygen(&["-q", "-t", "ed25519", "-N", "", "-f"], &path);
    }
    load(&path, None)
}

/// Starts a server on its own thread, which ends with the test.
fn start(adjust: impl FnOnce(&mut Config)) -> (SocketAddr, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        keys: vec![key(&dir, "host")],
        auth_rejection_time: Duration::ZERO,
        ..Config::default()
    };
    adjust(&mut config);
    let config = Arc::new(config);
    let (sender, address) = channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            let mut running = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let session = russh::server::run_stream(Arc::clone(&config), stream, Echo).await;
                running.extend(session);
            }
        });
    });
    (address.recv().unwrap(), dir)
}
