//! However and whenever the sidecar is asked to stop, it exits within five seconds with status 0, reports
//! no failure, and leaves no session behind.

use std::{
    io::{BufRead as _, BufReader},
    os::fd::OwnedFd,
    process::Stdio,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::json;
use tests::{
    emulator::{Action, AgentSettings, ApiFault, Failure as Failing, Plan},
    fixtures::{Config, Exit, FullQueue, KeyPair, KeyType, Sidecar, TcpServer, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::world::{Failure, LIMIT, STOP, Tunnel, World, may_terminate};

/// The ways to stop a sidecar.
pub(crate) const WAYS: [Way; 5] = [
    Way::EndOfInput,
    Way::Signal(Signal::SIGTERM),
    Way::Signal(Signal::SIGINT),
    Way::Signal(Signal::SIGHUP),
    Way::Signal(Signal::SIGQUIT),
];

/// A way to stop a sidecar.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    EndOfInput,
    Signal(Signal),
}

#[tokio::test]
async fn signals_before_the_config_is_complete() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
        sidecar.write(br#"{"name": "half"#).await.unwrap();
        // A signal before the handler is installed would kill the process.
        until_listening(&sidecar).await;
        sidecar.signal(signal).unwrap();
        let exit = sidecar.exit(STOP).await.unwrap();
        assert_ended_well(&exit, &format!("{signal} before the config"));
        assert!(exit.stdout.is_empty(), "{}", exit.text());
    }
}

#[tokio::test]
async fn end_of_input_before_the_config_is_complete_is_an_invalid_config() {
    let mut sidecar = Sidecar::spawn_silent(|_| ()).await.unwrap();
    sidecar.write(br#"{"name": "half"#).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    let failure =
        Failure { code: "config.invalid", status: 65, phase: "config", blame: "customer" };
    failure.assert("half_a_document", &exit, &Config::new("half"));
}

#[tokio::test]
async fn while_a_key_that_takes_long_to_open_is_opened() {
    // About six seconds, more than a stop may take.
    let key = KeyPair::generate(KeyType::Ed25519).unwrap();
    let slow = tokio::task::spawn_blocking(move || key.encrypt_slowly("correct horse", 1000));
    let slow = slow.await.unwrap().unwrap();
    let key =
        json!({ "ssh_private_key": slow.text, "ssh_private_key_passphrase": slow.passphrase });
    for way in [Way::EndOfInput, Way::Signal(Signal::SIGTERM)] {
        let world = World::start().await;
        let config = world.config(5432).with(&json!({ "bastion": key }));
        let sidecar = Sidecar::spawn(&config).await.unwrap();
        let is_busy =
            eventually(LIMIT, || async { sidecar.worker().is_ok_and(|w| cpu_ticks(w) > 20) });
        assert!(is_busy.await, "the key is not being decrypted");
        let exit = stop(sidecar, way).await;
        assert_ended_well(&exit, &format!("{way:?} while the key is opened"));
        assert!(world.emulator.journal().sessions().is_empty());
        world.finish().await;
    }
}

/// Processor time in hundredths of a second.
fn cpu_ticks(process: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name, in parentheses, is the second field; user time is the fourteenth.
    let (_, behind) = stat.rsplit_once(") ").unwrap();
    behind.split(' ').nth(11).unwrap().parse().unwrap()
}

#[tokio::test]
async fn while_start_session_is_under_way() {
    for way in WAYS {
        // The response arrives after the stop: the new session must be noticed and ended
        // nevertheless.
        let late = ApiFault::new(Failing::Delayed(Duration::from_secs(1))).on(Action::StartSession);
        let plan = Plan::default().api(late);
        let world = World::with(|builder| builder.policy(may_terminate()).faults(plan)).await;
        stop_in_phase(&world.config(5432), "start_session", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn while_start_session_is_under_way_with_permission_to_start_only() {
    for way in WAYS {
        let late = ApiFault::new(Failing::Delayed(Duration::from_secs(1))).on(Action::StartSession);
        let world = World::with(|builder| builder.faults(Plan::default().api(late))).await;
        stop_in_phase(&world.config(5432), "start_session", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn while_the_handshake_is_awaited() {
    for way in WAYS {
        // The agent's first message arrives later than any test waits.
        let agent = AgentSettings::default().start_delay(Duration::from_mins(1));
        let world = World::with(|builder| builder.policy(may_terminate()).agent(agent)).await;
        stop_in_phase(&world.config(5432), "session", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn while_the_websocket_is_opening() {
    // Accepts connections and sends nothing: the upgrade is never answered.
    let gateway = TcpServer::deaf().await.unwrap();
    let endpoint = format!("ws://127.0.0.1:{}", gateway.port());
    for way in WAYS {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let config =
            world.config(5432).with(&json!({ "aws": { "stream_endpoint_url": endpoint } }));
        stop_in_phase(&config, "session", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn while_ssh_is_negotiating() {
    let bastion = TcpServer::banner(b"SSH-2.0-silent\r\n").await.unwrap();
    for way in WAYS {
        let world = World::start().await;
        let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": bastion.port() } }));
        stop_in_phase(&config, "ssh", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn while_the_target_is_being_reached() {
    let target = FullQueue::start().await.unwrap();
    for way in WAYS {
        let world = World::start().await;
        stop_in_phase(&world.config(target.port()), "target", way).await;
        world.finish().await;
    }
}

#[tokio::test]
async fn with_connections_open_and_busy() {
    let server = TcpServer::source(100 << 20).await.unwrap();
    for way in WAYS {
        let world = World::start().await;
        let tunnel = world.tunnel(server.port()).await;
        let mut streams = Vec::new();
        for _ in 0..4 {
            let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
            let mut first = [0; 1024];
            timeout(LIMIT, stream.read_exact(&mut first)).await.unwrap().unwrap();
            streams.push(stream);
        }
        let exit = stop(tunnel.sidecar, way).await;
        assert_ended_well(&exit, &format!("{way:?} with open connections"));
        for mut stream in streams {
            let mut rest = Vec::new();
            let end = timeout(LIMIT, stream.read_to_end(&mut rest)).await.unwrap();
            assert!(end.is_err(), "cut off after {} bytes, but it looks whole", rest.len());
        }
        world.finish().await;
    }
}

#[tokio::test]
async fn idle_and_ready() {
    let server = TcpServer::echo().await.unwrap();
    for way in WAYS {
        let world = World::start().await;
        let tunnel = world.tunnel(server.port()).await;
        let exit = stop(tunnel.sidecar, way).await;
        assert_ended_well(&exit, &format!("{way:?} when idle"));
        assert_eq!(exit.stdout.len(), 1, "only `ready`; {}", exit.text());
        world.finish().await;
    }
}

#[tokio::test]
async fn second_signal_changes_nothing() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let mut tunnel = world.tunnel(server.port()).await;
    tunnel.sidecar.close_stdin();
    // It may exit between the two signals, which also keeps the promise.
    drop(tunnel.sidecar.signal(Signal::SIGTERM));
    drop(tunnel.sidecar.signal(Signal::SIGINT));
    let exit = tunnel.sidecar.exit(STOP).await.unwrap();
    assert_ended_well(&exit, "stopped three times");
    world.finish().await;
}

#[tokio::test]
async fn port_is_free_again_afterwards() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let first = world.tunnel(server.port()).await;
    let port = first.port;
    first.close().await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the port is still open");
    let config = world.config(server.port()).with(&json!({ "listen": { "port": port } }));
    let second = Tunnel::open(&config).await;
    assert_eq!(second.port, port);
    second.close().await;
    world.finish().await;
}

#[tokio::test]
async fn runner_that_is_killed_ends_the_lease() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&config, world.config(server.port()).compact()).unwrap();
    let sidecar = tokio::task::spawn_blocking(tests::fixtures::binary).await.unwrap().unwrap();
    // A runner in another process, which holds the only write end of the pipe.
    let script = r#"
import subprocess, sys, time
job = subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
job.stdin.write(open(sys.argv[2], "rb").read()); job.stdin.flush()
print(job.pid, job.stdout.readline().decode().strip(), flush=True)
time.sleep(600)
"#;
    let mut runner = tokio::process::Command::new("python3")
        .args(["-c", script])
        .arg(&sidecar)
        .arg(config.path())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = tokio::io::BufReader::new(runner.stdout.take().unwrap());
    let read = tokio::io::AsyncBufReadExt::read_line(&mut stdout, &mut line);
    timeout(LIMIT, read).await.unwrap().unwrap();
    let (pid, ready) = line.split_once(' ').unwrap();
    assert!(ready.starts_with("ready "), "{line}");

    runner.kill().await.unwrap();
    let process = format!("/proc/{pid}/cmdline");
    let gone = eventually(STOP, || async {
        // A zombie that has not been waited for yet has an empty command line.
        std::fs::read(&process).is_ok_and(|line| line.is_empty())
            || !std::path::Path::new(&process).exists()
    });
    assert!(gone.await, "the sidecar outlived its runner");
    world.finish().await;
}

#[tokio::test]
async fn stdout_that_nobody_reads_any_more_ends_the_lease() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let mut tunnel = world.tunnel(server.port()).await;
    tunnel.sidecar.close_stdout();
    let exit = tunnel.sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn stdout_that_is_a_socket_nobody_reads_any_more_ends_the_lease() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    // As Node's `child_process` creates it.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.stdout(OwnedFd::from(theirs));
    });
    let sidecar = sidecar.await.unwrap();
    // Reads all of `ready`: unread bytes would cause an error, as on a pipe.
    let read = move || BufReader::new(ours).read_line(&mut String::new());
    tokio::task::spawn_blocking(read).await.unwrap().unwrap();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn stdout_closed_before_ready_ends_it_too() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.stdout(writer);
    });
    let exit = sidecar.await.unwrap().exit(LIMIT).await.unwrap();
    assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
    world.finish().await;
}

#[tokio::test]
async fn stderr_that_nobody_reads_blocks_nothing() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let (reader, writer) = full_pipe();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.stderr(writer).env("RUST_LOG", "trace");
    });
    let mut sidecar = sidecar.await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for _ in 0..100 {
        stream.write_all(&[7; 1000]).await.unwrap();
        let mut answer = [0; 1000];
        timeout(LIMIT, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    }
    drop(stream);
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_ended_well(&exit, "with a full stderr");
    drop(reader);
    world.finish().await;
}

#[tokio::test]
async fn stderr_that_is_closed_blocks_nothing() {
    let server = TcpServer::echo().await.unwrap();
    let world = World::start().await;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.stderr(writer).env("RUST_LOG", "trace");
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_ended_well(&exit, "with a closed stderr");
    world.finish().await;
}

/// Starts a sidecar, stops it in `phase`, and asserts that it ended well.
async fn stop_in_phase(config: &Config, phase: &str, way: Way) {
    let config = config.clone().with(&json!({ "events": true }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    while sidecar.word("phase", LIMIT).await.unwrap() != phase {}
    let exit = stop(sidecar, way).await;
    assert_ended_well(&exit, &format!("{way:?} in phase {phase}"));
    assert!(exit.closed().is_some(), "{way:?} in phase {phase}: no summary; {}", exit.text());
}

/// Stops a sidecar and waits for its exit, which must be in time.
pub(crate) async fn stop(mut sidecar: Sidecar, way: Way) -> Exit {
    let started = Instant::now();
    match way {
        Way::EndOfInput => sidecar.close_stdin(),
        Way::Signal(signal) => sidecar.signal(signal).unwrap(),
    }
    let exit = sidecar.exit(STOP).await.unwrap();
    assert!(started.elapsed() < STOP, "took {:?}", started.elapsed());
    exit
}

/// Asserts status 0 and no `failed` line.
pub(crate) fn assert_ended_well(exit: &Exit, case: &str) {
    assert_eq!(exit.status.code(), Some(0), "{case}: {}", exit.text());
    assert_eq!(exit.failure(), None, "{case}");
}

/// Waits until the sidecar has installed its signal handlers, which it does before it reads stdin.
async fn until_listening(sidecar: &Sidecar) {
    let path = format!("/proc/{}/status", sidecar.pid().unwrap());
    let caught = eventually(LIMIT, || async {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        [Signal::SIGTERM, Signal::SIGINT].iter().all(|signal| mask >> (*signal as i32 - 1) & 1 == 1)
    });
    assert!(caught.await, "it does not catch its signals");
}

/// A full pipe, and its read end, which no one reads.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    use std::io::Write as _;
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let capacity = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
    let mut file = std::fs::File::from(writer);
    file.write_all(&vec![b'\n'; usize::try_from(capacity).unwrap()]).unwrap();
    (reader, file.into())
}
