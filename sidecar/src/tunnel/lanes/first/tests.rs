//! The attempts of the start, on the paused clock.

use std::iter::repeat_n;

use runner_protocol::ErrorCode;

use super::*;
use crate::{
    runtime::failure::ToFailure as _,
    tunnel::testing::{Refusal, World},
};

/// As OpenSSH 9.2 says it.
const FULL: Refusal = Refusal::HangsUp(b"Exceeded MaxStartups\r\n");

/// Opens the first lane within a minute; returns the outcome, how long it took, and how many sessions.
async fn open(world: &World) -> (Result<Result<Lane, LaneError>, Elapsed>, Duration, usize) {
    let config = world.lane_config("");
    let observer: LaneObserver = Arc::new(|_| ());
    let began = Instant::now();
    let outcome = open_first(&config, &observer, began + MINUTE).await;
    let took = began.elapsed();
    config.shutdown.stop();
    if let Ok(Ok(lane)) = &outcome {
        lane.terminate(Duration::from_secs(2)).await;
    }
    config.shutdown.finish(Duration::from_secs(5)).await.unwrap();
    let calls = world.take_calls();
    let started = calls.iter().filter(|call| *call == "start").count();
    // Each was ended by the service, since sshd had hung up, or is ended here.
    let ended = calls.iter().filter(|call| *call != "start").count();
    assert!(ended >= started, "{calls:?}");
    (outcome, took, started)
}

#[tokio::test(start_paused = true)]
async fn sshd_that_refuses_for_the_moment_is_asked_again_until_it_lets_in() {
    let world = World::default();
    world.refuse([FULL, Refusal::HangsUp(b""), Refusal::HangsUp(b"Not allowed at this time\r\n")]);
    let (outcome, took, sessions) = open(&world).await;
    assert!(matches!(outcome, Ok(Ok(_))), "{outcome:?}");
    assert_eq!(sessions, 4);
    assert!(took < Duration::from_secs(20), "took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn refusal_that_lasts_is_told_in_its_words_when_the_time_is_used() {
    let world = World::default();
    world.refuse(repeat_n(FULL, 100));
    let (outcome, took, sessions) = open(&world).await;
    let error = outcome.unwrap().unwrap_err();
    assert_eq!(error.code(), ErrorCode::SshBusy);
    assert!(error.to_string().ends_with(": `Exceeded MaxStartups`"), "{error}");
    assert!((5..20).contains(&sessions), "{sessions} sessions");
    assert!(took <= MINUTE && took > MINUTE * 9 / 10, "took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn attempt_that_outlasts_the_time_leaves_the_words_of_the_one_before() {
    let world = World::default();
    world.refuse([FULL, Refusal::Stuck(b"SSH-2.0-OpenSSH_9.2\r\n")]);
    let (outcome, took, _) = open(&world).await;
    assert_eq!(outcome.unwrap().unwrap_err().code(), ErrorCode::SshBusy);
    assert!(took >= MINUTE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn sshd_whose_process_ends_without_a_word_is_asked_three_times() {
    let world = World::default();
    world.refuse(repeat_n(Refusal::HangsUp(b"SSH-2.0-OpenSSH_9.2\r\n"), 100));
    let (outcome, _, sessions) = open(&world).await;
    let error = outcome.unwrap().unwrap_err();
    assert_eq!((error.code(), sessions), (ErrorCode::SshBusy, 3), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silence_and_other_protocols_are_no_sshd_that_refuses() {
    for (refusal, code, words) in [
        (Refusal::Stuck(b""), ErrorCode::SshUnreachable, "sshd does not answer"),
        (
            Refusal::HangsUp(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            ErrorCode::SshProtocol,
            "it sent `HTTP/1.1 400 Bad Request`",
        ),
        (Refusal::HangsUp(b"\x4a\0\0\0\x0a\x38\xff"), ErrorCode::SshProtocol, "it sent `J"),
    ] {
        let world = World::default();
        world.refuse([refusal]);
        let (outcome, _, sessions) = open(&world).await;
        let error = outcome.unwrap().unwrap_err();
        assert_eq!((error.code(), sessions), (code, 1), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

const MINUTE: Duration = Duration::from_mins(1);
