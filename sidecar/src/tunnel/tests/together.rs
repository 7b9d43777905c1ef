//! Connections that arrive together, on an agent that begins sessions a second apart.

use futures_util::future::join_all;

use super::*;
use crate::tunnel::lanes::{ClientEnd, TargetConnectError};

/// A tunnel with this many sessions, supervised, whose agent begins sessions `spacing` apart.
async fn started(sessions: usize, spacing: Duration) -> Started {
    let world = World::default();
    world.space_starts(spacing);
    let rest = format!(r#", "tunnel": {{"sessions": {sessions}}}"#);
    let started = Started::new(world, &rest).await;
    drop(started.supervise());
    started
}

impl Started {
    /// Connects and returns the connection with the time that it took.
    async fn connect_timed(&self) -> (Connection, Duration) {
        let began = Instant::now();
        (self.connect().await, began.elapsed())
    }
}

/// Sessions that were started, of all calls.
fn starts(world: &World) -> u64 {
    world.take_calls().iter().map(|call| u64::from(call == "start")).sum()
}

#[tokio::test(start_paused = true)]
async fn eight_connections_right_after_the_start_get_a_lane_each() {
    let started = started(8, SECOND).await;
    let connected = join_all((0..8).map(|_| started.connect_timed())).await;
    for (number, (connection, took)) in (1..).zip(&connected) {
        assert_eq!(connection.lane(), number);
        let seconds = took.as_secs();
        assert!(seconds < number && seconds + 2 >= number, "connection {number}: {took:?}");
        assert_eq!(echo(connection, b"hello").await.unwrap(), b"hello");
    }
    assert_eq!(starts(&started.world), 7, "and the first");
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connections_one_after_another_open_nothing() {
    let started = started(8, SECOND).await;
    for _ in 0..5 {
        let (connection, took) = started.connect_timed().await;
        assert_eq!((connection.lane(), took.as_millis() < 100), (1, true));
        assert_eq!(echo(&connection, b"hello").await.unwrap(), b"hello");
        // As a client that closes its connection and opens the next.
        connection.finish();
        started.config.shutdown.spawn(async move {
            sleep(SECOND).await;
            drop(connection);
        });
    }
    sleep(Duration::from_mins(1)).await;
    assert_eq!(starts(&started.world), 0);
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn agent_that_starts_no_session_holds_a_connection_up_for_a_bounded_time() {
    let started = started(3, Duration::from_hours(1)).await;
    let connected = join_all((0..3).map(|_| started.connect_timed())).await;
    for (connection, took) in &connected {
        assert_eq!(connection.lane(), 1);
        assert!(took.as_millis() <= 3_100, "{took:?}");
    }
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn refused_session_makes_connections_share_at_once() {
    let started = started(8, SECOND).await;
    started.world.set_start_fails(true);
    let connected = join_all((0..8).map(|_| started.connect_timed())).await;
    for (connection, took) in &connected {
        assert_eq!(connection.lane(), 1);
        assert!(*took < SECOND, "{took:?}");
    }
    assert_eq!(starts(&started.world), 1, "one attempt for all");
    sleep(Duration::from_mins(5)).await;
    assert_eq!(starts(&started.world), 0, "none before a connection calls for it");
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn time_to_connect_does_not_count_while_a_connection_waits_for_its_lane() {
    let started = started(8, SECOND).await;
    let open = || started.pool.open(ORIGINATOR, SECOND / 2, pending());
    let connected = join_all((0..8).map(|_| open())).await;
    for (number, connection) in (1..).zip(connected) {
        assert_eq!(connection.unwrap().lane(), number);
    }
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn client_that_leaves_while_it_waits_gives_up_its_lane() {
    let started = started(8, SECOND).await;
    let leaves = |client_end| async move {
        sleep(SECOND / 10).await;
        client_end
    };
    let first = started.connect().await;
    let open = |client_end| started.pool.open(ORIGINATOR, LIMIT, leaves(client_end));
    let (left, finished, next) =
        tokio::join!(open(ClientEnd::Left), open(ClientEnd::Finished), started.connect());
    assert!(matches!(left, Err(TargetConnectError::ClientLeft)), "{left:?}");
    assert_eq!(finished.unwrap().lane(), first.lane(), "it needs no lane of its own");
    assert_eq!(next.lane(), 2);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(starts(&started.world), 1);
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fleet_of_thirty_is_ready_in_time_and_opens_one_session_each() {
    for sessions in [1, 8] {
        let world = World::default();
        world.space_starts(SECOND);
        let rest = format!(r#", "tunnel": {{"sessions": {sessions}}}"#);
        let began = Instant::now();
        let jobs = (0..FLEET).map(|_| {
            let (world, settings) = (world.clone(), World::settings(&rest));
            async move {
                let mut ready = None;
                let (_, outcome) = run_settings(&world, settings, async |events: &Recorder| {
                    events.ready.notified().await;
                    ready = Some(began.elapsed());
                    sleep(Duration::from_mins(2)).await;
                    StopReason::StdinClosed
                })
                .await;
                outcome.unwrap();
                ready.unwrap()
            }
        });
        let last = join_all(jobs).await.into_iter().max().unwrap();
        // The agent's own pace, and far from the 60 s of `timeouts.ready_s`.
        assert!(last < Duration::from_secs(FLEET + 1), "{sessions} sessions: {last:?}");
        assert_eq!(starts(&world), FLEET);
    }
}

#[tokio::test(start_paused = true)]
async fn fleet_whose_connections_arrive_together_asks_for_one_session_each_at_a_time() {
    let world = World::default();
    let jobs =
        (0..FLEET).map(|_| Started::new_beside(world.clone(), r#", "tunnel": {"sessions": 8}"#));
    let jobs = join_all(jobs).await;
    world.space_starts(SECOND);
    world.take_calls();
    for job in &jobs {
        drop(job.supervise());
    }
    let bursts = jobs.iter().flat_map(|job| (0..8).map(move |_| job.connect_timed()));
    let watch = async {
        let mut busiest = Duration::ZERO;
        for _ in 0..600 {
            sleep(SECOND / 10).await;
            busiest = busiest.max(world.agent_busy_for());
        }
        busiest
    };
    let (connected, busiest) = tokio::join!(join_all(bursts), watch);
    for (_, took) in &connected {
        assert!(took.as_millis() <= 8_100, "{took:?}");
    }
    assert!(busiest <= Duration::from_secs(FLEET), "the agent has a queue of {busiest:?}");
    join_all(jobs.iter().map(Started::stop)).await;
}

const SECOND: Duration = Duration::from_secs(1);

/// Jobs on one agent.
const FLEET: u64 = 30;
