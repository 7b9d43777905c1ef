//! A hostile agent on the instance, or an attacker who sends messages in its name.

use bytes::Bytes;
use tests::{
    emulator::forgery::{BINARY, damaged, frame_header, message},
    fixtures::{Sidecar, TcpServer},
};
use tokio::time::Instant;

use super::{Neighbour, Watch, assert_answers, finish_with_forged_messages};
use crate::world::{LIMIT, STOP, World, may_terminate};

/// What happens to the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    /// It continues in the same session.
    SameSession,
    /// It continues in a new session.
    NewSession,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_every_wrong_kind_end_the_tunnel_or_do_nothing_to_it() {
    let neighbour = Neighbour::start().await;
    let request = br#"{"AgentVersion":"3.3.987.0","RequestedClientActions":[]}"#;
    let acknowledge = |number: i64| {
        let text = format!(
            r#"{{"AcknowledgedMessageType":"input_stream_data","AcknowledgedMessageId":"{}","AcknowledgedMessageSequenceNumber":{number},"IsSequentialMessage":true}}"#,
            "00000000-0000-4000-8000-000000000000",
        );
        message(ACKNOWLEDGE, 0, 0, text.as_bytes())
    };
    let cases: [(&str, Vec<Bytes>, Then); 10] = [
        ("a few bad digests", of(40, |_| damaged(OUTPUT, AHEAD, DATA, b"x")), Then::SameSession),
        (
            "nothing but bad digests",
            of(5_000, |_| damaged(OUTPUT, AHEAD, DATA, b"x")),
            Then::NewSession,
        ),
        (
            "jumps of the number",
            of(5_000, |count| message(OUTPUT, i64::MAX - count, DATA, b"x")),
            Then::SameSession,
        ),
        (
            "numbers below zero",
            of(60, |count| message(OUTPUT, -1 - count, DATA, b"x")),
            Then::SameSession,
        ),
        (
            "everything but the next message",
            of(40_000, |count| message(OUTPUT, AHEAD + count, DATA, &[7; 1024])),
            Then::SameSession,
        ),
        (
            "acknowledges of what was never sent",
            of(20_000, |count| acknowledge(AHEAD + count)),
            Then::SameSession,
        ),
        (
            "acknowledges that are none",
            of(5_000, |_| message(ACKNOWLEDGE, 0, 0, b"{\"a\":")),
            Then::NewSession,
        ),
        (
            "the handshake once more",
            of(100, |count| message(OUTPUT, NEXT + count, HANDSHAKE, request)),
            Then::NewSession,
        ),
        (
            "a payload beyond what is taken",
            vec![frame_header(BINARY, 16 << 20).into()],
            Then::NewSession,
        ),
        (
            "ends upon ends",
            of(5_000, |_| message("channel_closed", 0, 0, br#"{"Output":"over"}"#)),
            Then::NewSession,
        ),
    ];
    for (name, frames, then) in cases {
        attacked(&neighbour, name, &frames, then).await;
    }
    neighbour.finish().await;
}

/// Injects `frames` as messages of a tunnel's agent.
async fn attacked(neighbour: &Neighbour, name: &str, frames: &[Bytes], then: Then) {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let watch = Watch::on(&sidecar);
    let journal = world.emulator.journal();
    let session = journal.sessions().remove(0);
    let control = world.emulator.control();
    let began = Instant::now();
    for bytes in frames.chunks(100).map(<[Bytes]>::concat) {
        if !control.inject(&session, bytes.into()).await {
            // The client has already disconnected.
            break;
        }
    }
    assert_answers(port, name).await;
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{name}: {}", exit.text());
    println!("{name}: {:?}", began.elapsed());
    let sessions = journal.sessions().len();
    assert_eq!(sessions > 1, then == Then::NewSession, "{name}: {sessions} sessions");
    // A sidecar that was told that its session has ended does not end it, so the forged end leaves
    // it open.
    control.terminate(&session, "");
    watch.assert_within(name, neighbour, 2 * STOP);
    finish_with_forged_messages(world).await;
}

fn of(count: i64, mut make: impl FnMut(i64) -> Bytes) -> Vec<Bytes> {
    (0..count).map(&mut make).collect()
}

const OUTPUT: &str = "output_stream_data";
const ACKNOWLEDGE: &str = "acknowledge";

/// Payload types.
const DATA: u32 = 1;
const HANDSHAKE: u32 = 5;

/// Sequence numbers that the agent reaches only much later.
const AHEAD: i64 = 1_000;

/// Sequence numbers that the agent reaches soon.
const NEXT: i64 = 1;
