//! An sshd that does not let in, though it is there: its own words, and another attempt where the cause may pass. The
//! servers are real ones. Those with an account that PAM refuses need root.

use std::sync::Arc;

use nix::unistd::geteuid;
use serde_json::json;
use tests::fixtures::{Account, KeyPair, KeyType, Sidecar, Sshd, TcpServer, eventually};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::world::{Failure, LIMIT, Tunnel, World, assert_fails};

const BUSY: Failure = Failure { code: "ssh.busy", status: 75, phase: "ssh", blame: "customer" };

const REJECTED: Failure =
    Failure { code: "ssh.auth_rejected", status: 77, phase: "ssh", blame: "customer" };

#[tokio::test]
async fn sshd_that_is_full_is_asked_again_until_there_is_room() {
    let world = with(&["MaxStartups 1:100:1"]).await;
    let server = TcpServer::echo().await.unwrap();
    let mut held = TcpStream::connect(("127.0.0.1", world.sshd.port())).await.unwrap();
    // From its identification on sshd counts it.
    held.read_u8().await.unwrap();
    let config = world.config(server.port());
    let short = world.config(server.port()).with(&json!({ "timeouts": { "ready_s": 5 } }));
    assert_fails(&short, BUSY, "max_startups").await;
    let before = world.emulator.journal().sessions().len();
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    let again = || async { world.emulator.journal().sessions().len() > before + 1 };
    assert!(eventually(LIMIT, again).await, "no second attempt");
    drop(held);
    let port = sidecar.ready(LIMIT).await.unwrap();
    Tunnel { sidecar, port }.close().await;
    world.finish().await;
}

#[tokio::test]
async fn server_that_hangs_up_without_a_word_is_there() {
    // As sshd does with `/etc/hosts.deny`.
    let world = World::start().await;
    let server = TcpServer::start(|stream| async move {
        drop(stream);
        Ok(())
    });
    let server = server.await.unwrap();
    let config = world.config(5432).with(&json!({
        "bastion": { "ssh_port": server.port() },
        "timeouts": { "ready_s": 4 },
    }));
    assert_fails(&config, BUSY, "without_a_word").await;
    world.finish().await;
}

#[tokio::test]
async fn login_that_outlasts_the_grace_time_is_told_as_such() {
    let user = nix::unistd::User::from_uid(geteuid()).unwrap().unwrap().name;
    let slow = [
        "LoginGraceTime 4",
        "AuthorizedKeysFile none",
        "AuthorizedKeysCommand /bin/sleep 30",
        &format!("AuthorizedKeysCommandUser {user}"),
    ];
    let world = with(&slow).await;
    // OpenSSH since 9.8 adds up to four seconds to its limit.
    let config = world.config(5432).with(&json!({ "timeouts": { "ready_s": 15 } }));
    let exit = Sidecar::spawn(&config).await.unwrap().exit(LIMIT).await.unwrap();
    let failure = exit.failure().unwrap();
    assert_eq!((&failure["code"], exit.status.code()), (&json!("ssh.busy"), Some(75)), "{failure}");
    let text = failure.to_string();
    for words in ["hung up during the login", ", after ", "LoginGraceTime", "AuthorizedKeysCommand"]
    {
        assert!(text.contains(words), "{text}");
    }
    world.finish().await;
}

#[tokio::test]
async fn limit_of_attempts_is_the_answer_to_the_login() {
    let world = with(&["MaxAuthTries 1"]).await;
    let other = KeyPair::generate(KeyType::Ed25519).unwrap();
    let config =
        world.config(5432).with(&json!({ "bastion": { "ssh_private_key": other.private } }));
    assert_fails(&config, REJECTED, "max_auth_tries").await;
    world.finish().await;
}

#[tokio::test]
async fn compression_that_sshd_does_not_offer_is_named() {
    let world = with(&["Compression no"]).await;
    let config = world.config(5432).with(&json!({ "tunnel": { "compression": "on" } }));
    let failure = Failure { code: "ssh.protocol", status: 76, phase: "ssh", blame: "customer" };
    assert_fails(&config, failure, "compression").await;
    world.finish().await;
}

#[tokio::test]
async fn account_that_has_expired_is_told_in_the_words_of_sshd() {
    let Some(world) = with_account(Account::Expired).await else { return };
    assert_fails(&world.config(5432), REJECTED, "account_expired").await;
    assert_eq!(world.emulator.journal().sessions().len(), 1, "asked again in vain");
    world.finish().await;
}

#[tokio::test]
async fn bastion_that_boots_is_asked_again_until_it_lets_users_in() {
    let text = "\"System is booting up. Unprivileged users are not permitted to log in yet. Please come back later. \
                For technical details, see pam_nologin(8).\"\n\n";
    let Some(world) = with_account(Account::ShutOut(text)).await else { return };
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let short = world.config(server.port()).with(&json!({ "timeouts": { "ready_s": 5 } }));
    assert_fails(&short, BUSY, "nologin").await;
    let before = world.emulator.journal().sessions().len();
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    let again = || async { world.emulator.journal().sessions().len() > before + 1 };
    assert!(eventually(LIMIT, again).await, "no second attempt");
    world.sshd.let_in().unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    Tunnel { sidecar, port }.close().await;
    world.finish().await;
}

#[tokio::test]
async fn expired_password_is_named_where_it_switches_forwarding_off() {
    let Some(world) = with_account(Account::PasswordExpired).await else { return };
    let failure =
        Failure { code: "ssh.forwarding_denied", status: 77, phase: "target", blame: "customer" };
    assert_fails(&world.config(5432), failure, "password_expired").await;
    world.finish().await;
}

/// A world around an sshd with these options.
async fn with(options: &[&str]) -> World {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let sshd = Sshd::start_with(key, options).await.unwrap();
    World::around(Arc::new(sshd), |builder| builder).await
}

/// A world around an sshd with such an account; `None` without the rights to make one.
async fn with_account(account: Account) -> Option<World> {
    if !geteuid().is_root() {
        println!("not tried: only root may start an sshd with an account of its own");
        return None;
    }
    let sshd = Sshd::start_with_account(account).await.unwrap();
    Some(World::around(Arc::new(sshd), |builder| builder).await)
}
