//! SSH servers on the bastion.

use std::sync::Arc;

use serde_json::{Value, json};
use tests::fixtures::{Dropbear, KeyPair, KeyType, Sshd, TcpServer};
use tokio::net::TcpStream;

use super::{installation, sshd_of, tried};
use crate::{
    echo::echoes,
    world::{Tunnel, World},
};

#[tokio::test]
#[cfg_attr(not(debian_trixie), ignore = "needs Debian trixie's OpenSSH: see tests/later-debian")]
async fn openssh_of_debian_trixie_with_its_defaults_is_a_bastion() {
    openssh(Some("trixie")).await;
}

#[tokio::test]
#[cfg_attr(not(debian_sid), ignore = "needs Debian sid's OpenSSH: see tests/later-debian")]
async fn openssh_of_debian_sid_with_its_defaults_is_a_bastion() {
    openssh(Some("sid")).await;
}

/// With its defaults, its penalties for each source address among them, and then with a single key exchange,
/// the one that its successors may be left with. Through SSM every login comes from one address.
async fn openssh(release: Option<&str>) {
    for options in [&[][..], &["KexAlgorithms mlkem768x25519-sha256"]] {
        let key = KeyPair::generate(KeyType::Ed25519).unwrap();
        let sshd = Sshd::start_of(installation(release), key, options).await.unwrap();
        let world = World::around(Arc::new(sshd), |builder| builder).await;
        let server = TcpServer::echo().await.unwrap();
        let changes = json!({ "tunnel": { "sessions": 3 } });
        let (first, second) = tokio::join!(
            world.tunnel_with(server.port(), &changes),
            world.tunnel_with(server.port(), &changes),
        );
        let mut identification = String::new();
        for tunnel in [first, second] {
            echo_through(&tunnel, 3).await;
            identification = sshd_of(&tunnel.close().await);
        }
        tried(&format!("{identification} {}", options.join(" ")));
        world.finish().await;
    }
}

#[tokio::test]
async fn dropbear_is_a_bastion() {
    dropbear(None).await;
}

#[tokio::test]
#[cfg_attr(not(debian_sid), ignore = "needs Debian sid's Dropbear: see tests/later-debian")]
async fn dropbear_of_debian_sid_is_a_bastion() {
    dropbear(Some("sid")).await;
}

async fn dropbear(release: Option<&str>) {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let dropbear = Dropbear::start(installation(release), key).await.unwrap();
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel_with(server.port(), &on(&dropbear)).await;
    echo_through(&tunnel, 3).await;
    tried(&sshd_of(&tunnel.close().await));
    world.finish().await;
}

/// The config's fields for this bastion.
fn on(dropbear: &Dropbear) -> Value {
    json!({ "bastion": {
        "ssh_port": dropbear.port(),
        "ssh_user": Dropbear::USER,
        "ssh_private_key": dropbear.client_key().private,
        "ssh_host_key": dropbear.host_key(),
    } })
}

/// Several connections at once.
async fn echo_through(tunnel: &Tunnel, connections: usize) {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap());
    }
    for stream in &mut open {
        assert!(echoes(stream).await);
    }
}
