//! Ends under difficult conditions: while the path is broken, after a panic, with the service out of reach,
//! by SIGKILL. `tests/README.md` has the complete table of the ways out.

use std::{fs, io::Write as _, os::unix::process::ExitStatusExt as _, time::Duration};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
};
use serde_json::json;
use tempfile::TempDir;
use tests::{
    emulator::{Action, ApiFault, Break, Ending, Failure as Fault, OWN_SESSIONS, Plan, Policy},
    fixtures::{Exit, Sidecar, TcpServer, eventually, example, free_port},
};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    shutdown::{WAYS, assert_ended_well, stop},
    world::{Failure, INSTANCE, LIMIT, STOP, Tunnel, World, may_terminate},
};

#[tokio::test]
async fn while_the_session_is_being_resumed() {
    for way in WAYS {
        let world = World::with(|builder| builder.policy(Policy::full(INSTANCE))).await;
        let mut tunnel = eventful(&world).await;
        // Neither answered nor refused, so that the call is in progress at the stop.
        let hangs = ApiFault::new(Fault::Hangs).on(Action::ResumeSession);
        world.emulator.control().set_faults(Plan::default().api(hangs));
        world.emulator.control().disconnect_all(Break::Reset).await;
        tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
        assert_ended_well(&stop(tunnel.sidecar, way).await, &format!("{way:?} while resuming"));
        world.finish().await;
    }
}

#[tokio::test]
async fn while_a_lost_session_is_being_replaced() {
    for way in WAYS {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let mut tunnel = eventful(&world).await;
        let late = ApiFault::new(Fault::Delayed(Duration::from_secs(1))).on(Action::StartSession);
        world.emulator.control().set_faults(Plan::default().api(late));
        world.emulator.control().disconnect_all(Break::Reset).await;
        tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
        assert_ended_well(&stop(tunnel.sidecar, way).await, &format!("{way:?} while replacing"));
        world.finish().await;
    }
}

#[tokio::test]
async fn panic_of_any_task_ends_the_sessions_and_is_internal() {
    // One log message of each task: the job itself, the API's, the driver of the data channel, the
    // SSH connection, the supervisor of lanes, a forwarded connection.
    let places = [
        ("started", "config", false),
        ("session started", "start_session", false),
        ("handshake complete", "session", false),
        ("authenticated", "ssh", false),
        ("host key is the pinned one", "ssh", false),
        ("ready", "tunnel", false),
        ("connected", "tunnel", true),
        ("connection complete", "tunnel", true),
    ];
    let program = tokio::task::spawn_blocking(|| example("panicking")).await.unwrap().unwrap();
    for (text, phase, connect) in places {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let server = TcpServer::source(10).await.unwrap();
        let config = world.config(server.port());
        let sidecar = Sidecar::spawn_program(program.clone(), |command| {
            command.arg(text);
        });
        let mut sidecar = sidecar.await.unwrap();
        sidecar.write(config.compact().as_bytes()).await.unwrap();
        if connect {
            let port = sidecar.ready(LIMIT).await.unwrap();
            // The panic may reset the connection before it is established.
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
                let mut rest = Vec::new();
                drop(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await);
            }
        }
        let exit = sidecar.exit(LIMIT).await.unwrap();
        let failure = Failure { code: "internal", status: 70, phase, blame: "bug" };
        let line = failure.assert(&format!("panic_in_{phase}"), &exit, &config);
        assert!(!line.to_string().contains("planted"), "{text}: quotes the panic: {line}");
        world.finish().await;
    }
}

#[tokio::test]
async fn panic_of_any_task_of_a_check_ends_its_session_and_is_internal() {
    let places = [
        ("session started", "start_session"),
        ("handshake complete", "session"),
        ("authenticated", "login"),
    ];
    let program = tokio::task::spawn_blocking(|| example("panicking")).await.unwrap().unwrap();
    for (text, step) in places {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let config = world.config(free_port().unwrap());
        let sidecar = Sidecar::spawn_program(program.clone(), |command| {
            command.args([text, "check"]);
        });
        let mut sidecar = sidecar.await.unwrap();
        sidecar.write(config.compact().as_bytes()).await.unwrap();
        sidecar.close_stdin();
        let exit = sidecar.exit(LIMIT).await.unwrap();
        let told = exit.text();
        assert_eq!(exit.status.code(), Some(70), "{text}: {told}");
        let failed = told.lines().find(|line| line.contains(" failed ")).unwrap_or_default();
        assert!(
            failed.contains(step) && failed.contains("internal: internal error: panic at "),
            "{text}: {told}"
        );
        assert!(told.contains("hint: "), "{text}: {told}");
        world.finish().await;
    }
}

#[tokio::test]
async fn api_out_of_reach_at_the_end_leaves_the_flag() {
    for fault in [Fault::Hangs, Fault::InternalServerError, Fault::ConnectionClosed] {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let tunnel = eventful(&world).await;
        let gone = ApiFault::new(fault.clone()).on(Action::TerminateSession);
        world.emulator.control().set_faults(Plan::default().api(gone));
        assert_ended_well(&stop(tunnel.sidecar, WAYS[0]).await, &format!("{fault:?}"));
        let session = world.emulator.journal().sessions().remove(0);
        assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Flag), "{fault:?}");
        world.finish().await;
    }
}

#[tokio::test]
async fn session_that_was_being_resumed_and_cannot_be_ended_by_api_is_said_to_be_left() {
    let policy = Policy::least_privilege(INSTANCE).allowing("ssm:ResumeSession", OWN_SESSIONS);
    let world = World::with(|builder| builder.policy(policy)).await;
    let mut tunnel = eventful(&world).await;
    let hangs = ApiFault::new(Fault::Hangs).on(Action::ResumeSession);
    world.emulator.control().set_faults(Plan::default().api(hangs));
    world.emulator.control().disconnect_all(Break::Reset).await;
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let exit = stop(tunnel.sidecar, WAYS[0]).await;
    assert_ended_well(&exit, "while resuming, without permission to terminate");
    assert!(exit.text().contains("session left to its idle time-out"), "{}", exit.text());
    for session in world.emulator.journal().open_sessions() {
        world.emulator.control().terminate(&session, "nothing else could end it");
    }
    world.finish().await;
}

#[tokio::test]
async fn gateway_out_of_reach_at_the_end_leaves_the_api() {
    let world = World::with(|builder| builder.policy(may_terminate())).await;
    let tunnel = eventful(&world).await;
    world.emulator.control().disconnect_all(Break::Silence).await;
    assert_ended_well(&stop(tunnel.sidecar, WAYS[0]).await, "silent gateway");
    let session = world.emulator.journal().sessions().remove(0);
    assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Api));
    world.finish().await;
}

#[tokio::test]
async fn everything_out_of_reach_at_the_end_is_said_and_left_to_the_idle_time_out() {
    let world =
        World::with(|builder| builder.policy(may_terminate()).idle_timeout(Duration::from_secs(8)));
    let world = world.await;
    let tunnel = eventful(&world).await;
    let gone = ApiFault::new(Fault::Hangs).on(Action::TerminateSession);
    world.emulator.control().set_faults(Plan::default().api(gone));
    world.emulator.control().disconnect_all(Break::Silence).await;
    let exit = stop(tunnel.sidecar, WAYS[0]).await;
    assert_ended_well(&exit, "nothing answers");
    let said = exit.stderr.iter().any(|line| line.contains("idle time-out"));
    assert!(said, "the session left is not logged: {}", exit.text());
    assert_idle_end(&world).await;
}

#[tokio::test]
async fn both_processes_killed_at_once_leave_the_session_to_the_idle_time_out() {
    let world = World::with(|builder| builder.idle_timeout(Duration::from_secs(8))).await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.process_group(0);
    });
    let mut sidecar = sidecar.await.unwrap();
    let port = sidecar.ready(LIMIT).await.unwrap();
    nix::sys::signal::killpg(sidecar.pid().unwrap(), Signal::SIGKILL).unwrap();
    let exit = sidecar.exit(STOP).await.unwrap();
    assert_eq!(exit.status.signal(), Some(Signal::SIGKILL as i32));
    let silent = || async { TcpStream::connect(("127.0.0.1", port)).await.is_err() };
    assert!(eventually(STOP, silent).await, "the port is still open");
    assert_idle_end(&world).await;
}

#[tokio::test]
async fn stdout_that_nobody_reads_holds_up_no_end() {
    for way in [WAYS[0], WAYS[1]] {
        let world = World::start().await;
        let server = TcpServer::echo().await.unwrap();
        let config = world.config(server.port()).with(&json!({ "events": true }));
        // A pipe that is completely full.
        let (unread, stdout) = std::io::pipe().unwrap();
        let mut filler = stdout.try_clone().unwrap();
        fcntl(&filler, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        while filler.write(&[b'.'; 1024]).is_ok() {}
        while filler.write(b".").is_ok() {}
        fcntl(&filler, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.stdout(stdout);
        });
        let sidecar = sidecar.await.unwrap();
        let journal = world.emulator.journal();
        let open = || async { !journal.open_sessions().is_empty() };
        assert!(eventually(LIMIT, open).await, "no session");
        assert_ended_well(&stop(sidecar, way).await, &format!("{way:?}"));
        drop(unread);
        world.finish().await;
    }
}

#[tokio::test]
async fn full_disk_below_the_log_stops_nothing() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let config = world.config(server.port());
    let sidecar = Sidecar::spawn_with(&config, |command| {
        command.stderr(full).env("RUST_LOG", "trace");
    });
    let mut sidecar = sidecar.await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    assert_ended_well(&stop(sidecar, WAYS[0]).await, "full disk");
    world.finish().await;
}

#[tokio::test]
async fn no_file_and_no_process_is_left() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    for way in WAYS {
        let directory = TempDir::new().unwrap();
        let config = world.config(server.port());
        let sidecar = Sidecar::spawn_with(&config, |command| {
            let here = directory.path();
            command.current_dir(here).env("TMPDIR", here).env("HOME", here).process_group(0);
        });
        let mut sidecar = sidecar.await.unwrap();
        sidecar.ready(LIMIT).await.unwrap();
        let group = sidecar.pid().unwrap();
        assert_ended_well(&stop(sidecar, way).await, "in its own directory");
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert!(left.is_empty(), "{way:?} left {left:?}");
        let alone = || async { nix::sys::signal::killpg(group, None).is_err() };
        assert!(eventually(STOP, alone).await, "{way:?} left a process");
    }
    world.finish().await;
}

#[tokio::test]
async fn failure_after_ready_is_told_within_five_seconds_of_its_cause() {
    let world = World::start().await;
    let mut tunnel = eventful(&world).await;
    // Neither resuming nor replacing will ever succeed.
    world.emulator.control().set_policy(Policy::nothing());
    world.emulator.control().disconnect_all(Break::Reset).await;
    tunnel.sidecar.word("degraded", LIMIT).await.unwrap();
    let began = Instant::now();
    let exit: Exit = tunnel.sidecar.exit(LIMIT).await.unwrap();
    assert!(began.elapsed() < STOP, "took {:?}", began.elapsed());
    let failure =
        Failure { code: "aws.access_denied", status: 77, phase: "tunnel", blame: "customer" };
    failure.assert("start_session_again", &exit, &world.config(1));
}

/// A tunnel to an echo server, with `events`.
async fn eventful(world: &World) -> Tunnel {
    // The server is needed only until the target is proven.
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "events": true }));
    Tunnel::open(&config).await
}

/// Asserts that the only session is still open, and that the service ends it when idle.
async fn assert_idle_end(world: &World) {
    let session = world.emulator.journal().sessions().remove(0);
    let ended = || async { world.emulator.journal().ending(&session).is_some() };
    assert!(eventually(LIMIT, ended).await, "the session is still open");
    assert_eq!(world.emulator.journal().ending(&session), Some(Ending::Idle));
}
