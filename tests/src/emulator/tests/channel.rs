//! Opening a data channel, and what is transmitted on it.

use std::time::{Duration, SystemTime};

use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use bytes::Bytes;

use super::{
    INSTANCE, KEY, REGION, SECRET, builder,
    client::{Client, Event, LIMIT, RESPONSE},
    connected, credentials, keys, ssm, start,
};
use crate::{
    emulator::{
        AgentSettings, Break, Emulator, Ending, Journal, OpeningMode, Pacing, Policy, Record,
        codec::{ACKNOWLEDGE, INPUT, Message, START_PUBLICATION, payload_type},
    },
    fixtures::{TcpServer, pattern},
};

const TERMINATE: [u8; 4] = [0, 0, 0, 2];

#[tokio::test]
async fn whole_session_against_an_echo_server() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    let journal = emulator.journal();
    dialled(&journal).await;

    let sent = pattern(200_000);
    // This client does not retransmit: it waits until its first message is acknowledged.
    let mut chunks = sent.chunks(1_500);
    client.deliver(payload_type::OUTPUT, chunks.next().unwrap()).await;
    for chunk in chunks {
        client.send(payload_type::OUTPUT, chunk).await;
    }
    assert!(client.bytes(sent.len()).await == sent, "the echo differs");
    client.frame(9, b"keepalive").await;
    client.send(payload_type::FLAG, &TERMINATE).await;
    assert_eq!(client.end().await, "");
    assert!(matches!(client.event().await, Event::End));

    assert_eq!(journal.ending(&id), Some(Ending::Flag));
    assert!(journal.open_sessions().is_empty());
    assert_eq!(journal.violations(), [""; 0]);
    let stats = journal.stats(&id);
    assert_eq!((stats.input_bytes, stats.output_bytes), (200_000, 200_000));
    assert_eq!((stats.input_messages, stats.input_repeated, stats.pings), (136, 0, 1));
    assert!(stats.delivered >= stats.output_messages && stats.acknowledges == stats.delivered);
}

#[tokio::test]
async fn real_pacing_moves_three_quarters_of_a_megabyte_a_second() {
    let server = TcpServer::source(300_000).await.unwrap();
    let emulator = builder().pacing(Pacing::Real).build().await.unwrap();
    let start = tokio::time::Instant::now();
    let (mut client, _) = connected(&emulator, server.port()).await;
    let received = client.bytes(300_000).await;
    let rate = 300_000.0 / start.elapsed().as_secs_f64();
    assert!(received == pattern(300_000));
    // Slower on a loaded machine, but never faster than the real agent.
    assert!(rate < 790_000.0, "{rate} bytes a second");
    assert!(rate > 200_000.0, "{rate} bytes a second");
}

#[tokio::test]
async fn tokens_are_for_one_opening_and_not_for_long() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let started = start(&emulator, server.port()).await;
    let (url, token) = (started.stream_url().unwrap(), started.token_value().unwrap());

    let mut first = Client::connect(url, &[]).await.unwrap();
    first.open("AAAA").await;
    assert!(matches!(first.event().await, Event::Close(1008, _)), "a wrong token");
    let mut second = Client::connect(url, &[]).await.unwrap();
    second.open(token).await;
    second.handshake().await;
    let mut third = Client::connect(url, &[]).await.unwrap();
    third.open(token).await;
    assert!(matches!(third.event().await, Event::Close(1008, _)), "a used token");

    assert_eq!(emulator.journal().tokens(), [token]);

    let emulator = builder().token_lifetime(Duration::ZERO).build().await.unwrap();
    let started = start(&emulator, server.port()).await;
    let mut late = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    late.open(started.token_value().unwrap()).await;
    assert!(matches!(late.event().await, Event::Close(1008, _)), "an old token");
}

#[tokio::test]
async fn urls_are_taken_as_they_were_given_and_no_other() {
    let emulator = builder().build().await.unwrap();
    let started = start(&emulator, 22).await;
    let url = started.stream_url().unwrap();
    let cell = url.split_once("cell-number=").unwrap().1;
    assert!(cell.contains('+') && cell.contains('/') && cell.ends_with('='), "{cell}");
    let cases = [
        ("re-encoded", url.replace('+', "%2B"), 400),
        ("without cell", url.split_once("&cell").unwrap().0.to_owned(), 400),
        ("another role", url.replace("publish_subscribe", "subscribe"), 400),
        ("another session", url.replace("/transfer-", "/transfer-1"), 404),
        ("another path", url.replace("/v1/", "/v2/"), 404),
    ];
    for (name, url, status) in cases {
        assert_eq!(Client::connect(&url, &[]).await.unwrap_err(), status, "{name}");
    }
    assert_eq!(emulator.journal().violations().len(), 1);
    Client::connect(url, &[]).await.unwrap();
}

#[tokio::test]
async fn signatures_of_the_upgrade_are_verified_by_mode_and_policy() {
    use OpeningMode::{PermissionNotAsked, SignedOnly, UnsignedAccepted};
    let (full, least) = (Policy::full(INSTANCE), Policy::least_privilege(INSTANCE));
    let cases = [
        (UnsignedAccepted, &full, [Ok(()), Ok(()), Err(403), Err(403)]),
        (UnsignedAccepted, &least, [Ok(()), Err(403), Err(403), Err(403)]),
        (SignedOnly, &full, [Err(403), Ok(()), Err(403), Err(403)]),
        (SignedOnly, &least, [Err(403), Err(403), Err(403), Err(403)]),
        (PermissionNotAsked, &least, [Ok(()), Ok(()), Err(403), Err(403)]),
    ];
    for (mode, policy, expected) in cases {
        let emulator = builder().opening(mode).policy(policy.clone()).build().await.unwrap();
        let started = start(&emulator, 22).await;
        let url = started.stream_url().unwrap();
        let now = SystemTime::now();
        let attempts = [
            vec![],
            signed(url, SECRET, now),
            signed(url, "another secret", now),
            signed(url, SECRET, now - Duration::from_mins(6)),
        ];
        for (at, headers) in attempts.iter().enumerate() {
            let opened = Client::connect(url, headers).await.map(drop);
            assert_eq!(opened, expected[at], "{mode:?}, attempt {at}");
        }
        assert_eq!(emulator.journal().violations(), [""; 0]);
    }
}

fn signed(url: &str, secret: &str, time: SystemTime) -> Vec<(String, String)> {
    let identity = credentials(KEY, secret, None).into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(REGION)
        .name("ssmmessages")
        .time(time)
        .settings(SigningSettings::default())
        .build()
        .unwrap()
        .into();
    let host = url.split('/').nth(2).unwrap();
    let headers = [("host", host)].into_iter();
    let request = SignableRequest::new("GET", url, headers, SignableBody::empty()).unwrap();
    let (instructions, _) = sign(request, &parameters).unwrap().into_parts();
    let headers = instructions.headers();
    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn data_before_the_handshake_is_complete_is_acknowledged_and_lost() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let started = start(&emulator, server.port()).await;
    let mut client = Client::connect(started.stream_url().unwrap(), &[]).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    client.output().await.unwrap();
    client.send(payload_type::OUTPUT, b"lost").await;
    client.acknowledged(0).await;
    client.send(payload_type::HANDSHAKE_RESPONSE, RESPONSE.as_bytes()).await;
    client.output().await.unwrap();
    dialled(&emulator.journal()).await;
    client.deliver(payload_type::OUTPUT, b"kept").await;
    assert_eq!(client.bytes(4).await, b"kept");
    let violations = emulator.journal().violations();
    assert!(
        violations.iter().any(|text| text.contains("before HandshakeComplete")),
        "{violations:?}"
    );
}

#[tokio::test]
async fn data_before_the_dial_is_done_is_not_taken_and_comes_again() {
    let server = TcpServer::echo().await.unwrap();
    let agent = AgentSettings::default()
        .complete_delay(Duration::ZERO)
        .dial_delay(Duration::from_millis(150));
    let emulator = builder().agent(agent).build().await.unwrap();
    let (mut client, _) = connected(&emulator, server.port()).await;
    let journal = emulator.journal();
    // Wait until the agent dials, which is not visible from outside; too short a wait only weakens
    // the test.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let message = client.send(payload_type::OUTPUT, b"hello").await;
    dialled(&journal).await;
    assert!(!client.acknowledged.contains(&1));
    while !client.acknowledged.contains(&1) {
        client.frame(2, &message.encode()).await;
        tokio::time::timeout(Duration::from_millis(50), client.acknowledged(1)).await.unwrap_or(());
    }
    assert_eq!(client.bytes(5).await, b"hello");
    assert_eq!(journal.violations(), [""; 0]);
}

#[tokio::test]
async fn agent_takes_messages_out_of_order_and_acknowledges_repeated_ones() {
    for (version, again) in [([3, 2, 1041, 0], true), ([3, 2, 1040, 0], false)] {
        let server = TcpServer::echo().await.unwrap();
        let emulator =
            builder().agent(AgentSettings::default().version(version)).build().await.unwrap();
        let (mut client, _) = connected(&emulator, server.port()).await;
        let journal = emulator.journal();
        dialled(&journal).await;
        let message = |sequence, text: &'static str| {
            let payload = Bytes::from_static(text.as_bytes());
            let mut message = Message::new(INPUT, sequence, payload_type::OUTPUT, payload);
            message.id = uuid::Uuid::new_v4();
            message
        };
        client.acknowledged(0).await;
        client.acknowledged.clear();
        for message in [message(3, "c"), message(2, "b"), message(1, "a")] {
            client.frame(2, &message.encode()).await;
        }
        assert_eq!(client.bytes(3).await, b"abc");
        client.acknowledged(1).await;
        assert_eq!(client.acknowledged, [3, 2, 1], "acknowledged in order of arrival");
        client.acknowledged.clear();
        client.frame(2, &message(2, "b").encode()).await;
        client.frame(2, &message(4, "d").encode()).await;
        client.acknowledged(4).await;
        assert_eq!(client.acknowledged.contains(&2), again, "version {version:?}");
    }
}

#[tokio::test]
async fn agent_sends_the_oldest_again_until_it_is_acknowledged() {
    let server = TcpServer::source(3_000).await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    client.acknowledges = false;
    client.bytes(3_000).await;
    let mut repeated = Vec::new();
    while repeated.len() < 3 {
        if let Event::Message(message) = client.event().await
            && message.payload_type == payload_type::OUTPUT
        {
            repeated.push(message.sequence);
            if repeated.len() == 2 {
                client.acknowledge(&message).await;
            }
        }
    }
    assert_eq!(repeated, [2, 2, 3]);
    assert!(emulator.journal().stats(&id).output_repeated >= 3);
}

#[tokio::test]
async fn paused_agent_is_silent_until_a_message_arrives() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    dialled(&emulator.journal()).await;
    client.acknowledged(0).await;
    emulator.control().pause_agent(&id).await;
    assert!(emulator.control().pause(&id).await);
    assert!(emulator.control().start(&id).await);
    // The order is deterministic: a pause, a start, and then data that ends the agent's own pause.
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != START_PUBLICATION) {
        if let Event::Message(message) = client.event().await
            && message.kind != ACKNOWLEDGE
        {
            kinds.push(message.kind);
        }
    }
    assert!(kinds.iter().any(|kind| kind == "pause_publication"), "{kinds:?}");
    client.deliver(payload_type::OUTPUT, b"hello").await;
    assert_eq!(client.bytes(5).await, b"hello");
}

#[tokio::test]
async fn session_goes_on_after_each_way_to_break_its_connection() {
    let server = TcpServer::echo().await.unwrap();
    let emulator = builder().build().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    dialled(&emulator.journal()).await;
    let old = start(&emulator, server.port()).await;
    let api = ssm(&emulator, keys());
    for how in [Break::Close, Break::Reset, Break::Silence] {
        assert!(emulator.control().close_channel(&id, how).await);
        if how != Break::Silence {
            let last = loop {
                match client.event().await {
                    Event::Message(_) | Event::Pong => {}
                    last => break last,
                }
            };
            let bye = matches!(&last, Event::Close(1000, reason) if reason == "Bye");
            assert_eq!(bye, how == Break::Close, "{last:?}");
        }
        let resumed = api.resume_session().session_id(&id).send().await.unwrap();
        client.resume(resumed.stream_url().unwrap(), resumed.token_value().unwrap()).await;
        client.deliver(payload_type::OUTPUT, b"again").await;
        assert_eq!(client.bytes(5).await, b"again");
    }
    let stale = old.stream_url().unwrap().to_owned();
    api.resume_session().session_id(old.session_id().unwrap()).send().await.unwrap();
    assert_eq!(Client::connect(&stale, &[]).await.unwrap_err(), 400, "the URL before a resume");
    assert_eq!(emulator.journal().violations(), [""; 0]);
}

#[tokio::test]
async fn sessions_started_at_once_begin_one_after_another() {
    let server = TcpServer::echo().await.unwrap();
    let agent = AgentSettings::default().start_spacing(Duration::from_millis(150));
    let emulator = builder().agent(agent).build().await.unwrap();
    let begin = tokio::time::Instant::now();
    for at_least in [0, 150, 300] {
        connected(&emulator, server.port()).await;
        assert!(begin.elapsed() >= Duration::from_millis(at_least));
    }
}

#[tokio::test]
async fn connections_are_closed_by_schedule() {
    let emulator = builder().channel_lifetime(Duration::from_millis(100)).build().await.unwrap();
    let server = TcpServer::echo().await.unwrap();
    let (mut client, id) = connected(&emulator, server.port()).await;
    loop {
        match client.event().await {
            Event::Close(1000, reason) => break assert_eq!(reason, "Bye"),
            Event::Message(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(emulator.journal().open_sessions(), [id]);
}

#[tokio::test]
async fn unsigned_channels_may_be_spared_by_the_schedule() {
    let builder = builder().channel_lifetime(Duration::from_millis(100));
    let emulator = builder.unsigned_channels_live_on().build().await.unwrap();
    let server = TcpServer::echo().await.unwrap();
    let (mut unsigned, _) = connected(&emulator, server.port()).await;
    dialled(&emulator.journal()).await;
    let started = start(&emulator, server.port()).await;
    let url = started.stream_url().unwrap();
    let headers = signed(url, SECRET, SystemTime::now());
    let mut client = Client::connect(url, &headers).await.unwrap();
    client.open(started.token_value().unwrap()).await;
    while !matches!(client.event().await, Event::Close(1000, _)) {}
    // Opened before, and open still.
    unsigned.deliver(payload_type::OUTPUT, b"alive").await;
    assert_eq!(unsigned.bytes(5).await, b"alive");
}

#[tokio::test]
async fn unsigned_openings_can_be_refused_from_now_on() {
    let emulator = builder().unsigned_refusal(401).build().await.unwrap();
    let server = TcpServer::echo().await.unwrap();
    let (mut open, id) = connected(&emulator, server.port()).await;
    dialled(&emulator.journal()).await;
    emulator.control().set_opening(OpeningMode::SignedOnly);
    open.deliver(payload_type::OUTPUT, b"alive").await;
    assert_eq!(open.bytes(5).await, b"alive");
    let resumed = ssm(&emulator, keys()).resume_session().session_id(&id).send().await.unwrap();
    let url = resumed.stream_url().unwrap();
    assert_eq!(Client::connect(url, &[]).await.map(drop), Err(401));
    let headers = signed(url, SECRET, SystemTime::now());
    assert_eq!(Client::connect(url, &headers).await.map(drop), Ok(()));
}

/// Waits until the agent has dialled.
pub(super) async fn dialled(journal: &Journal) {
    let is = |record: &Record| matches!(record, Record::Dialled { reached: true, .. });
    let seen = journal.wait_for(|all| all.iter().any(|entry| is(&entry.record)), LIMIT);
    seen.await.unwrap();
}

/// Receives and acknowledges at full speed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for release builds"]
async fn throughput() {
    let length = 300_000_000;
    let server = TcpServer::source(length).await.unwrap();
    let emulator: Emulator = builder().build().await.unwrap();
    let (mut client, _) = connected(&emulator, server.port()).await;
    let start = tokio::time::Instant::now();
    let (mut received, mut taken) = (0, Vec::new());
    while received < length {
        if let Event::Message(message) = client.event().await
            && message.payload_type == payload_type::OUTPUT
        {
            received += message.payload.len();
            taken.push(message);
        }
        if !client.has_more() {
            client.acknowledge_all(&taken).await;
            taken.clear();
        }
    }
    let rate = f64::from(u32::try_from(length).unwrap()) / 1e6 / start.elapsed().as_secs_f64();
    println!("{rate:.0} MB/s from sshd to the client");
    // Client, emulator and server share the machine, hence the low bound.
    assert!(rate > 100.0, "{rate} MB/s");
}
