//! Two processes: the monitor with the AWS keys, the worker with the SSH key and the network. However one
//! of them dies, the other ends the sessions; and the worker has no rights beyond the use of the
//! descriptors that it holds.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, geteuid},
};
use serde_json::json;
use tests::{
    emulator::{Action, ApiFault, Ending, Failure as Fault, Plan},
    fixtures::{Config, Exit, Sidecar, TcpServer, binary, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    shutdown::assert_ended_well,
    world::{ACCESS_KEY_ID, Failure, LIMIT, SECRET_ACCESS_KEY, STOP, Tunnel, World, may_terminate},
};

const WORKER_LOST: Failure =
    Failure { code: "internal", status: 70, phase: "tunnel", blame: "bug" };

#[tokio::test]
async fn killed_worker_is_told_as_such_and_its_session_is_ended_by_api() {
    // Like a kill for lack of memory, an abort, and a violation of the seccomp filter.
    for signal in [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGSYS] {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let (tunnel, config, _server) = echo(&world).await;
        let began = Instant::now();
        kill(tunnel.sidecar.worker().unwrap(), signal).unwrap();
        let exit = tunnel.sidecar.exit(STOP).await.unwrap();
        assert!(began.elapsed() < STOP, "{signal}: took {:?}", began.elapsed());
        WORKER_LOST.assert(&signal.as_str().to_lowercase(), &exit, &config);
        let session = world.emulator.journal().sessions().remove(0);
        assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Api), "{signal}");
        assert!(
            TcpStream::connect(("127.0.0.1", tunnel.port)).await.is_err(),
            "the port is still open"
        );
        world.finish().await;
    }
}

#[tokio::test]
async fn worker_killed_while_start_session_is_under_way_leaves_no_session() {
    let late = ApiFault::new(Fault::Delayed(Duration::from_secs(1))).on(Action::StartSession);
    let world =
        World::with(|builder| builder.policy(may_terminate()).faults(Plan::default().api(late)));
    let world = world.await;
    let config = world.config(5432);
    let sidecar = Sidecar::spawn(&config).await.unwrap();
    // The phase is reported before the call is sent.
    let journal = world.emulator.journal();
    let called = eventually(LIMIT, || async { journal.arrived("StartSession") == 1 }).await;
    assert!(called, "StartSession did not reach the service");
    kill(sidecar.worker().unwrap(), Signal::SIGKILL).unwrap();
    let exit = sidecar.exit(STOP).await.unwrap();
    let failure = Failure { phase: "start_session", ..WORKER_LOST };
    failure.assert("during_start_session", &exit, &config);
    // The call was completed, and its session ended.
    let seen = eventually(STOP, || async { journal.sessions().len() == 1 }).await;
    assert!(seen, "StartSession was not completed");
    world.finish().await;
}

#[tokio::test]
async fn killed_monitor_leaves_no_session_and_no_process() {
    // Permission to start only: the worker can end the session only by the flag in the channel,
    // which is sufficient.
    let world = World::start().await;
    let (tunnel, _, _server) = echo(&world).await;
    let worker = tunnel.sidecar.worker().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();
    tunnel.sidecar.signal(Signal::SIGKILL).unwrap();
    let gone = eventually(STOP, || async { kill(worker, None).is_err() }).await;
    assert!(gone, "the worker outlives its monitor");
    let exit = tunnel.sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.signal(), Some(Signal::SIGKILL as i32));
    let session = world.emulator.journal().sessions().remove(0);
    assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Flag), "{}", exit.text());
    assert!(
        TcpStream::connect(("127.0.0.1", tunnel.port)).await.is_err(),
        "the port is still open"
    );
    world.finish().await;
}

#[tokio::test]
async fn signal_to_both_processes_ends_the_session_as_one_to_the_monitor_does() {
    // As Ctrl-C at a terminal, `timeout` and a service manager send it. With permission to start
    // only, only the worker can end its session.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let world = World::start().await;
        let server = TcpServer::echo().await.unwrap();
        let config = world.config(server.port());
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.process_group(0);
        });
        let mut sidecar = sidecar.await.unwrap();
        sidecar.ready(LIMIT).await.unwrap();
        killpg(sidecar.pid().unwrap(), signal).unwrap();
        let exit = sidecar.exit(STOP).await.unwrap();
        assert_ended_well(&exit, &format!("{signal} to both"));
        let session = world.emulator.journal().sessions().remove(0);
        assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Flag), "{signal}");
        world.finish().await;
    }
}

#[tokio::test]
async fn stopped_worker_does_not_hold_up_the_end() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let (mut tunnel, config, _server) = echo(&world).await;
    // A stopped process does not answer.
    kill(tunnel.sidecar.worker().unwrap(), Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    tunnel.sidecar.close_stdin();
    let exit = tunnel.sidecar.exit(STOP + Duration::from_secs(1)).await.unwrap();
    assert!(began.elapsed() < STOP, "took {:?}", began.elapsed());
    WORKER_LOST.assert("worker_stuck", &exit, &config);
    world.finish().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn worker_has_no_rights_and_holds_no_file() {
    let world = World::start().await;
    let (tunnel, _, _server) = echo(&world).await;
    let worker = tunnel.sidecar.worker().unwrap();
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set} {status}");
        }
        if geteuid().is_root() {
            assert_eq!(u64::from_str_radix(&field("CapBnd:"), 16), Ok(0), "{status}");
        }
        threads += 1;
    }
    assert!(threads >= 2, "the thread that writes the log is among them");
    if geteuid().is_root() {
        for entry in fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
            let link = fs::read_link(entry.unwrap().path()).unwrap();
            let link = link.to_string_lossy().into_owned();
            assert!(!link.starts_with('/') || link == "/dev/null", "it has {link} open");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().rev().nth(1), Some("0"), "{cores}");
    tunnel.close().await;
    world.finish().await;
}

// With several threads, so that the search does not block the emulator.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_aws_is_anywhere_in_the_worker_nor_in_what_a_run_leaves() {
    let renewed = ["renewedSecretRenewedSecretRenewedSecret1", "renewedTokenRenewedToken"];
    let inherited = "inheritedSecretInheritedSecretInherited1";
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "events": true }));
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.env("RUST_LOG", "trace").env("AWS_SECRET_ACCESS_KEY", inherited);
    });
    let mut sidecar = sidecar.await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    let line = json!({
        "type": "credentials",
        "access_key_id": ACCESS_KEY_ID,
        "secret_access_key": renewed[0],
        "session_token": renewed[1],
    });
    sidecar.write(format!("{line}\n").as_bytes()).await.unwrap();
    sidecar.log_line(LIMIT, |line| line.contains("credentials replaced")).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_exact(&mut [0]).await.unwrap();

    let (monitor, worker) = (sidecar.pid().unwrap(), sidecar.worker().unwrap());
    let secrets = [SECRET_ACCESS_KEY, renewed[0], renewed[1], inherited];
    for file in ["cmdline", "environ"] {
        let Ok(text) = fs::read(format!("/proc/{worker}/{file}")) else { continue };
        for secret in secrets {
            assert!(!contains(&text, secret.as_bytes()), "in the worker's {file}");
        }
    }
    if geteuid().is_root() {
        let (in_monitor, in_worker) = (Memory::of(monitor), Memory::of(worker));
        // Known values must be found, so that the absence of others is meaningful.
        assert!(in_worker.has(b"a test's connection"), "the search finds nothing at all");
        assert!(in_monitor.has(renewed[0].as_bytes()), "the search finds nothing at all");
        for secret in secrets {
            assert!(!in_worker.has(secret.as_bytes()), "in the worker's memory: {secret}");
        }
    } else {
        println!("not searched: only root may look into a process that is not dumpable");
    }
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await.unwrap();
    for secret in secrets {
        assert!(!exit.text().contains(secret), "in its output");
    }
    world.finish().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn host_that_gives_every_protection_passes_where_they_are_required() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel_with(server.port(), &json!({ "hardening": "required" })).await;
    tunnel.close().await;
    world.finish().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn host_without_landlock_and_seccomp_is_told_and_refused_where_they_are_required() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let required = config.clone().with(&json!({ "hardening": "required" }));
    tokio::task::spawn_blocking(binary).await.unwrap().unwrap();

    let failed = without_protections(required.clone()).await;
    let expected =
        Failure { code: "local.hardening", status: 71, phase: "config", blame: "operator" };
    expected.assert("no_landlock", &failed, &required);

    let ended = without_protections(config).await;
    assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
    assert!(ended.stdout.iter().any(|line| line.starts_with("ready ")), "{}", ended.text());
    for missing in ["Landlock", "seccomp"] {
        let warned = ended
            .logs()
            .iter()
            .any(|line| line["level"] == "WARN" && line["missing"].to_string().contains(missing));
        assert!(warned, "no warning about {missing}: {}", ended.text());
    }
    world.finish().await;
}

/// Starts a sidecar, waits until it is ready and ends it, on a thread that is denied both protections, as
/// is everything it starts.
#[cfg(target_os = "linux")]
async fn without_protections(config: Config) -> Exit {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

    let run = async move {
        let mut sidecar = Sidecar::spawn(&config).await.unwrap();
        if sidecar.ready(LIMIT).await.is_ok() {
            sidecar.close_stdin();
        }
        sidecar.exit(STOP).await.unwrap()
    };
    let restricted = move || {
        let calls = [nix::libc::SYS_landlock_create_ruleset, nix::libc::SYS_seccomp];
        let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
        let missing = SeccompAction::Errno(nix::libc::ENOSYS.cast_unsigned());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(run)
    };
    // On a thread of its own, since the restrictions cannot be lifted again.
    let thread = std::thread::spawn(restricted);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap()
}

/// A tunnel to an echo server, its config, and the server.
async fn echo(world: &World) -> (Tunnel, Config, TcpServer) {
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let tunnel = Tunnel::open(&config).await;
    (tunnel, config, server)
}

/// A copy of the memory that a process can read of itself.
pub(crate) struct Memory(Vec<Vec<u8>>);

impl Memory {
    pub(crate) fn of(pid: Pid) -> Self {
        let mut maps = String::new();
        File::open(format!("/proc/{pid}/maps")).unwrap().read_to_string(&mut maps).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let ranges = maps.lines().filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (from, to) = fields.next()?.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).ok();
            fields.next()?.starts_with('r').then_some((address(from)?, address(to)?))
        });
        let read = |(from, to): (u64, u64)| {
            let mut bytes = vec![0; usize::try_from(to - from).ok()?];
            // The kernel's own pages cannot be read this way.
            memory.read_exact_at(&mut bytes, from).ok()?;
            Some(bytes)
        };
        Self(ranges.filter_map(read).collect())
    }

    pub(crate) fn has(&self, wanted: &[u8]) -> bool {
        self.0.iter().any(|bytes| contains(bytes, wanted))
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some(first) = wanted.first() else { return true };
    let starts = bytes.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts.map(|(at, _)| &bytes[at..]).any(|rest| rest.starts_with(wanted))
}
