//! The client against a real OpenSSH server.
#![expect(clippy::disallowed_methods, reason = "these run on real time")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "what fails here fails its test")]

mod common;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr},
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use common::{ORIGINATOR, Random, Session, Sshd, echo, free_port, keygen, load, noise, target};
use ssh_client::{ChannelId, Client, Compression, Error, Event, HostKeyPin, OpenFailure};

#[test]
fn every_cipher_mac_and_key_exchange_carries_bytes_both_ways() {
    let echo = echo();
    let ctr = |mac| ("aes256-ctr", Some(mac), "curve25519-sha256");
    let cases = [
        ("aes256-gcm@openssh.com", None, "curve25519-sha256"),
        ("aes128-gcm@openssh.com", None, "curve25519-sha256@libssh.org"),
        ("chacha20-poly1305@openssh.com", None, "ecdh-sha2-nistp256"),
        ("aes128-ctr", Some("hmac-sha2-256"), "ecdh-sha2-nistp384"),
        ("aes128-ctr", Some("hmac-sha2-512-etm@openssh.com"), "ecdh-sha2-nistp521"),
        ctr("hmac-sha2-256-etm@openssh.com"),
        ctr("hmac-sha2-512"),
    ];
    for (cipher, mac, kex) in cases {
        let macs = mac.map(|mac| format!("MACs {mac}\n")).unwrap_or_default();
        let sshd = Sshd::start(&format!("Ciphers {cipher}\n{macs}KexAlgorithms {kex}"));
        for compression in [Compression::Off, Compression::Auto] {
            let mut config = sshd.config();
            config.compression = compression;
            let mut session = Session::login(&sshd, config);
            let found = session.events.iter().find_map(|event| match event {
                Event::Authenticated(negotiated) => Some(*negotiated),
                _ => None,
            });
            let found = found.unwrap();
            assert_eq!((found.cipher, found.mac, found.kex), (cipher, mac, kex));
            assert_eq!(found.compressed, compression == Compression::Auto);
            let id = session.open(echo);
            let sent = noise(300_000, 2);
            assert!(through(&mut session, id, &sent) == sent, "{cipher} {mac:?} {kex}");
        }
    }
}

#[test]
fn every_host_key_type_is_verified_and_pinned() {
    let sshd = Sshd::start("");
    for (kind, algorithm) in
        [("ed25519", "ssh-ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"), ("rsa", "rsa-sha2-512")]
    {
        let mut config = sshd.config();
        config.pins = vec![sshd.host_key(kind).parse().unwrap()];
        let session = Session::login(&sshd, config);
        let expected = config_fingerprint(&sshd, kind);
        assert!(session.saw(|event| matches!(event, Event::HostKey { fingerprint, pinned: true }
            if *fingerprint == expected)));
        assert!(
            session.saw(|event| matches!(event, Event::Authenticated(found)
            if found.host_key == algorithm)),
            "a pinned type is asked for first"
        );
    }
    let mut config = sshd.config();
    config.host_key_algorithms = Some(vec!["rsa-sha2-256".to_owned()]);
    Session::login(&sshd, config);
}

#[test]
fn a_pinned_fingerprint_is_found_and_another_ends_the_connection() {
    let sshd = Sshd::start("");
    let actual = config_fingerprint(&sshd, "ed25519");
    let mut config = sshd.config();
    config.pins = vec![HostKeyPin::Fingerprint(actual.clone())];
    Session::login(&sshd, config);

    let other = Sshd::start("");
    let mut config = sshd.config();
    config.pins = vec![other.host_key("ed25519").parse().unwrap()];
    let error = Session::connect(sshd.address, config).until_failure();
    let Error::HostKeyMismatch { expected, actual: found } = error else { panic!("{error}") };
    assert_eq!(expected, config_fingerprint(&other, "ed25519"));
    assert!(found.starts_with(&actual), "{found}");
}

#[test]
fn nothing_is_sent_before_the_server_has_identified_itself() {
    let sshd = Sshd::start("");
    let mut client = Client::new(sshd.config(), Instant::now());
    let mut out = bytes::BytesMut::new();
    assert_eq!(client.poll_transmit(Instant::now(), &mut out, 1000), Ok(false));
    client.handle_input(Instant::now(), b"SSH-2.0-OpenSSH_9.9\r\n").unwrap();
    assert_eq!(client.poll_transmit(Instant::now(), &mut out, 100_000), Ok(true));
    assert!(out.starts_with(b"SSH-2.0-ssm-sidecar_"), "{out:?}");
    let line = out.iter().position(|byte| *byte == b'\n').unwrap();
    assert_eq!(out[line + 6], 20, "KEXINIT follows at once");
}

#[test]
fn compression_shrinks_data_and_can_be_required() {
    let sshd = Sshd::start("Compression yes");
    let target = echo();
    for (compression, small) in [(Compression::On, true), (Compression::Off, false)] {
        let mut config = sshd.config();
        config.compression = compression;
        let mut session = Session::login(&sshd, config);
        let id = session.open(target);
        let rows = b"1,Alice,2026-01-01\n".repeat(50_000);
        assert!(through(&mut session, id, &rows) == rows);
        let statistics = session.client.statistics();
        assert_eq!(statistics.data_sent, rows.len() as u64);
        assert_eq!(statistics.wire_sent < 200_000, small, "{statistics:?}");
        assert_eq!(statistics.wire_received < 200_000, small, "{statistics:?}");
    }

    let sshd = Sshd::start("Compression no");
    let mut config = sshd.config();
    config.compression = Compression::Auto;
    Session::login(&sshd, config.clone());
    config.compression = Compression::On;
    let error = Session::connect(sshd.address, config).until_failure();
    assert!(matches!(error, Error::NoCommonAlgorithm { kind: "compression", .. }), "{error}");
}

#[test]
fn keys_are_exchanged_under_load_without_losing_a_byte() {
    // The client exchanges keys every few KB, then the server as well.
    for (options, ours) in [("", 20_000), ("RekeyLimit 30K", 50_000), ("RekeyLimit 30K", 1 << 30)] {
        let sshd = Sshd::start(options);
        for compression in [Compression::Off, Compression::On] {
            let mut config = sshd.config();
            config.rekey_bytes = ours;
            config.compression = compression;
            let mut session = Session::login(&sshd, config);
            let target = echo();
            let (one, two) = (session.open(target), session.open(target));
            let data = noise(1_500_000, 3);
            let (mut sent, mut got) = ([0; 2], [Vec::new(), Vec::new()]);
            session.until(|session| {
                for (index, id) in [one, two].into_iter().enumerate() {
                    sent[index] += session.client.write(id, &data[sent[index]..]);
                    got[index].extend_from_slice(&session.take(id));
                }
                got.iter().all(|got| got.len() >= data.len())
            });
            assert!(got.iter().all(|got| *got == data), "content");
            let statistics = session.client.statistics();
            assert!(statistics.rekeys > 10, "{options} {ours}: {statistics:?}");
        }
    }
}

#[test]
fn keys_are_exchanged_by_time() {
    let sshd = Sshd::start("");
    let mut config = sshd.config();
    config.rekey_interval = Duration::from_millis(50);
    let mut session = Session::login(&sshd, config);
    session.until(|session| session.client.statistics().rekeys >= 3);
    let id = session.open(echo());
    assert_eq!(through(&mut session, id, b"still here"), b"still here");
}

#[test]
fn an_unread_channel_stalls_itself_alone_and_the_server_gets_its_answers() {
    // After a second without input the server sends a keepalive request, and disconnects without an answer.
    let sshd = Sshd::start("ClientAliveInterval 1\nClientAliveCountMax 2");
    let mut session = Session::login(&sshd, sshd.config());
    let source = target(|mut stream| {
        let block = noise(1 << 20, 4);
        while stream.write_all(&block).is_ok() {}
    });
    let (unread, moving) = (session.open(source), session.open(source));
    let started = Instant::now();
    let mut moved = 0;
    session.until(|session| {
        moved += session.take(moving).len();
        moved >= 60_000_000
    });
    // No traffic, for longer than the server waits for answers.
    session.until(|_| started.elapsed() > Duration::from_secs(5));
    moved = 0;
    session.until(|session| {
        moved += session.take(moving).len();
        moved >= 10_000_000
    });
    assert!(session.saw(|event| *event == Event::Readable(unread)));
    let mut waiting = 0;
    while let Some(data) = session.client.read(unread) {
        waiting += data.len();
    }
    assert_eq!(waiting, 512 * 1024, "an unread channel holds its window and no more");
    // Read but not consumed: no credit yet.
    for _ in 0..20 {
        session.turn(Instant::now() + Duration::from_millis(20));
        session.take(moving);
    }
    assert_eq!(session.client.read(unread), None);
    session.client.consumed(unread, waiting);
    session.until(|session| session.client.read(unread).is_some());
}

#[test]
fn half_close_passes_both_ways() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    // Answers only after our EOF, and then closes.
    let late = target(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let id = session.open(late);
    assert_eq!(session.client.write(id, b"abc"), 3);
    session.client.finish(id);
    assert_eq!(session.client.write(id, b"d"), 0, "nothing after EOF");
    let mut got = Vec::new();
    session.until(|session| {
        got.extend_from_slice(&session.take(id));
        session.saw(|event| *event == Event::Closed(id))
    });
    assert_eq!(got, b"cba");
    assert!(session.saw(|event| *event == Event::Eof(id)), "{:?}", session.events);

    // Sends EOF first and still reads.
    let (sender, received) = channel();
    let early = target(move |mut stream| {
        stream.write_all(b"last").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sender.send(all).unwrap();
    });
    let id = session.open(early);
    session.until(|session| {
        session.take(id);
        session.saw(|event| *event == Event::Eof(id))
    });
    let data = noise(1_000_000, 5);
    let mut sent = 0;
    session.until(|session| {
        sent += session.client.write(id, &data[sent..]);
        sent == data.len()
    });
    session.client.finish(id);
    session.until(|session| session.saw(|event| *event == Event::Closed(id)));
    assert!(received.recv().unwrap() == data);
    assert_eq!(session.client.statistics().channels, 0, "both are freed");
}

#[test]
fn all_data_is_read_before_the_close_is_reported() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    let sent = noise(300_000, 6);
    let copy = sent.clone();
    let id = session.open(target(move |mut stream| stream.write_all(&copy).unwrap()));
    session.client.finish(id);
    let deadline = Instant::now() + common::DEADLINE;
    while session.client.statistics().data_received < 300_000 {
        session.turn(deadline);
    }
    for _ in 0..10 {
        session.turn(Instant::now());
    }
    let over = |event: &Event| matches!(event, Event::Eof(_) | Event::Closed(_));
    assert!(!session.saw(over), "nothing was read yet");
    let mut got = Vec::new();
    session.until(|session| {
        got.extend_from_slice(&session.take(id));
        session.saw(|event| *event == Event::Closed(id))
    });
    assert!(got == sent);
}

#[test]
fn closing_ends_the_connection_to_the_target() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    let (sender, ended) = channel();
    let id = session.open(target(move |mut stream| {
        let block = noise(1 << 16, 7);
        while stream.write_all(&block).is_ok() {}
        sender.send(()).unwrap();
    }));
    session.client.close(id);
    session.until(|session| session.saw(|event| *event == Event::Closed(id)));
    session.until(|_| ended.try_recv().is_ok());
    assert_eq!(session.client.statistics().channels, 0);
    assert_eq!(session.client.read(id), None);
}

#[test]
fn many_channels_share_the_connection() {
    let sshd = Sshd::start("");
    let mut config = sshd.config();
    config.max_channels = 50;
    let mut session = Session::connect(sshd.address, config);
    let target = echo();
    // Requested, and written to, before the login.
    let ids: Vec<_> = (0..50).map(|_| session.request(target)).collect();
    let exhausted = session.client.open_direct_tcpip("127.0.0.1", 1, ORIGINATOR);
    assert_eq!(exhausted, Err(Error::ChannelsExhausted { limit: 50 }));
    let data: Vec<_> = (0..50).map(|seed| noise(100_000, seed + 1)).collect();
    let (mut sent, mut got) = (vec![0; 50], vec![Vec::new(); 50]);
    session.until(|session| {
        for (index, id) in ids.iter().enumerate() {
            sent[index] += session.client.write(*id, &data[index][sent[index]..]);
            got[index].extend_from_slice(&session.take(*id));
            if got[index].len() == data[index].len() {
                session.client.finish(*id);
            }
        }
        session.client.statistics().channels == 0
    });
    assert!(got == data);
}

#[test]
fn a_refused_channel_has_a_reason_and_affects_no_other() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    let unused = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let id = session.request(unused);
    assert_eq!(refusal(&mut session, id), OpenFailure::ConnectFailed);
    let id = session.open(echo());
    assert_eq!(through(&mut session, id, b"hello"), b"hello");

    for options in ["PermitOpen 127.0.0.1:1", "DisableForwarding yes"] {
        let sshd = Sshd::start(options);
        let mut session = Session::login(&sshd, sshd.config());
        let id = session.request(unused);
        let reason = refusal(&mut session, id);
        assert_eq!(reason, OpenFailure::AdministrativelyProhibited, "{options}");
    }
}

#[test]
fn an_unknown_key_is_rejected_with_the_methods_that_the_server_accepts() {
    let sshd = Sshd::start("PasswordAuthentication yes");
    for (kind, tried) in [("ed25519", "ssh-ed25519"), ("rsa", "rsa-sha2-512")] {
        let path = sshd.dir.path().join(format!("stranger_{kind}"));
        keygen(&["-q", "-t", kind, "-N", "", "-f"], &path);
        let mut config = sshd.config();
        config.key = Arc::new(load(&path, None));
        let error = Session::connect(sshd.address, config).until_failure();
        let Error::AuthRejected { login, methods } = error else { panic!("{error}") };
        assert_eq!(login.tried, tried);
        assert!(methods.contains(&"publickey".to_owned()), "{methods:?}");
        assert!(methods.contains(&"password".to_owned()), "{methods:?}");
    }
}

#[test]
fn rsa_keys_use_the_hash_that_the_server_accepts() {
    let sshd = Sshd::start("PubkeyAcceptedAlgorithms rsa-sha2-512");
    let path = sshd.dir.path().join("rsa");
    keygen(&["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"], &path);
    sshd.authorize(&path.with_extension("pub"));
    let mut config = sshd.config();
    config.key = Arc::new(load(&path, None));
    Session::login(&sshd, config);
    let log = sshd.log();
    assert!(!log.contains("Failed publickey"), "the first request succeeded: {log}");
}

#[test]
fn too_many_failures_are_the_answer_to_the_login() {
    for (tries, kind) in [("1", "ed25519"), ("1", "rsa"), ("2", "rsa")] {
        let sshd = Sshd::start(&format!("MaxAuthTries {tries}"));
        let path = sshd.dir.path().join("stranger");
        keygen(&["-q", "-t", kind, "-N", "", "-f"], &path);
        let mut config = sshd.config();
        config.key = Arc::new(load(&path, None));
        match Session::connect(sshd.address, config).until_failure() {
            Error::LoginEnded { text, .. } if tries == "1" => {
                assert_eq!(text, "Too many authentication failures");
            }
            // One of two tries was used.
            Error::AuthRejected { login, .. } if tries == "2" => {
                assert_eq!(login.tried, "rsa-sha2-512");
            }
            error => panic!("{tries}, {kind}: {error}"),
        }
    }
}

#[test]
fn long_identification_of_a_real_server_is_taken() {
    let sshd = Sshd::start(&format!("VersionAddendum {}", "Authorised use only. ".repeat(14)));
    Session::login(&sshd, sshd.config());
}

#[test]
fn a_second_factor_is_reported_as_such() {
    let sshd = Sshd::start("PasswordAuthentication yes\nAuthenticationMethods publickey,password");
    let error = Session::connect(sshd.address, sshd.config()).until_failure();
    assert_eq!(error, Error::AuthIncomplete { methods: vec!["password".to_owned()] });
}

#[test]
fn banners_are_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = common::path_in(&dir, "banner");
    std::fs::write(&path, "Authorized use only\x1b[2J\n").unwrap();
    let sshd = Sshd::start(&format!("Banner {}", path.display()));
    let session = Session::login(&sshd, sshd.config());
    // sshd escapes too, as `\033`.
    assert!(session.saw(
        |event| matches!(event, Event::Banner(text) if text.starts_with("Authorized use only")
            && !text.contains('\x1b'))
    ));
}

#[test]
fn keepalives_are_answered_and_a_silent_server_times_out() {
    let sshd = Sshd::start("");
    let mut config = sshd.config();
    config.keepalive_interval = Some(Duration::from_millis(100));
    config.keepalive_max = 3;
    let mut session = Session::login(&sshd, config);
    session.until(|session| session.client.statistics().keepalives >= 8);

    // From here on nothing is received.
    let now = Instant::now();
    let mut error = None;
    for tenths in 1..10 {
        error = session.client.handle_timeout(now + Duration::from_millis(tenths * 100)).err();
        if error.is_some() {
            break;
        }
    }
    assert!(matches!(error, Some(Error::KeepaliveTimeout { .. })), "{error:?}");
}

#[test]
fn disconnect_reaches_the_server() {
    let sshd = Sshd::start("");
    let mut session = Session::login(&sshd, sshd.config());
    session.client.disconnect();
    session.until(|session| session.eof);
    assert!(sshd.log().contains("disconnected by user"), "{}", sshd.log());
    let refused = session.client.open_direct_tcpip("127.0.0.1", 1, ORIGINATOR);
    assert_eq!(refused, Err(Error::Ended));
    assert_eq!(session.client.poll_timeout(), None);
}

#[test]
fn no_common_algorithm_names_both_lists() {
    let sshd = Sshd::start("Ciphers aes192-ctr");
    let error = Session::connect(sshd.address, sshd.config()).until_failure();
    let Error::NoCommonAlgorithm { kind, ours, theirs } = error else { panic!("{error}") };
    assert_eq!((kind, theirs.as_str()), ("cipher", "aes192-ctr"));
    assert!(ours.contains("aes256-gcm@openssh.com"), "{ours}");
}

#[test]
fn a_changed_byte_anywhere_ends_the_connection() {
    let mut random = Random::seeded();
    for cipher in ["aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"] {
        let sshd = Sshd::start(&format!("Ciphers {cipher}"));
        let mut session = Session::login(&sshd, sshd.config());
        let id = session.open(echo());
        session.corrupt_after(random.below(2_000));
        assert_eq!(session.client.write(id, &noise(10_000, 8)), 10_000);
        let error = session.until_failure();
        let expected = matches!(error, Error::Integrity | Error::Protocol { .. });
        assert!(expected, "{cipher}: {error}");
    }
}

fn refusal(session: &mut Session, id: ChannelId) -> OpenFailure {
    let mut found = None;
    session.until(|session| {
        found = session.events.iter().find_map(|event| match event {
            Event::ChannelRefused { id: refused, reason, .. } if *refused == id => Some(*reason),
            _ => None,
        });
        found.is_some()
    });
    found.unwrap()
}

fn config_fingerprint(sshd: &Sshd, kind: &str) -> String {
    sshd.host_key(kind).parse::<HostKeyPin>().unwrap().to_string()
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
