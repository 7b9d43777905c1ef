//! No process, zombie or session is left, wherever a runner's future is dropped.

use std::{fs, pin::pin, process::Stdio, time::Duration};

use futures_util::{StreamExt as _, poll, stream};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use runner_protocol::{
    ExitStatus, Line,
    launch::{Force, Launcher, Stderr},
};
use serde_json::json;
use tests::fixtures::{binary, eventually};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use super::{SETTLE, alone, assert_no_children, children, echo, idle, launch, launcher};
use crate::world::{LIMIT, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_at_any_stage_leaves_no_process_and_no_session() {
    let _alone = alone().await;
    let world = World::start().await;
    let server = echo().await;
    let config = world.config(server.port()).with(&json!({ "events": true }));
    let launcher = launcher().await;

    // During the launch itself, after each number of polls.
    let mut finished = 0;
    for polls in 0..12 {
        let text = config.pretty();
        let mut launching = pin!(launcher.launch(&text, Stderr::Discard));
        for _ in 0..polls {
            if poll!(&mut launching).is_ready() {
                finished += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(finished < 12, "no launch was interrupted");

    // Before the first event, and at each event of the start.
    drop(launch(&launcher, &config).await);
    for stage in ["start_session", "session", "ssh", "target"] {
        let mut sidecar = launch(&launcher, &config).await;
        loop {
            match timeout(LIMIT, sidecar.event()).await.unwrap() {
                Some(Line::Phase(phase)) if phase == stage => break,
                Some(_) => {}
                None => panic!("it ended before `{stage}`"),
            }
        }
    }

    // While it is awaited after `ready`, and while it ends. The futures are of one sidecar that
    // still reads its config and of one that is stopped, so that neither is complete before it is
    // dropped.
    let mut sidecar = idle(&launcher).await;
    assert!(poll!(pin!(sidecar.ready())).is_pending());
    drop(sidecar);
    let mut sidecar = launch(&launcher, &config).await;
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    drop(sidecar);
    let mut sidecar = launch(&launcher, &config).await;
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    let process = Pid::from_raw(sidecar.pid().unwrap());
    kill(process, Signal::SIGSTOP).unwrap();
    assert!(poll!(pin!(sidecar.stop())).is_pending());
    kill(process, Signal::SIGCONT).unwrap();

    assert_no_children().await;
    assert!(world.emulator.journal().sessions().len() >= 3, "sessions were started");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_with_the_runtime_leaves_nothing() {
    let _alone = alone().await;
    let launcher = launcher().await;
    let in_its_own_runtime = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sidecar = runtime.block_on(idle(&launcher));
        drop(runtime);
        drop(sidecar);
    };
    tokio::task::spawn_blocking(in_its_own_runtime).await.unwrap();
    assert_no_children().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_launches_leave_no_zombie() {
    let _alone = alone().await;
    let launcher = launcher().await;
    let started = stream::iter(0..50).map(async |number| {
        let sidecar = idle(&launcher).await;
        if number % 2 == 0 {
            let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
            assert!(ended.code.is_some(), "{ended:?}");
        }
    });
    started.buffer_unordered(10).for_each(async |()| ()).await;
    assert_no_children().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_that_ignores_its_lease_is_ended_by_force() {
    let _alone = alone().await;
    let shell = |script: &str| Launcher::new("/bin/sh").argument("-c").argument(script);
    // The second is process 1 of its namespace, which ignores SIGTERM unless it has a handler.
    for (script, force) in [
        (
            "trap 'exit 75' TERM; echo ready 1; while :; do read line || sleep 0.1; done",
            Force::Terminated,
        ),
        ("echo ready 1; trap '' TERM; while :; do read line || sleep 0.1; done", Force::Killed),
    ] {
        let mut sidecar = shell(script)
            .variable("PATH", "/bin:/usr/bin")
            .launch("{", Stderr::Discard)
            .await
            .unwrap();
        timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
        let ended = timeout(LIMIT, sidecar.stop()).await.unwrap().unwrap();
        assert_eq!(ended.force, Some(force), "{ended:?}");
        match force {
            Force::Terminated => assert_eq!(ended.status, Some(ExitStatus::TempFail)),
            Force::Killed => assert_eq!(ended.signal, Some(Signal::SIGKILL as i32)),
        }
    }
    // The same in the background.
    let script = "trap '' TERM; echo ready 1; while :; do read line || sleep 0.1; done";
    let stubborn = shell(script).variable("PATH", "/bin:/usr/bin");
    let mut sidecar = stubborn.launch("{", Stderr::Discard).await.unwrap();
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    drop(sidecar);
    assert!(!children().is_empty());
    assert_no_children().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runner_that_is_killed_takes_its_sidecar_along() {
    let _alone = alone().await;
    let world = World::start().await;
    let server = echo().await;
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut runner = Command::new(std::env::current_exe().unwrap())
        .env("SSM_SIDECAR_BIN", program)
        .args(["--exact", "launch::endings::runner_to_be_killed", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let config = format!("{}\n", world.config(server.port()).compact());
    runner.stdin.take().unwrap().write_all(config.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(runner.stdout.take().unwrap()).lines();
    let pid: i32 = loop {
        let line = timeout(2 * LIMIT, lines.next_line()).await.unwrap().unwrap();
        if let Some((_, pid)) = line.expect("a line of the runner").split_once("sidecar ") {
            break pid.trim().parse().unwrap();
        }
    };
    assert!(is_running(pid));
    let runner_pid = Pid::from_raw(runner.id().unwrap().cast_signed());
    kill(runner_pid, Signal::SIGKILL).unwrap();
    assert!(eventually(SETTLE, || async { !is_running(pid) }).await, "the sidecar runs on");
    runner.wait().await.unwrap();
    world.finish().await;
}

/// The runner of the test above, in its own process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a helper of another test, which kills it"]
async fn runner_to_be_killed() {
    let config = std::io::stdin().lines().next().unwrap().unwrap();
    let launcher = launcher().await;
    let mut sidecar = launcher.launch(&config, Stderr::Discard).await.unwrap();
    timeout(LIMIT, sidecar.ready()).await.unwrap().unwrap();
    println!("sidecar {}", sidecar.pid().unwrap());
    std::future::pending::<()>().await;
}

/// Whether the process exists and is not a zombie; orphans stay zombies if process 1 does not reap them.
fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
