//! Key exchanges, logins and compression in the orders that the protocol allows a server.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::server::{Pair, Server, data, fresh_key, numbers};
use crate::{
    Compression, Error, Event,
    wire::{Put, Reader, message},
};

#[test]
fn input_may_come_byte_by_byte() {
    let mut pair = Pair::new(Server::new(), |_| {});
    while !pair.events.iter().any(|event| matches!(event, Event::Authenticated(_))) {
        for byte in pair.server.out.split() {
            pair.client.handle_input(pair.now, &[byte]).unwrap();
        }
        pair.run().unwrap();
    }
}

#[test]
fn a_wrong_guess_of_the_server_is_skipped() {
    let mut server = Server::new();
    server.guess = true;
    let mut pair = Pair::new(server, |_| {});
    pair.run().unwrap();
    assert!(pair.events.iter().any(|event| matches!(event, Event::Authenticated(_))));
}

#[test]
fn servers_without_strict_rules_may_send_other_messages_during_the_first_exchange() {
    let mut server = Server::new();
    server.strict = false;
    let mut pair = Pair::new(server, |_| {});
    let out = pair.server.out.split();
    pair.server.send(&[message::IGNORE, 0, 0, 0, 0]);
    pair.server.send(&[message::DEBUG, 0]);
    let others = pair.server.out.split();
    pair.server.out.extend_from_slice(&out);
    pair.server.out.extend_from_slice(&others);
    pair.run().unwrap();
    assert!(pair.events.iter().any(|event| matches!(event, Event::Authenticated(_))));
}

#[test]
fn messages_sent_before_the_server_saw_our_kexinit_are_handled() {
    let (mut pair, id) = Pair::with_channel(|config| {
        config.rekey_interval = Duration::from_secs(10);
        config.window = 1000;
    });
    pair.server.received.clear();
    pair.server.answers_kexinit = false;
    pair.now += Duration::from_secs(11);
    pair.client.handle_timeout(pair.now).unwrap();
    pair.run().unwrap();
    // Our KEXINIT was sent; data, a request and credit that the server sent before it arrive.
    pair.server.send(&data(id.0, &[5; 900]));
    let mut request = vec![message::GLOBAL_REQUEST];
    request.put_string(b"keepalive@openssh.com");
    request.put_bool(true);
    pair.server.send(&request);
    pair.run().unwrap();
    let read = pair.client.read(id).unwrap();
    assert_eq!(read.len(), 900);
    pair.client.consumed(id, 900);
    assert_eq!(pair.client.write(id, b"held"), 4);
    pair.run().unwrap();
    assert!(pair.server.received.is_empty(), "nothing is sent until the exchange is over");

    pair.server.send_kexinit();
    pair.server.answers_kexinit = true;
    pair.run().unwrap();
    assert_eq!(pair.client.statistics().rekeys, 1);
    let order: Vec<u8> = pair.server.received.iter().map(|payload| payload[0]).collect();
    let expected =
        [message::REQUEST_FAILURE, message::CHANNEL_WINDOW_ADJUST, message::CHANNEL_DATA];
    assert_eq!(order, expected, "control before data");
    assert_eq!(pair.server.received[1], numbers(message::CHANNEL_WINDOW_ADJUST, &[7, 900]));
}

#[test]
fn request_that_wants_no_answer_is_acknowledged_while_a_channel_opens() {
    let mut pair = Pair::logged_in(|_| {});
    let mut request = vec![message::GLOBAL_REQUEST];
    request.put_string(b"hostkeys-00@openssh.com");
    request.put_bool(false);
    for opening in [false, true, false] {
        if opening {
            pair.client.open_direct_tcpip("db", 1, ([127, 0, 0, 1], 1).into()).unwrap();
            pair.run().unwrap();
        }
        pair.server.received.clear();
        pair.server.send(&request);
        pair.server.send(&request);
        pair.run().unwrap();
        let sent: Vec<u8> = pair.server.received.iter().map(|payload| payload[0]).collect();
        assert_eq!(sent, if opening { vec![message::IGNORE] } else { vec![] });
        if opening {
            let fields = [0, 7, 1 << 20, 1 << 15];
            pair.server.send(&numbers(message::CHANNEL_OPEN_CONFIRMATION, &fields));
            pair.run().unwrap();
        }
    }
}

#[test]
fn both_may_start_an_exchange_at_once() {
    let mut pair = Pair::logged_in(|config| config.rekey_interval = Duration::from_secs(10));
    pair.server.send_kexinit();
    pair.now += Duration::from_secs(11);
    pair.client.handle_timeout(pair.now).unwrap();
    pair.run().unwrap();
    assert_eq!(pair.client.statistics().rekeys, 1);
    assert!(pair.client.poll_timeout().is_some_and(|due| due > pair.now), "the next is planned");
}

#[test]
fn rsa_key_is_offered_once_where_the_server_has_named_what_it_takes() {
    let tried = |announced: Option<&'static str>| {
        let mut server = Server::new();
        server.manual_login = true;
        server.announced = announced;
        let mut pair = Pair::new(server, |config| config.key = fresh_key("RSA"));
        pair.request_login();
        let mut failure = vec![message::USERAUTH_FAILURE];
        failure.put_string(b"publickey,password");
        failure.put_bool(false);
        let error = loop {
            pair.server.send(&failure);
            if let Err(error) = pair.run() {
                break error;
            }
        };
        let Error::AuthRejected { methods, login } = error else { panic!("{error}") };
        assert_eq!(methods, ["publickey", "password"]);
        assert_eq!(login.rsa_bits, Some(2048));
        assert_eq!(login.accepted.as_deref(), announced.filter(|list| !list.contains("sha2")));
        let requests = pair.received(message::USERAUTH_REQUEST);
        let sent = requests.iter().map(|payload| {
            let mut reader = Reader::new(payload, "request");
            reader.u8().unwrap();
            (0..3).for_each(|_| assert!(reader.string().is_ok()));
            assert!(reader.bool().unwrap(), "signed at once");
            String::from_utf8(reader.string().unwrap().to_vec()).unwrap()
        });
        assert_eq!(sent.collect::<Vec<_>>().join(", "), login.tried, "as the error says");
        login.tried
    };
    assert_eq!(tried(None), "rsa-sha2-256, rsa-sha2-512");
    assert_eq!(tried(Some("ssh-ed25519,rsa-sha2-256,rsa-sha2-512")), "rsa-sha2-512");
    assert_eq!(tried(Some("rsa-sha2-256")), "rsa-sha2-256");
    assert_eq!(tried(Some("ssh-rsa")), "rsa-sha2-512", "one request is sent all the same");
}

#[test]
fn algorithms_that_the_server_names_during_the_login_count() {
    // As OpenSSH 9.6 and later: it names all at first, and what this user may use with the first request.
    for (kind, named, tried, accepted) in [
        ("RSA", "rsa-sha2-256", "rsa-sha2-512, rsa-sha2-256", None),
        ("RSA", "rsa-sha2-512", "rsa-sha2-512", None),
        ("ED25519", "ecdsa-sha2-nistp256", "ssh-ed25519", Some("ecdsa-sha2-nistp256")),
        ("ED25519", "ssh-ed25519", "ssh-ed25519", None),
    ] {
        let mut server = Server::new();
        server.manual_login = true;
        server.announced = Some("ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-256,rsa-sha2-512");
        let mut pair = Pair::new(server, |config| config.key = fresh_key(kind));
        pair.request_login();
        let mut info = vec![message::EXT_INFO, 0, 0, 0, 1];
        info.put_string(b"server-sig-algs");
        info.put_string(named.as_bytes());
        let mut failure = vec![message::USERAUTH_FAILURE];
        failure.put_string(b"publickey");
        failure.put_bool(false);
        let error = loop {
            pair.server.send(&info);
            pair.server.send(&failure);
            if let Err(error) = pair.run() {
                break error;
            }
        };
        let Error::AuthRejected { login, .. } = &error else { panic!("{error}") };
        assert_eq!((login.tried.as_str(), login.accepted.as_deref()), (tried, accepted));
        let says = error.to_string().contains("which it does not take, only `ecdsa-sha2-nistp256`");
        assert_eq!(says, accepted.is_some(), "{error}");
    }
}

#[test]
fn disconnect_once_a_login_was_requested_is_the_answer_to_it() {
    let disconnect = |reason: u32, text: &str| {
        let mut payload = vec![message::DISCONNECT];
        payload.extend(reason.to_be_bytes());
        payload.put_string(text.as_bytes());
        payload.put_string(b"");
        payload
    };
    // As OpenSSH with `MaxAuthTries 1`.
    let payload = disconnect(2, "Too many authentication failures");
    let mut server = Server::new();
    server.manual_login = true;
    let mut pair = Pair::new(server, |_| {});
    pair.request_login();
    let error = pair.provoke(&payload);
    let Error::LoginEnded { login, reason: 2, text } = error else { panic!("{error}") };
    assert_eq!((login.user.as_str(), login.tried.as_str()), ("user", "ssh-ed25519"));
    assert_eq!(text, "Too many authentication failures");

    let error = Pair::logged_in(|_| {}).provoke(&payload);
    assert!(matches!(error, Error::Disconnected { reason: 2, .. }), "once logged in: {error}");
}

#[test]
fn login_request_follows_the_service_or_its_head_start() {
    let order = |pair: &Pair| -> Vec<u8> {
        pair.server.received.iter().map(|payload| payload[0]).collect()
    };
    let both = [message::SERVICE_REQUEST, message::USERAUTH_REQUEST];
    let pair = || {
        let mut server = Server::new();
        server.manual_login = true;
        let mut pair = Pair::new(server, |_| {});
        pair.run().unwrap();
        assert_eq!(order(&pair), both[..1]);
        pair
    };
    let mut slow = pair();
    slow.now += Duration::from_millis(3);
    slow.client.handle_timeout(slow.now).unwrap();
    slow.run().unwrap();
    assert_eq!(order(&slow), both[..1]);
    slow.request_login();
    assert_eq!(order(&slow), both);
    let mut accept = vec![message::SERVICE_ACCEPT];
    accept.put_string(b"ssh-userauth");
    slow.server.send(&accept);
    slow.run().unwrap();
    assert_eq!(order(&slow), both, "it is not sent again");

    let mut near = pair();
    near.server.send(&accept);
    near.run().unwrap();
    assert_eq!(order(&near), both);
    assert_eq!(near.client.poll_timeout(), None);
}

#[test]
fn nothing_is_sent_between_login_request_and_answer() {
    let mut server = Server::new();
    server.manual_login = true;
    let mut pair = Pair::new(server, |config| {
        config.keepalive_interval = Some(Duration::from_secs(1));
        config.keepalive_max = 5;
    });
    let id = pair.client.open_direct_tcpip("db", 1, ([127, 0, 0, 1], 1).into()).unwrap();
    assert_eq!(pair.client.write(id, b"early"), 5);
    pair.request_login();
    pair.server.received.clear();
    pair.now += Duration::from_secs(2);
    pair.client.handle_timeout(pair.now).unwrap();
    pair.run().unwrap();
    assert!(pair.server.received.is_empty());
    pair.server.send(&[message::USERAUTH_SUCCESS]);
    pair.run().unwrap();
    assert_eq!(pair.received(message::CHANNEL_OPEN).len(), 1, "sent at once after the login");
}

#[test]
fn channels_take_turns_and_control_overtakes_data() {
    let (mut pair, first) = Pair::with_channel(|config| config.send_queue_bytes = 1 << 20);
    let originator = ([127, 0, 0, 1], 1).into();
    let second = pair.client.open_direct_tcpip("db", 5432, originator).unwrap();
    pair.run().unwrap();
    let fields = [second.0, 8, 1 << 20, 1 << 15];
    pair.server.send(&numbers(message::CHANNEL_OPEN_CONFIRMATION, &fields));
    pair.run().unwrap();
    pair.server.received.clear();

    assert_eq!(pair.client.write(first, &vec![1; 100_000]), 100_000);
    assert_eq!(pair.client.write(second, &[2; 10]), 10);
    let mut request = vec![message::CHANNEL_REQUEST];
    request.put_u32(first.0);
    request.put_string(b"keepalive@openssh.com");
    request.put_bool(true);
    pair.server.send(&request);
    pair.run().unwrap();
    let order: Vec<_> =
        pair.server.received.iter().map(|payload| (payload[0], payload[4])).take(3).collect();
    let expected =
        [(message::CHANNEL_FAILURE, 7), (message::CHANNEL_DATA, 7), (message::CHANNEL_DATA, 8)];
    assert_eq!(order, expected);
}

#[test]
fn sending_stops_at_the_servers_window() {
    let (mut pair, id) = Pair::with_channel(|config| config.send_queue_bytes = 3 << 20);
    assert_eq!(pair.client.write(id, &vec![1; 2 << 20]), 2 << 20);
    pair.run().unwrap();
    assert_eq!(pair.client.statistics().data_sent, 1 << 20);
    pair.server.send(&numbers(message::CHANNEL_WINDOW_ADJUST, &[id.0, 5]));
    pair.run().unwrap();
    assert_eq!(pair.client.statistics().data_sent, (1 << 20) + 5);
}

#[test]
fn transmission_keeps_to_the_limit_by_packets() {
    let (mut pair, id) = Pair::with_channel(|_| {});
    assert_eq!(pair.client.write(id, &vec![1; 200_000]), 200_000);
    let mut out = BytesMut::new();
    assert_eq!(pair.client.poll_transmit(pair.now, &mut out, 1), Ok(true));
    assert!(out.len() < 17_000, "one packet: {}", out.len());
    let before = out.len();
    assert_eq!(pair.client.poll_transmit(pair.now, &mut out, 50_000), Ok(true));
    assert!((50_000..67_000).contains(&(out.len() - before)));
}

#[test]
fn required_compression_is_negotiated() {
    let mut server = Server::new();
    server.manual_login = true;
    let mut pair = Pair::new(server, |config| config.compression = Compression::On);
    pair.request_login();
    pair.server.send(&[message::USERAUTH_SUCCESS]);
    pair.run().unwrap();
    let compressed =
        |event: &Event| matches!(event, Event::Authenticated(found) if found.compressed);
    assert!(pair.events.iter().any(compressed));
}
