//! Ends of a lane that do not answer while its WebSocket is up.

use tokio::sync::mpsc;

use super::*;
use crate::tunnel::lanes::PathChange;

/// Supervises the lanes; returns what is reported to the runner, with the time since now.
fn reports(started: &Started) -> mpsc::Receiver<(Duration, PathChange)> {
    let (sender, receiver) = mpsc::channel(16);
    let (pool, began) = (Arc::clone(&started.pool), Instant::now());
    started.config.shutdown.spawn(async move {
        let report = |change| sender.try_send((began.elapsed(), change)).unwrap_or(());
        drop(pool.supervise(report).await);
    });
    receiver
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn silence_is_noticed_within_10_seconds_and_new_connections_go_elsewhere() {
    for fault in [PathFault::AgentGone, PathFault::SshdStuck] {
        let started = Started::new(World::default(), "").await;
        let old = started.connect().await;
        assert_eq!(echo(&old, b"before").await.unwrap(), b"before");
        let mut reports = reports(&started);
        started.world.set_path("s-1", fault);
        let waiting = timeout(20 * SECOND, echo(&old, b"while it is gone")).await;
        assert!(waiting.is_err(), "{fault:?}");
        let (degraded, _) = reports.recv().await.unwrap();
        let (recovered, change) = reports.recv().await.unwrap();
        assert!(degraded <= 10 * SECOND, "{fault:?}: {degraded:?}");
        assert!(recovered <= 15 * SECOND && change == PathChange::Recovered, "{recovered:?}");
        let new = started.connect().await;
        assert_eq!(echo(&new, b"on the next").await.unwrap(), b"on the next");
        assert_eq!(started.world.take_calls(), ["start"], "{fault:?}");

        started.world.set_path("s-1", PathFault::None);
        let late = poll_fn(|context| old.poll_read(context)).await.unwrap();
        assert_eq!(&*late.unwrap(), b"while it is gone", "{fault:?}: the old connection goes on");
        started.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_comes_while_no_lane_answers_waits_for_one() {
    for sessions in [1, 2] {
        let rest = format!(r#", "tunnel": {{"sessions": {sessions}}}"#);
        let started = Started::new(World::default(), &rest).await;
        let mut reports = reports(&started);
        started.world.set_start_fails(true);
        started.world.set_path("s-1", PathFault::AgentGone);
        assert!(matches!(reports.recv().await.unwrap().1, PathChange::Degraded(_)));
        let connecting = started.connect();
        tokio::pin!(connecting);
        assert!(timeout(10 * SECOND, &mut connecting).await.is_err(), "{sessions} sessions");
        started.world.set_start_fails(false);
        let channel = connecting.await;
        assert_eq!(echo(&channel, b"on the next").await.unwrap(), b"on the next");
        started.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_of_an_idle_lane_is_noticed_within_30_seconds() {
    for fault in [PathFault::AgentGone, PathFault::SshdStuck] {
        let started = Started::new(World::default(), "").await;
        sleep(60 * SECOND).await;
        let mut reports = reports(&started);
        started.world.set_path("s-1", fault);
        let (degraded, _) = reports.recv().await.unwrap();
        assert!(degraded <= 30 * SECOND, "{fault:?}: {degraded:?}");
        assert_eq!(reports.recv().await.unwrap().1, PathChange::Recovered);
        // It carries nothing, so it is not kept.
        wait_until(|| started.world.take_calls().contains(&"terminate s-1".to_owned())).await;
        started.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_lane_whose_agent_is_gone_for_good_end_with_the_time_of_an_outage() {
    let started = Started::new(World::default(), r#", "timeouts": {"reconnect_s": 60}"#).await;
    let _supervised = started.supervise();
    let old = started.connect().await;
    started.world.set_path("s-1", PathFault::AgentGone);
    let began = Instant::now();
    let error = timeout(LIMIT, echo(&old, b"while it is gone")).await.unwrap().unwrap_err();
    assert!(matches!(error, ChannelError::Lost(_)), "{error}");
    let took = began.elapsed().as_secs();
    assert!((55..=65).contains(&took), "reset after {took} s");
    started.stop().await;
}
