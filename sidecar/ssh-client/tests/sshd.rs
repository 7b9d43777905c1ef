//! Against a real OpenSSH server.

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{Session, Sshd, echo, noise};
use ssh_client::{ChannelId, Event};

#[test]
fn forwards_bytes_both_ways() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    let id = session.open(echo());
    let sent = noise(3_000_000, 1);
    assert_eq!(through(&mut session, id, &sent), sent);
}

/// Sends `data` and returns as much as comes back.
fn through(session: &mut Session, id: ChannelId, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    session.until(|session| {
        sent += session.client.write(id, &data[sent..]);
        got.extend_from_slice(&session.take(id));
        got.len() >= data.len()
    });
    got
}
