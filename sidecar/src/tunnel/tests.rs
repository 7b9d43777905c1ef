//! The tunnel from its first session to its last, on the paused clock: minutes and hours pass in milliseconds.

mod silent;
mod together;

use std::{
    future::{pending, poll_fn},
    net::SocketAddr,
    time::Duration,
};

use runner_protocol::ErrorCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    testing::{Dialling, PathFault, World},
    *,
};
use crate::{
    ssh::{Channel, ChannelError},
    tunnel::lanes::{Connection, LaneError},
};

/// A pool in a world, with its first lane.
struct Started {
    world: World,
    config: Arc<LaneConfig>,
    pool: Arc<LanePool>,
}

impl Started {
    async fn new(world: World, rest: &str) -> Self {
        let started = Self::new_beside(world, rest).await;
        assert_eq!(started.world.take_calls(), ["start"]);
        started
    }

    /// As [`new`](Self::new), in a world with others.
    async fn new_beside(world: World, rest: &str) -> Self {
        let config = world.lane_config(rest);
        let observer: LaneObserver = Arc::new(|_| ());
        let lane = Lane::open(&config, &observer).await.unwrap();
        let pool = Arc::new(LanePool::new(Arc::clone(&config)));
        pool.add_first(&Arc::new(lane));
        Self { world, config, pool }
    }

    /// Supervises the lanes in the background; returns how that ends.
    fn supervise(&self) -> oneshot::Receiver<LaneError> {
        let (sender, receiver) = oneshot::channel();
        let pool = Arc::clone(&self.pool);
        self.config.shutdown.spawn(async move {
            drop(sender.send(pool.supervise(|_| ()).await));
        });
        receiver
    }

    async fn connect(&self) -> Connection {
        timeout(LIMIT, self.pool.open(ORIGINATOR, LIMIT, pending())).await.unwrap().unwrap()
    }

    /// Ends everything as the tunnel does; returns how long it took.
    async fn stop(&self) -> Duration {
        let began = Instant::now();
        self.config.shutdown.stop();
        self.pool.terminate(stop::TERMINATE_FLAG).await;
        self.config.shutdown.finish(LIMIT).await.unwrap();
        began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn resumed_session_keeps_its_connections() {
    let started = Started::new(World::default(), "").await;
    let channel = started.connect().await;
    assert_eq!(echo(&channel, b"before").await.unwrap(), b"before");
    started.world.set_path("s-1", PathFault::Cut);
    assert_eq!(echo(&channel, b"after").await.unwrap(), b"after");
    assert_eq!(started.world.take_calls(), ["resume s-1"]);
    assert_eq!(started.pool.totals().resumes, 1);
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn path_that_falls_silent_is_broken_after_nine_seconds_and_resumed() {
    let started = Started::new(World::default(), "").await;
    let channel = started.connect().await;
    assert_eq!(echo(&channel, b"before").await.unwrap(), b"before");
    started.world.set_path("s-1", PathFault::Silent);
    let began = Instant::now();
    assert_eq!(echo(&channel, b"after").await.unwrap(), b"after");
    let silence = began.elapsed().as_secs();
    assert!((8..=10).contains(&silence), "resumed after {silence} s");
    assert_eq!(started.world.take_calls(), ["resume s-1"]);
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn connection_that_begins_while_the_session_is_resumed_waits_for_it() {
    let started = Started::new(World::default(), "").await;
    started.world.set_dialling(Dialling::Refused);
    started.world.set_path("s-1", PathFault::Cut);
    let world = started.world.clone();
    let recovery = async move {
        sleep(Duration::from_secs(20)).await;
        world.set_dialling(Dialling::Connects);
    };
    let (channel, ()) = tokio::join!(started.connect(), recovery);
    assert_eq!(echo(&channel, b"patient").await.unwrap(), b"patient");
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn session_that_may_not_be_resumed_is_replaced_and_its_connections_are_cut() {
    let started = Started::new(World::default(), "").await;
    started.world.deny_resume();
    let _supervised = started.supervise();
    let channel = started.connect().await;
    assert_eq!(echo(&channel, b"before").await.unwrap(), b"before");
    started.world.set_path("s-1", PathFault::Cut);
    let error = echo(&channel, b"after").await.unwrap_err();
    assert!(matches!(error, ChannelError::Lost(_)), "{error}");

    let next = started.connect().await;
    assert_eq!(echo(&next, b"replaced").await.unwrap(), b"replaced");
    let calls = started.world.take_calls();
    assert!(calls.contains(&"start".to_owned()), "{calls:?}");
    assert!(calls.contains(&"terminate s-1".to_owned()), "{calls:?}");
    started.stop().await;
    assert_eq!(started.pool.totals().sessions, 2);
}

#[tokio::test(start_paused = true)]
async fn lane_is_replaced_at_fifty_minutes_and_drains() {
    let world = World::default();
    world.deny_resume();
    let started = Started::new(world, "").await;
    let _supervised = started.supervise();
    let old = started.connect().await;
    sleep(Duration::from_mins(49)).await;
    assert!(!started.world.take_calls().contains(&"start".to_owned()));
    sleep(Duration::from_mins(2)).await;
    assert!(started.world.take_calls().contains(&"start".to_owned()));

    let new = started.connect().await;
    assert_eq!(echo(&old, b"draining").await.unwrap(), b"draining");
    assert_eq!(echo(&new, b"on the next").await.unwrap(), b"on the next");
    assert!(!started.world.was_flagged("s-1"));
    drop(old);
    wait_until(|| started.world.was_flagged("s-1")).await;
    assert!(!started.world.was_flagged("s-2"));
    assert_eq!(echo(&new, b"and goes on").await.unwrap(), b"and goes on");
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn draining_lane_keeps_its_connections_until_the_service_closes_its_channel() {
    let world = World::default();
    world.deny_resume();
    let started = Started::new(world, "").await;
    let _supervised = started.supervise();
    let old = started.connect().await;
    sleep(Duration::from_mins(59)).await;
    let new = started.connect().await;
    for _ in 0..3 {
        assert_eq!(echo(&old, b"draining").await.unwrap(), b"draining");
        sleep(Duration::from_hours(1)).await;
    }
    assert!(!started.world.was_flagged("s-1"));
    started.world.take_calls();
    started.world.set_path("s-1", PathFault::Cut);
    echo(&old, b"closed").await.unwrap_err();
    assert_eq!(echo(&new, b"on the next").await.unwrap(), b"on the next");
    let ended = || started.world.take_calls().contains(&"terminate s-1".to_owned());
    wait_until(ended).await;
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn outage_beyond_reconnect_s_is_session_lost() {
    let started = Started::new(World::default(), r#", "timeouts": {"reconnect_s": 60}"#).await;
    let supervised = started.supervise();
    started.world.deny_resume();
    started.world.set_dialling(Dialling::Refused);
    let began = Instant::now();
    started.world.set_path("s-1", PathFault::Cut);
    let error = timeout(LIMIT, supervised).await.unwrap().unwrap();
    let outage = began.elapsed().as_secs();
    // It ends before an attempt that would begin after the time.
    assert!((45..=61).contains(&outage), "given up after {outage} s");
    assert_eq!(error.code(), ErrorCode::SessionLost, "{error}");
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stop_ends_every_session_by_its_flag() {
    let started = Started::new(World::default(), r#", "tunnel": {"sessions": 3}"#).await;
    let _supervised = started.supervise();
    let mut channels = Vec::new();
    for lanes in 1..=3 {
        channels.push(started.connect().await);
        wait_until(|| started.pool.up() >= lanes).await;
    }
    wait_until(|| started.pool.up() == 3).await;
    let took = started.stop().await;
    assert!(took < stop::TERMINATE_FLAG, "{took:?}");
    for session in ["s-1", "s-2", "s-3"] {
        assert!(started.world.was_flagged(session), "{session}");
    }
}

#[tokio::test(start_paused = true)]
async fn stop_with_a_silent_gateway_ends_the_session_by_api_within_the_budget() {
    let started = Started::new(World::default(), "").await;
    started.world.set_path("s-1", PathFault::Silent);
    let took = started.stop().await;
    assert!(took >= stop::TERMINATE_FLAG && took <= stop::WORKER, "{took:?}");
    assert_eq!(started.world.take_calls(), ["terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn stop_while_the_session_is_resumed_ends_it_by_api() {
    let started = Started::new(World::default(), "").await;
    started.world.set_dialling(Dialling::Silent);
    started.world.set_path("s-1", PathFault::Cut);
    wait_until(|| started.pool.up() == 0).await;
    started.world.take_calls();
    let took = started.stop().await;
    assert!(took <= stop::WORKER, "{took:?}");
    assert_eq!(started.world.take_calls(), ["terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn opening_that_is_given_up_leaves_no_session() {
    let world = World::default();
    world.set_dialling(Dialling::Silent);
    let config = world.lane_config("");
    let observer: LaneObserver = Arc::new(|_| ());
    assert!(timeout(Duration::from_secs(1), Lane::open(&config, &observer)).await.is_err());
    config.shutdown.finish(LIMIT).await.unwrap();
    assert_eq!(world.take_calls(), ["start", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_stalls_no_other() {
    let started = Started::new(World::default(), "").await;
    let stats = Arc::new(ConnectionStats::default());
    let (slow, quick) = (started.connect().await, started.connect().await);
    let (mut stuck, tunnel_end) = duplex(16 * 1024);
    let counted = Arc::clone(&stats);
    started.config.shutdown.spawn(async move {
        drop(forward::relay(split(tunnel_end), &slow, &counted).await);
    });
    // The server holds back the echo, which this client does not read.
    timeout(LIMIT, stuck.write_all(&vec![7; SLOW_BYTES])).await.unwrap().unwrap();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(echo(&quick, b"quick").await.unwrap(), b"quick");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    // Nothing was lost: it gets all of its echo once it reads.
    let read = async {
        let mut buffer = vec![0; SLOW_BYTES];
        stuck.read_exact(&mut buffer).await.unwrap();
        assert!(buffer.iter().all(|byte| *byte == 7));
    };
    timeout(LIMIT, read).await.unwrap();
    started.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tunnel_reports_its_phases_and_ends_its_session_with_the_lease() {
    let world = World::default();
    let (events, outcome) = run_tunnel(&world, "", async |events: &Recorder| {
        events.ready.notified().await;
        sleep(Duration::from_mins(10)).await;
        StopReason::StdinClosed
    })
    .await;
    outcome.unwrap();
    let seen = events.lines.lock().join(" ");
    assert_eq!(seen, "start_session session ssh host_key target tunnel ready closed");
    assert!(world.was_flagged("s-1"));
}

#[tokio::test(start_paused = true)]
async fn tunnel_whose_target_refuses_fails_and_ends_its_session() {
    let world = World::default();
    let (_, outcome) = run_tunnel(&world, "refused", async |_: &Recorder| pending().await).await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::TargetUnreachable);
    assert!(world.was_flagged("s-1"));
}

#[tokio::test(start_paused = true)]
async fn tunnel_that_is_not_ready_in_time_names_the_phase_and_ends_its_session() {
    let world = World::default();
    world.set_dialling(Dialling::Silent);
    let (_, outcome) = run_tunnel(&world, "", async |_: &Recorder| pending().await).await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::TimeoutSession);
    assert_eq!(world.take_calls(), ["start", "terminate s-1"]);
}

/// Runs a tunnel to its end; `target` "refused" is one at which nothing listens.
async fn run_tunnel(
    world: &World,
    target: &str,
    stop: impl AsyncFnOnce(&Recorder) -> StopReason,
) -> (Arc<Recorder>, Result<(), Failure>) {
    let mut settings = World::settings("");
    if target == "refused" {
        settings.target.port = testing::REFUSED_PORT;
    }
    run_settings(world, settings, stop).await
}

async fn run_settings(
    world: &World,
    settings: Settings,
    stop: impl AsyncFnOnce(&Recorder) -> StopReason,
) -> (Arc<Recorder>, Result<(), Failure>) {
    let events = Arc::new(Recorder::default());
    let recorder = Arc::clone(&events);
    let on_begin = move |phase: Phase| recorder.line(phase.name());
    let options = TunnelOptions {
        received: Instant::now(),
        listener: Bound {
            socket: {
                let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            },
            sock_diag: None,
        },
        health: None,
    };
    let dependencies = Dependencies {
        api: Arc::new(world.clone()),
        connector: world.connector(),
        panics: Panics::default(),
        dropped_lines: DroppedLines::default(),
    };
    let progress = Progress::new(Instant::now(), on_begin);
    let outcome =
        run(settings, options, dependencies, progress, Arc::clone(&events), stop(&events)).await;
    (events, outcome)
}

/// The words that a runner would read.
#[derive(Debug, Default)]
struct Recorder {
    lines: parking_lot::Mutex<Vec<String>>,
    ready: tokio::sync::Notify,
}

impl Recorder {
    fn line(&self, word: &str) {
        self.lines.lock().push(word.to_owned());
    }
}

impl Events for Arc<Recorder> {
    fn phase(&self, _: Phase) {}

    fn ready(&self, _: u16) {
        self.line("ready");
        self.ready.notify_one();
    }

    fn event(&self, event: Event) {
        self.line(match event {
            Event::HostKey(_) => "host_key",
            Event::Degraded(_) => "degraded",
            Event::Recovered => "recovered",
            Event::Closed(_) => "closed",
        });
    }
}

/// Writes to a target that echoes, and reads the echo.
async fn echo(channel: &Channel, text: &[u8]) -> Result<Vec<u8>, ChannelError> {
    let exchange = async {
        let mut rest = text;
        while !rest.is_empty() {
            let written = poll_fn(|context| channel.poll_write(context, rest)).await?;
            rest = &rest[written..];
        }
        let mut read = Vec::new();
        while read.len() < text.len() {
            let bytes = poll_fn(|context| channel.poll_read(context)).await?.expect("no EOF");
            channel.consumed(bytes.len());
            read.extend_from_slice(&bytes);
        }
        Ok(read)
    };
    timeout(LIMIT, exchange).await.expect("the echo did not come")
}

async fn wait_until(condition: impl Fn() -> bool) {
    let polling = async {
        while !condition() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, polling).await.expect("the condition did not come true");
}

const ORIGINATOR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 50_000);

/// More than a channel's window.
const SLOW_BYTES: usize = 3 << 20;

/// Virtual time, for what must come.
const LIMIT: Duration = Duration::from_mins(10);
