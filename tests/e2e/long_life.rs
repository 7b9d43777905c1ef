//! What a job of many hours meets: new SSH keys, new AWS keys, hours without traffic, suspended hosts.
//!
//! How much goes through one tunnel is tested by hand, since it takes long: 11 GB, compared byte for byte,
//! with `LONG_LIFE_BYTES=11000000000 cargo test --release --workspace --test e2e -- as_many_bytes`. Beyond
//! 1 GiB the sidecar itself starts a new SSH key exchange.

use std::{env, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use tests::{
    emulator::{Break, Ending, Pacing, Policy, Role},
    fixtures::{KeyPair, KeyType, Sshd, TcpServer, eventually, source_bytes},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::world::{INSTANCE, LIMIT, SECRET_ACCESS_KEY, Tunnel, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_ssh_keys_by_volume_and_by_time_go_unnoticed_under_load_and_across_resumes() {
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let options = ["RekeyLimit 150K 2s", "LogLevel DEBUG1"];
    let sshd = Arc::new(Sshd::start_with(key, &options).await.unwrap());
    let world = World::around(sshd, |builder| builder.policy(Policy::full(INSTANCE))).await;
    let bytes = 4_000_000;
    let server = TcpServer::source(bytes).await.unwrap();
    // Uncompressed, so that the volume is known.
    let change = json!({ "tunnel": { "compression": "off" } });
    let tunnel = world.tunnel_with(server.port(), &change).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut received = vec![0; bytes];
    let mut rest = received.as_mut_slice();
    for how in [Break::Close, Break::Reset, Break::Close, Break::Reset] {
        let (part, more) = rest.split_at_mut(700_000);
        timeout(LIMIT, stream.read_exact(part)).await.unwrap().unwrap();
        rest = more;
        assert_eq!(world.emulator.control().disconnect_all(how).await, 1);
    }
    timeout(LIMIT, stream.read_exact(rest)).await.unwrap().unwrap();
    assert!(received == source_bytes(bytes), "not the bytes that were sent");
    let rekeys = || world.sshd.log().unwrap().matches("set_newkeys: rekeying").count();
    let by_volume = rekeys();
    assert!(by_volume >= 2 * 20, "keys exchanged {by_volume} times");
    // Hardly any traffic from here on: only time triggers new keys.
    let by_time = || async {
        stream.try_write(b"x").unwrap();
        rekeys() >= by_volume + 4
    };
    assert!(eventually(LIMIT, by_time).await, "{} times, then {}", by_volume, rekeys());
    drop(stream);
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!((&summary["sessions"], &summary["resets"]), (&json!(1), &json!(0)), "{summary}");
    world.finish().await;
}

/// Each key lives for seconds, as does each data channel.
#[tokio::test]
async fn temporary_keys_are_renewed_again_and_again_in_the_middle_of_a_transfer() {
    const GENERATIONS: usize = 4;
    let id = |generation: usize| format!("ASIAIOSFODNN7EXAMPL{generation}");
    let world = World::with(|builder| {
        let builder = builder.policy(Policy::full(INSTANCE));
        let builder = builder.channel_lifetime(Duration::from_secs(3));
        (0..GENERATIONS).fold(builder, |builder, generation| {
            let token = format!("token-{generation}");
            let lifetime = Duration::from_hours(1);
            builder.temporary_key(&id(generation), SECRET_ACCESS_KEY, &token, lifetime)
        })
    });
    let world = world.await;
    let bytes = 8_000_000;
    let server = TcpServer::source(bytes).await.unwrap();
    let first = json!({ "aws": { "access_key_id": id(0), "session_token": "token-0" } });
    let config = world.config(server.port()).with(&first);
    let mut tunnel = Tunnel::open(&config).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut received = vec![0; bytes];
    let mut rest = received.as_mut_slice();
    for generation in 1..GENERATIONS {
        let (part, more) = rest.split_at_mut(1_900_000);
        timeout(2 * LIMIT, stream.read_exact(part)).await.unwrap().unwrap();
        rest = more;
        let keys = json!({
            "type": "credentials",
            "access_key_id": id(generation),
            "secret_access_key": SECRET_ACCESS_KEY,
            "session_token": format!("token-{generation}"),
        });
        tunnel.sidecar.write(format!("{keys}\n").as_bytes()).await.unwrap();
        world.emulator.control().expire_credentials(Some(&id(generation - 1)));
    }
    timeout(2 * LIMIT, stream.read_exact(rest)).await.unwrap().unwrap();
    assert!(received == source_bytes(bytes), "not the bytes that were sent");
    drop(stream);
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert!(summary["resumes"].as_u64() >= Some(2), "{summary}");
    assert_eq!((&summary["sessions"], &summary["resets"]), (&json!(1), &json!(0)), "{summary}");
    // Ended through the API with the last keys.
    let terminations = world.emulator.journal().calls("TerminateSession");
    assert!(terminations.iter().all(Option::is_none), "{terminations:?}");
    world.finish().await;
}

/// A role's keys last an hour, as does the channel after which they are needed again.
#[tokio::test]
async fn role_is_assumed_anew_where_its_keys_do_not_last_to_the_next_close() {
    const ROLE: &str = "arn:aws:iam::123456789012:role/transfer";
    let world = World::with(|builder| {
        let role = Role::new(ROLE).policy(Policy::full(INSTANCE)).lifetime(Duration::from_secs(3));
        builder.role(role).channel_lifetime(Duration::from_secs(4))
    });
    let world = world.await;
    let bytes = 6_000_000;
    let server = TcpServer::source(bytes).await.unwrap();
    let role = json!({ "aws": { "assume_role": { "role_arn": ROLE } } });
    let tunnel = Tunnel::open(&world.config(server.port()).with(&role)).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut received = Vec::new();
    timeout(4 * LIMIT, stream.read_to_end(&mut received)).await.unwrap().unwrap();
    assert!(received == source_bytes(bytes), "not the bytes that were sent");
    drop(stream);
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!((&summary["sessions"], &summary["resets"]), (&json!(1), &json!(0)), "{summary}");
    let resumes = summary["resumes"].as_u64().unwrap();
    let assumed = world.emulator.journal().calls("AssumeRole").len() as u64;
    assert!(resumes >= 1 && assumed > resumes, "{assumed} for {resumes} resumes");
    world.finish().await;
}

/// Only input counts as activity, neither pings nor acknowledges (`sidecar/data-channel/docs/ssm-protocol.md`, section 13).
#[tokio::test]
async fn idle_tunnel_outlives_an_idle_time_out_shorter_than_the_shortest_there_is() {
    let idle = Duration::from_secs(30);
    let world = World::with(|builder| builder.idle_timeout(idle)).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    timeout(LIMIT, stream.read_exact(&mut [0; 5])).await.unwrap().unwrap();
    let journal = world.emulator.journal();
    let session = journal.sessions().remove(0);
    let before = journal.stats(&session);
    // For three times the idle time-out, only the sidecar itself sends anything.
    let asked = || async { journal.stats(&session).input_messages >= before.input_messages + 4 };
    assert!(eventually(4 * LIMIT, asked).await, "{:?}, {before:?}", journal.stats(&session));
    assert_eq!(journal.ending(&session), None, "ended while it carried a connection");
    assert!(journal.stats(&session).pings > before.pings, "the socket is not kept alive");
    stream.write_all(b"hello").await.unwrap();
    timeout(LIMIT, stream.read_exact(&mut [0; 5])).await.unwrap().unwrap();
    tunnel.close().await;
    assert_eq!(journal.sessions().len(), 1);
    assert_ne!(journal.ending(&session), Some(Ending::Idle));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_was_stopped_for_a_while_goes_on_where_it_was() {
    // As the session cannot be resumed, giving the path up too early would cost every connection.
    let world = World::start().await;
    let bytes = 3_000_000;
    let server = TcpServer::source(bytes).await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut busy = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut received = vec![0; bytes];
    let (first, rest) = received.split_at_mut(500_000);
    timeout(LIMIT, busy.read_exact(first)).await.unwrap().unwrap();
    suspended(&tunnel).await;
    timeout(LIMIT, busy.read_exact(rest)).await.unwrap().unwrap();
    assert!(received == source_bytes(bytes), "not the bytes that were sent");
    // The same again without traffic.
    suspended(&tunnel).await;
    let mut again = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    timeout(LIMIT, again.read_exact(&mut [0; 1_000])).await.unwrap().unwrap();
    drop((busy, again));
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!((&summary["sessions"], &summary["resumes"]), (&json!(1), &json!(0)), "{summary}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnel_carries_as_many_bytes_as_it_is_told_unchanged() {
    let bytes: usize = match env::var("LONG_LIFE_BYTES") {
        Ok(bytes) => bytes.parse().unwrap(),
        Err(_) => 40_000_000,
    };
    let world =
        World::with(|builder| builder.policy(Policy::full(INSTANCE)).pacing(Pacing::Unpaced));
    let world = world.await;
    let server = TcpServer::source(bytes).await.unwrap();
    // Compression would reduce the number of bytes.
    let change = json!({ "tunnel": { "compression": "off" } });
    let tunnel = world.tunnel_with(server.port(), &change).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let block = source_bytes(bytes.min(64 << 20));
    let (mut received, mut buffer) = (0, vec![0; 1 << 20]);
    while received < bytes {
        let read = timeout(LIMIT, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(read, 0, "ended after {received} bytes");
        for byte in buffer.get(..read).unwrap_or_default().chunks(4_096) {
            let at = received % SOURCE_REPEATS;
            assert!(block.get(at..at + byte.len()) == Some(byte), "differs behind byte {received}");
            received += byte.len();
        }
    }
    drop(stream);
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    assert_eq!(summary["bytes_from_target"], bytes, "{summary}");
    // One for each direction. sshd's own limit is far higher.
    let rekeys = world.sshd.log().unwrap().matches("set_newkeys: rekeying").count();
    assert!(rekeys / 2 >= bytes >> 30, "keys exchanged {rekeys} times for {bytes} bytes");
    println!("{bytes} bytes, {rekeys} new keys, {summary}");
    assert_eq!(summary["sessions"], 1, "{summary}");
    world.finish().await;
}

/// Stops the process for longer than a path may be silent, and continues it.
async fn suspended(tunnel: &Tunnel) {
    tunnel.sidecar.signal(Signal::SIGSTOP).unwrap();
    // The duration is part of the promise.
    sleep(Duration::from_secs(13)).await;
    tunnel.sidecar.signal(Signal::SIGCONT).unwrap();
}

/// Period of `TcpServer::source`, in bytes.
const SOURCE_REPEATS: usize = 1_000_003;
