//! Every kind of private key that a customer may have is accepted by the bastion.

use serde_json::json;
use std::{io, sync::Arc};
use tests::fixtures::{KeyFormat, KeyPair, KeyType, Sidecar, Sshd, TcpServer};

use crate::world::{LIMIT, World, with_key};

const PASSPHRASE: &str = "correct horse battery staple";

#[tokio::test]
async fn ed25519_keys_in_every_format() {
    every_format(KeyType::Ed25519, &[KeyFormat::OpenSsh, KeyFormat::Pkcs8]).await;
}

#[tokio::test]
async fn ecdsa_256_keys_in_every_format() {
    every_format(KeyType::Ecdsa(256), &[KeyFormat::OpenSsh, KeyFormat::Pkcs8]).await;
}

#[tokio::test]
async fn ecdsa_384_keys_in_every_format() {
    every_format(KeyType::Ecdsa(384), &[KeyFormat::OpenSsh, KeyFormat::Pkcs8]).await;
}

#[tokio::test]
async fn ecdsa_521_keys_in_every_format() {
    every_format(KeyType::Ecdsa(521), &[KeyFormat::OpenSsh, KeyFormat::Pkcs8]).await;
}

#[tokio::test]
async fn rsa_2048_keys_in_every_format() {
    let formats = [KeyFormat::OpenSsh, KeyFormat::Traditional, KeyFormat::Pkcs8];
    every_format(KeyType::Rsa(2048), &formats).await;
}

#[tokio::test]
async fn rsa_4096_keys_in_every_format() {
    let formats = [KeyFormat::OpenSsh, KeyFormat::Traditional, KeyFormat::Pkcs8];
    every_format(KeyType::Rsa(4096), &formats).await;
}

#[tokio::test]
async fn rsa_keys_sign_with_sha512_where_sha256_is_refused() {
    let key = KeyPair::generate(KeyType::Rsa(2048)).unwrap();
    let option = "PubkeyAcceptedAlgorithms rsa-sha2-512";
    let world = world(Sshd::start_with(key, &[option]).await).await;
    let server = TcpServer::echo().await.unwrap();
    world.tunnel(server.port()).await.close().await;
    world.finish().await;
}

#[tokio::test]
async fn key_texts_as_people_paste_them() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let key = &world.sshd.client_key().private;
    let cases = [
        ("Windows line ends", key.replace('\n', "\r\n")),
        ("no last newline", key.trim_end().to_owned()),
        ("empty lines around", format!("\n\n{key}\n\n")),
        ("escaped twice", key.replace('\n', r"\\n")),
    ];
    for (name, text) in cases {
        let config = world.config(server.port());
        let config = config.with(&json!({ "bastion": { "ssh_private_key": text } }));
        let mut sidecar = Sidecar::spawn(&config).await.unwrap();
        let ready = sidecar.ready(LIMIT).await;
        assert!(ready.is_ok(), "{name}: {ready:?}");
        sidecar.close_stdin();
        sidecar.exit(LIMIT).await.unwrap();
    }
    world.finish().await;
}

#[tokio::test]
async fn pinned_host_keys_as_fingerprint_as_line_and_in_a_list() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let line = world.sshd.host_key("ed25519").unwrap();
    let bare = line.rsplitn(2, ' ').last().unwrap().to_owned();
    let ed25519 = world.sshd.host_key_fingerprint("ed25519").unwrap();
    let ecdsa = world.sshd.host_key_fingerprint("ecdsa").unwrap();
    let other = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let cases = [
        ("fingerprint", json!(ed25519)),
        ("line", json!(bare)),
        ("line with comment", json!(line)),
        ("output of ssh-keygen -l", json!(format!("256 {ed25519} root@vm (ED25519)"))),
        ("list", json!([other, ed25519])),
        // sshd has this key too: a client that always negotiates Ed25519 would report a mismatch.
        ("another type of the same host", json!(ecdsa)),
    ];
    for (name, pin) in cases {
        let config = world.config(server.port());
        let config = config.with(&json!({ "bastion": { "ssh_host_key": pin } }));
        let mut sidecar = Sidecar::spawn(&config).await.unwrap();
        let ready = sidecar.ready(LIMIT).await;
        assert!(ready.is_ok(), "{name}: {ready:?}");
        sidecar.close_stdin();
        sidecar.exit(LIMIT).await.unwrap();
    }
    world.finish().await;
}

/// Logs in with one key, in each format, with and without a passphrase.
async fn every_format(key_type: KeyType, formats: &[KeyFormat]) {
    let world = world(Sshd::start_with(KeyPair::generate(key_type).unwrap(), &[]).await).await;
    let server = TcpServer::echo().await.unwrap();
    for format in formats {
        for passphrase in [None, Some(PASSPHRASE)] {
            let key = world.sshd.client_key().write(*format, passphrase).unwrap();
            let config = world.config(server.port()).with(&with_key(&key));
            let mut sidecar = Sidecar::spawn(&config).await.unwrap();
            let ready = sidecar.ready(LIMIT).await;
            let case = format!("{key_type:?} as {format:?}, passphrase: {passphrase:?}");
            assert!(ready.is_ok(), "{case}: {ready:?}");
            sidecar.close_stdin();
            let exit = sidecar.exit(LIMIT).await.unwrap();
            assert_eq!(exit.status.code(), Some(0), "{case}");
        }
    }
    world.finish().await;
}

/// A world with the test's own bastion.
async fn world(sshd: io::Result<Sshd>) -> World {
    World::around(Arc::new(sshd.unwrap()), |builder| builder).await
}
