//! A server that violates the protocol: every violation ends in an error, none in a panic or in growing memory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use flate2::{Compress, FlushCompress};

use super::server::{Pair, Server, confirmation, data, fresh_key, numbers};
use crate::{
    Compression, Error, Event, HostKeyPin, OpenFailure,
    wire::{Put, message},
};

#[test]
fn packets_of_invalid_length_are_refused_before_their_bytes_arrive() {
    let cases: [(&str, &[u8]); 6] = [
        ("huge", &[0x7f, 0xff, 0xff, 0xfc, 4]),
        ("beyond 256 KiB", &[0, 4, 0, 12, 4]),
        ("empty", &[0, 0, 0, 0, 0]),
        ("not aligned", &[0, 0, 0, 13, 4]),
        ("little padding", &[0, 0, 0, 12, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("only padding", &[0, 0, 0, 12, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (name, packet) in cases {
        let mut pair = Pair::new(Server::new(), |_| {});
        pair.server.out.extend_from_slice(packet);
        let error = pair.run().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "case {name}: {error}");
    }
}

#[test]
fn strict_exchanges_allow_nothing_in_between() {
    // Prefix truncation (Terrapin, CVE-2023-48795) needs a message before the keys.
    for number in [message::IGNORE, message::DEBUG, message::UNIMPLEMENTED, message::EXT_INFO] {
        let mut pair = Pair::new(Server::new(), |_| {});
        let error = pair.provoke(&[number, 0, 0, 0, 0]);
        assert!(matches!(error, Error::Protocol { .. }), "message {number}: {error}");
    }
    // Between KEXINIT and reply.
    let mut pair = Pair::new(Server::new(), |_| {});
    let input = pair.server.out.split();
    pair.client.handle_input(pair.now, &input).unwrap();
    pair.server.send_kexinit();
    assert!(matches!(pair.provoke(&[message::IGNORE, 0, 0, 0, 0]), Error::Protocol { .. }));
}

#[test]
fn a_removed_packet_is_noticed() {
    let (mut pair, id) = Pair::with_channel(|_| {});
    pair.server.send(&data(id.0, b"removed"));
    pair.server.out.clear();
    // Its length is decrypted with the sequence number of the removed one, and is rarely valid.
    let error = pair.provoke(&data(id.0, &[0; 1000]));
    assert!(matches!(error, Error::Integrity | Error::Protocol { .. }), "{error}");
}

#[test]
fn key_exchange_messages_out_of_order_are_refused() {
    let mut twice = Pair::new(Server::new(), |_| {});
    let input = twice.server.out.split();
    twice.client.handle_input(twice.now, &input).unwrap();
    twice.server.send_kexinit();
    twice.server.send_kexinit();
    assert!(matches!(twice.run(), Err(Error::Protocol { .. })), "KEXINIT twice");

    for (name, payload) in [
        ("NEWKEYS without exchange", vec![message::NEWKEYS]),
        ("reply without exchange", vec![message::KEX_ECDH_REPLY, 0, 0, 0, 0]),
    ] {
        let error = Pair::logged_in(|_| {}).provoke(&payload);
        assert!(matches!(error, Error::Protocol { .. }), "{name}: {error}");
    }

    let (mut pair, id) = Pair::with_channel(|_| {});
    pair.server.send_kexinit();
    let error = pair.provoke(&data(id.0, b"between"));
    assert!(matches!(error, Error::Protocol { .. }), "data behind the server's KEXINIT: {error}");
}

#[test]
fn a_host_key_must_be_proven_and_stay() {
    let mut server = Server::new();
    server.forge = true;
    let error = Pair::new(server, |_| {}).run().unwrap_err();
    assert!(matches!(error, Error::HostKeyUnproven { .. }), "{error}");

    let mut pair = Pair::logged_in(|_| {});
    pair.server.host_key = fresh_key("ED25519");
    pair.server.send_kexinit();
    let error = pair.run().unwrap_err();
    assert!(matches!(error, Error::HostKeyMismatch { .. }), "{error}");

    let other = fresh_key("ED25519").public_key().clone();
    let pins = vec![HostKeyPin::Key(Box::new(other))];
    let mut pair = Pair::new(Server::new(), |config| config.pins = pins);
    let error = pair.run().unwrap_err();
    assert!(matches!(error, Error::HostKeyMismatch { .. }), "{error}");
    let signs = |event: &Event| matches!(event, Event::HostKey { .. } | Event::Authenticated(_));
    assert!(!pair.events.iter().any(signs));
    assert_eq!(pair.client.handle_input(pair.now, b"x"), Err(error), "the error stays");
}

#[test]
fn messages_before_their_time_are_refused() {
    let cases: [(&str, Vec<u8>); 6] = [
        ("channel message", numbers(message::CHANNEL_WINDOW_ADJUST, &[0, 1])),
        ("global request", vec![message::GLOBAL_REQUEST, 0, 0, 0, 1, b'x', 1]),
        ("unknown message", vec![200]),
        ("partial", [&[message::USERAUTH_FAILURE][..], &[0, 0, 0, 1, b'x', 1]].concat()),
        ("key is fine", vec![60]),
        ("other service", vec![message::SERVICE_ACCEPT, 0, 0, 0, 1, b'x']),
    ];
    for (name, payload) in cases {
        let mut server = Server::new();
        server.manual_login = true;
        let mut pair = Pair::new(server, |_| {});
        pair.request_login();
        let error = pair.provoke(&payload);
        let expected = matches!(error, Error::Protocol { .. } | Error::AuthIncomplete { .. });
        assert!(expected, "case {name}: {error}");
    }
    let error = Pair::logged_in(|_| {}).provoke(&[message::USERAUTH_SUCCESS]);
    assert!(matches!(error, Error::Protocol { .. }), "second success: {error}");
}

#[test]
fn banners_are_counted() {
    let mut server = Server::new();
    server.manual_login = true;
    let mut pair = Pair::new(server, |_| {});
    pair.run().unwrap();
    let mut banner = vec![message::USERAUTH_BANNER];
    banner.put_string(&vec![b'a'; 100_000]);
    banner.put_string(b"");
    (0..100).for_each(|_| pair.server.send(&banner));
    assert!(matches!(pair.run(), Err(Error::Protocol { .. })));
    pair.events.extend(std::iter::from_fn(|| pair.client.poll_event()));
    let kept: usize = pair.events.iter().filter(|event| matches!(event, Event::Banner(_))).count();
    assert!(kept <= 16, "{kept}");
}

#[test]
fn channels_hold_the_server_to_its_windows() {
    let fill = |pair: &mut Pair, id, bytes| {
        pair.server.send(&data(id, &vec![0; bytes]));
        pair.run()
    };
    let small = |config: &mut crate::Config| (config.window, config.max_packet) = (1000, 600);
    let (mut pair, id) = Pair::with_channel(small);
    assert!(fill(&mut pair, id.0, 601).is_err(), "packet");
    let (mut pair, id) = Pair::with_channel(small);
    fill(&mut pair, id.0, 600).unwrap();
    assert!(fill(&mut pair, id.0, 401).is_err(), "window");
    let (mut pair, id) = Pair::with_channel(small);
    fill(&mut pair, id.0, 600).unwrap();
    assert_eq!(pair.client.read(id).map(|data| data.len()), Some(600));
    assert!(fill(&mut pair, id.0, 401).is_err(), "read is not consumed");
}

#[test]
fn messages_for_channels_that_they_do_not_fit_are_refused() {
    let id = 0;
    let failure = [numbers(message::CHANNEL_OPEN_FAILURE, &[id, 1]), vec![0; 8]].concat();
    let cases = [
        ("unknown channel", data(99, b"x")),
        ("opened twice", confirmation(id, 1, 1)),
        ("refused though open", failure),
        ("window overflow", numbers(message::CHANNEL_WINDOW_ADJUST, &[id, u32::MAX])),
        ("cut", vec![message::CHANNEL_DATA, 0, 0]),
        ("success without request", numbers(99, &[id])),
    ];
    for (name, payload) in cases {
        let (mut pair, opened) = Pair::with_channel(|_| {});
        assert_eq!(opened.0, id);
        let error = pair.provoke(&payload);
        assert!(matches!(error, Error::Protocol { .. }), "case {name}: {error}");
    }
    let (mut pair, _) = Pair::with_channel(|_| {});
    pair.server.send(&numbers(message::CHANNEL_EOF, &[id]));
    assert!(matches!(pair.provoke(&data(id, b"x")), Error::Protocol { .. }), "behind EOF");
    let (mut pair, _) = Pair::with_channel(|_| {});
    pair.server.send(&numbers(message::CHANNEL_CLOSE, &[id]));
    assert!(matches!(pair.provoke(&data(id, b"x")), Error::Protocol { .. }), "behind CLOSE");
}

#[test]
fn channels_of_the_server_are_refused_and_floods_end() {
    let mut open = vec![message::CHANNEL_OPEN];
    open.put_string(b"forwarded-tcpip");
    for field in [3, 1000, 1000] {
        open.put_u32(field);
    }
    let mut request = vec![message::GLOBAL_REQUEST];
    request.put_string(b"anything");
    request.put_bool(true);
    for payload in [open, request, vec![222]] {
        let mut pair = Pair::logged_in(|_| {});
        pair.server.send(&payload);
        pair.run().unwrap();
        assert_eq!(pair.server.received.len(), 1, "answered");
        // As long as the answers go out, any number is served.
        for _ in 0..5_000 {
            pair.server.send(&payload);
            pair.run().unwrap();
        }
        (0..5_000).for_each(|_| pair.server.send(&payload));
        let flood = pair.server.out.split();
        let error = pair.client.handle_input(pair.now, &flood).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
}

#[test]
fn zlib_bombs_are_refused() {
    let mut server = Server::new();
    server.manual_login = true;
    let mut pair = Pair::new(server, |config| config.compression = Compression::On);
    pair.request_login();
    pair.server.send(&[message::USERAUTH_SUCCESS]);
    pair.run().unwrap();
    let mut bomb = Vec::with_capacity(200_000);
    let mut stream = Compress::new(flate2::Compression::best(), true);
    stream.compress_vec(&vec![0; 100 << 20], &mut bomb, FlushCompress::Sync).unwrap();
    let error = pair.provoke(&bomb);
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn disconnect_is_handled_and_sent() {
    let mut disconnect = numbers(message::DISCONNECT, &[12]);
    disconnect.put_string(b"too many\x1b[31m users");
    let error = Pair::logged_in(|_| {}).provoke(&disconnect);
    let text = "too many\\u{1b}[31m users".to_owned();
    assert_eq!(error, Error::Disconnected { reason: 12, text });

    let mut pair = Pair::logged_in(|_| {});
    pair.provoke(&data(99, b"x"));
    let mut out = BytesMut::new();
    assert_eq!(pair.client.poll_transmit(pair.now, &mut out, 1000), Ok(true));
    assert_eq!(pair.client.poll_transmit(pair.now, &mut out, 1000), Ok(false), "once");
    assert_eq!(pair.client.poll_timeout(), None);
}

#[test]
fn a_server_that_never_answers_a_key_exchange_times_out() {
    let mut pair = Pair::logged_in(|config| {
        config.rekey_interval = Duration::from_secs(5);
        config.keepalive_interval = Some(Duration::from_secs(10));
        config.keepalive_max = 2;
    });
    pair.server.answers_kexinit = false;
    let error = loop {
        pair.now = pair.client.poll_timeout().unwrap();
        let result = pair.client.handle_timeout(pair.now);
        if let Err(error) = result {
            break error;
        }
        pair.client.poll_transmit(pair.now, &mut BytesMut::new(), 10_000).unwrap();
    };
    // The key exchange begins after 5 s, and the first request follows it by a fifth of the interval.
    assert_eq!(error, Error::KeepaliveTimeout { silent: Duration::from_secs(27) });
}

#[test]
fn a_channel_that_is_closed_while_it_opens_is_freed() {
    for refused in [false, true] {
        let mut pair = Pair::logged_in(|_| {});
        let id = pair.client.open_direct_tcpip("db", 1, ([127, 0, 0, 1], 1).into()).unwrap();
        pair.run().unwrap();
        pair.client.close(id);
        if refused {
            let mut failure = numbers(message::CHANNEL_OPEN_FAILURE, &[id.0, 2]);
            failure.put_string(b"no");
            pair.server.send(&failure);
        } else {
            pair.server.send(&confirmation(id.0, 1000, 1000));
            pair.run().unwrap();
            assert_eq!(pair.received(message::CHANNEL_CLOSE).len(), 1);
            pair.server.send(&data(id.0, b"crossing"));
            pair.server.send(&numbers(message::CHANNEL_CLOSE, &[id.0]));
        }
        pair.run().unwrap();
        let wanted = |event: &&Event| {
            matches!(
                event,
                Event::Closed(_)
                    | Event::ChannelOpened(_)
                    | Event::Readable(_)
                    | Event::ChannelRefused { .. }
            )
        };
        let about: Vec<_> = pair.events.iter().filter(wanted).cloned().collect();
        assert_eq!(about, [Event::Closed(id)], "refused: {refused}");
        assert_eq!(pair.client.statistics().channels, 0);
    }
}

#[test]
fn refusals_carry_the_servers_description() {
    let mut pair = Pair::logged_in(|_| {});
    let id = pair.client.open_direct_tcpip("db", 1, ([127, 0, 0, 1], 1).into()).unwrap();
    pair.run().unwrap();
    let mut failure = numbers(message::CHANNEL_OPEN_FAILURE, &[id.0, 2]);
    failure.put_string(b"Connection refused\n");
    failure.put_string(b"");
    pair.server.send(&failure);
    pair.run().unwrap();
    let (reason, description) = (OpenFailure::ConnectFailed, "Connection refused\\n".to_owned());
    assert!(pair.events.contains(&Event::ChannelRefused { id, reason, description }));
}

#[test]
fn random_messages_never_panic() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u128 =
        seed.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos());
    println!("SEED={seed}");
    let mut state = u64::try_from(seed & u128::from(u64::MAX)).unwrap() | 1;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    };
    for _ in 0..300 {
        let (mut pair, _) = Pair::with_channel(|_| {});
        for _ in 0..50 {
            let numbers = [1, 2, 7, 20, 21, 31, 52, 80, 82, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99];
            let mut payload = vec![numbers[usize::try_from(random()).unwrap() % numbers.len()]];
            for _ in 0..random() % 6 {
                payload.put_u32(u32::try_from(random() % 9).unwrap());
            }
            payload.truncate(1 + usize::try_from(random() % 24).unwrap());
            pair.server.send(&payload);
            if pair.run().is_err() {
                break;
            }
        }
    }
}
