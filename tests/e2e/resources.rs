//! A host that is short of threads, processes or descriptors: one `failed` line and a status of the contract, never a
//! panic; or a tunnel, where it is enough.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::unistd::{getegid, geteuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use tempfile::TempDir;
use tests::fixtures::{Config, Exit, Sidecar, TcpServer, binary};
use tokio::process::Command;

use crate::world::{Failure, LIMIT, World};

const NO_RESOURCES: Failure =
    Failure { code: "local.resources", status: 71, phase: "config", blame: "operator" };

#[tokio::test]
async fn container_runtime_that_refuses_clone3_is_told_as_such() {
    let world = World::start().await;
    let config = world.config(5432);
    let exit = without_clone3(config.clone()).await;
    NO_RESOURCES.assert("clone3_refused", &exit, &config);
    world.finish().await;
}

#[tokio::test]
async fn limit_of_processes_is_enough_or_told() {
    if !geteuid().is_root() {
        println!("not tried: only root may run a program as a user that has no other process");
        return;
    }
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let (_folder, program) = copied_for_everybody().await;
    let mut worked = 0;
    // From one process without a thread to both with theirs.
    for limit in [1, 2, 3, 4, 12] {
        let exit = limited(&program, &config, &format!("--nproc={limit}"), Some(OTHER_USER)).await;
        worked += assert_enough_or_told(&exit, &config, &format!("processes_{limit}"));
    }
    assert!(worked >= 1, "the last limit is enough");
    world.finish().await;
}

#[tokio::test]
async fn limit_of_descriptors_is_enough_or_told() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut worked = 0;
    for limit in [4, 12, 20, 28, 64] {
        let exit = limited(&program, &config, &format!("--nofile={limit}"), None).await;
        worked += assert_enough_or_told(&exit, &config, &format!("descriptors_{limit}"));
    }
    assert!(worked >= 1, "the last limit is enough");
    world.finish().await;
}

/// Returns 1 if the tunnel was up, 0 if the lack was told.
fn assert_enough_or_told(exit: &Exit, config: &Config, case: &str) -> usize {
    if exit.stdout.iter().any(|line| line.starts_with("ready ")) {
        assert_eq!(exit.status.code(), Some(0), "{case}: {}", exit.text());
        return 1;
    }
    let code = exit.failure().map(|line| line["code"].clone());
    assert_eq!(code, Some("local.resources".into()), "{case}: {}", exit.text());
    assert_eq!(exit.status.code(), Some(NO_RESOURCES.status), "{case}: {}", exit.text());
    assert_eq!(exit.stdout.len(), 1, "{case}: {}", exit.text());
    crate::world::assert_no_secret(&exit.text(), config);
    0
}

/// Runs a sidecar below a limit until it is ready or fails, then ends its lease.
async fn limited(program: &Path, config: &Config, limit: &str, user: Option<u32>) -> Exit {
    let sidecar = Sidecar::spawn_program("prlimit".into(), |command| {
        command.arg(limit).arg(program).envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        user.map(|user| command.uid(user).gid(user));
    });
    to_its_end(sidecar.await.unwrap(), config).await
}

async fn to_its_end(mut sidecar: Sidecar, config: &Config) -> Exit {
    // It may have failed before it reads.
    drop(sidecar.write(config.pretty().as_bytes()).await);
    if sidecar.ready(LIMIT).await.is_ok() {
        sidecar.close_stdin();
    }
    sidecar.exit(LIMIT).await.unwrap()
}

/// A copy of the program that every user can execute: the folder with the build may be closed to others.
async fn copied_for_everybody() -> (TempDir, PathBuf) {
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("ssm-sidecar");
    fs::copy(program, &copy).unwrap();
    (folder, copy)
}

/// Runs a sidecar on a thread that is denied `clone3`, as is everything it starts.
async fn without_clone3(config: Config) -> Exit {
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let run = async move {
        let sidecar = Sidecar::spawn_program(program, own_user).await.unwrap();
        to_its_end(sidecar, &config).await
    };
    let restricted = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rules = [(nix::libc::SYS_clone3, Vec::new())].into();
        let refused = SeccompAction::Errno(nix::libc::EPERM.cast_unsigned());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
        runtime.block_on(run)
    };
    // On a thread of its own, since the restriction cannot be lifted again.
    let thread = thread::spawn(restricted);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap()
}

/// With a user the standard library forks, which needs no `clone3`.
fn own_user(command: &mut Command) {
    command.uid(geteuid().as_raw()).gid(getegid().as_raw());
}

/// A user that has no other process.
const OTHER_USER: u32 = 54_321;
