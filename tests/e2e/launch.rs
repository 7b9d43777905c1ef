//! A Rust runner starts sidecars with `runner_protocol::launch`, each in its own sandbox.

mod endings;
mod isolation;
mod network;

use std::{fs, process::Stdio, time::Duration};

use runner_protocol::{
    ErrorCode, ExitStatus, Line,
    launch::{Isolation, LaunchError, Launcher, NotReady, Sidecar, Stderr},
};
use serde_json::json;
use tests::fixtures::{Config, TcpServer, binary, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use crate::world::{LIMIT, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_events_metrics_and_the_end_are_types() {
    let _alone = alone().await;
    let world = World::start().await;
    let server = echo().await;
    let config = world.config(server.port()).with(&json!({ "events": true }));
    let mut sidecar = launch(&launcher().await, &config).await;
    let ready = timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    let mut phases = Vec::new();
    while phases.last().is_none_or(|phase| phase != "target") {
        if let Line::Phase(name) = timeout(LIMIT, sidecar.event()).await.unwrap().unwrap() {
            phases.push(name);
        }
    }
    assert_eq!(phases, ["start_session", "session", "ssh", "target"]);

    let mut client = TcpStream::connect(("127.0.0.1", ready.port)).await.unwrap();
    assert_eq!(ping(&mut client).await, *b"ping");
    let metrics = sidecar.metrics().unwrap();
    assert!(metrics.processes >= 1 && metrics.peak_bytes >= 1 << 20, "{metrics:?}");
    assert!(metrics.resident_bytes > 1 << 20, "{metrics:?}");
    // The kernel counts in hundredths of a second, and a start takes less than one.
    let mut bytes = 4;
    let busy = async {
        while sidecar.metrics().unwrap().cpu.is_zero() {
            ping(&mut client).await;
            bytes += 4;
        }
    };
    timeout(LIMIT, busy).await.expect("it used no processor time");

    let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.force), (Some(ExitStatus::Ok), None), "{ended:?}");
    let summary = ended.summary.unwrap();
    assert_eq!((summary.bytes_to_target, summary.bytes_from_target), (bytes, bytes));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_types_too() {
    let _alone = alone().await;
    let launcher = launcher().await;
    let config = Config::new("").with(&json!({ "aws": 1 }));
    let mut sidecar = launch(&launcher, &config).await;
    let failure = timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap_err();
    let NotReady::Failed(failure) = failure else { panic!("{failure:?}") };
    assert_eq!(failure.code, ErrorCode::ConfigInvalid);
    let ended = timeout(LIMIT, sidecar.wait()).await.unwrap().unwrap();
    assert_eq!(ended.status, Some(ExitStatus::DataErr), "{ended:?}");
    assert_eq!(ended.failure, Some(failure));

    // A program that is no sidecar exits without any output.
    let mut other = Launcher::new("/bin/false").launch("{}", Stderr::Discard).await.unwrap();
    let failure = timeout(LIMIT, other.ready()).await.unwrap().unwrap_err();
    let NotReady::Exited(ended) = failure else { panic!("{failure:?}") };
    assert_eq!((ended.status, ended.code), (None, Some(1)));

    // A missing program is an error of the start.
    let missing = Launcher::new("/nonexistent").launch("{}", Stderr::Discard).await.unwrap_err();
    let LaunchError::Start { cause, .. } = missing else { panic!("{missing:?}") };
    assert_eq!(cause.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_goes_where_it_is_sent_and_a_sink_that_stands_still_holds_nothing_up() {
    let _alone = alone().await;
    let world = World::start().await;
    let server = echo().await;
    let config = world.config(server.port());
    let loud = launcher().await.variable("RUST_LOG", "trace");

    let (sink, mut log) = tokio::io::duplex(1 << 20);
    let mut sidecar = loud.launch(&config.pretty(), sink_of(sink)).await.unwrap();
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
    assert_eq!(ended.status, Some(ExitStatus::Ok));
    let mut text = String::new();
    timeout(LIMIT, log.read_to_string(&mut text)).await.unwrap().unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.contains("\"closed\""), "{last}");

    let (sink, _never_read) = tokio::io::duplex(1);
    let mut sidecar = loud.launch(&config.pretty(), sink_of(sink)).await.unwrap();
    let ready = timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    for _ in 0..50 {
        let mut client = TcpStream::connect(("127.0.0.1", ready.port)).await.unwrap();
        assert_eq!(ping(&mut client).await, *b"ping");
    }
    let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.force), (Some(ExitStatus::Ok), None), "{ended:?}");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_of_a_runner_whose_stderr_is_a_file_goes_there() {
    let world = World::start().await;
    let server = echo().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let runner = Command::new(std::env::current_exe().unwrap())
        .env("SSM_SIDECAR_BIN", tokio::task::spawn_blocking(binary).await.unwrap().unwrap())
        .args(["--exact", "launch::runner_that_logs_to_a_file", "--ignored"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.reopen().unwrap())
        .kill_on_drop(true)
        .spawn();
    let mut runner = runner.unwrap();
    let config = format!("{}\n", world.config(server.port()).compact());
    runner.stdin.take().unwrap().write_all(config.as_bytes()).await.unwrap();
    let ended = timeout(2 * LIMIT, runner.wait_with_output()).await.unwrap().unwrap();
    let logged = fs::read_to_string(log.path()).unwrap();
    assert!(ended.status.success(), "{} {logged}", String::from_utf8_lossy(&ended.stdout));
    assert!(logged.contains("\"ready\"") && logged.contains("\"closed\""), "{logged}");
    world.finish().await;
}

/// The runner of the test above, in its own process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a helper of another test, whose stderr is a file"]
async fn runner_that_logs_to_a_file() {
    let config = std::io::stdin().lines().next().unwrap().unwrap();
    let mut sidecar = launcher().await.launch(&config, Stderr::Inherit).await.unwrap();
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
    assert_eq!((ended.status, ended.force), (Some(ExitStatus::Ok), None), "{ended:?}");
}

fn sink_of(sink: tokio::io::DuplexStream) -> Stderr {
    Stderr::Sink(Box::new(sink))
}

/// These tests inspect all children of the launcher's thread, so they run one at a time.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A launcher for the sidecar under test, with every protection that is available.
async fn launcher() -> Launcher {
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    Launcher::new(program).isolation(Isolation::BestEffort)
}

async fn launch(launcher: &Launcher, config: &Config) -> Sidecar {
    timeout(LIMIT, launcher.launch(&config.pretty(), Stderr::Discard)).await.unwrap().unwrap()
}

/// A sidecar that waits for the rest of its config.
async fn idle(launcher: &Launcher) -> Sidecar {
    timeout(LIMIT, launcher.launch("{", Stderr::Discard)).await.unwrap().unwrap()
}

/// Processes that the launcher's thread has started and that have not been waited for.
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let keepers = threads.filter(|thread| {
        // A thread that ends meanwhile is not the launcher's.
        fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == "sidecars")
    });
    let lists = keepers.map(|keeper| fs::read_to_string(keeper.join("children")).unwrap());
    lists
        .flat_map(|list| {
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

/// Asserts that every process started has ended and been waited for.
async fn assert_no_children() {
    let gone = eventually(LIMIT, || async { children().is_empty() }).await;
    assert!(gone, "left: {:?}", children());
}

async fn echo() -> TcpServer {
    let echo = TcpServer::start(|mut stream: TcpStream| async move {
        let (mut input, mut output) = stream.split();
        tokio::io::copy(&mut input, &mut output).await.map(drop)
    });
    echo.await.unwrap()
}

async fn ping(stream: &mut TcpStream) -> [u8; 4] {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    answer
}

/// Long enough for a program on a loaded machine to reach the point at which it waits.
const SETTLE: Duration = Duration::from_secs(10);
