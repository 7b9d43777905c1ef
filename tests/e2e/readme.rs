//! What the READMEs say: `tests/README.md` names only tests that exist, the shell snippet of the top one works.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tests::fixtures::{TcpServer, binary};
use tokio::{process::Command, time::timeout};

use crate::world::{LIMIT, World};

#[test]
fn every_test_that_the_table_of_endings_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(here.join("README.md")).unwrap();
    let mut sources = String::new();
    for entry in fs::read_dir(here.join("e2e")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    let (_, table) = readme.split_once("## The ways out").unwrap();
    let names: Vec<_> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(['/', ' ']))
        .collect();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        assert!(
            sources.contains(&format!("fn {name}()")),
            "the README names a missing test `{name}`"
        );
    }
}

/// A process that the command leaves running would hold the lease if it inherited the pipe's write end.
#[tokio::test]
async fn shell_snippet_ends_its_tunnel_whatever_the_command_leaves_running() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let (_, shell) = readme.split_once("**Shell**").unwrap();
    let snippet = shell.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();

    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let directory = TempDir::new().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("document.json"), world.config(server.port()).pretty()).unwrap();
    let sidecar = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    symlink(sidecar, file("ssm-sidecar")).unwrap();
    let psql =
        "#!/bin/sh\necho \"psql $*\"\nsleep 600 </dev/null >/dev/null 2>&1 &\necho $! >left\n";
    fs::write(file("psql"), psql).unwrap();
    fs::set_permissions(file("psql"), fs::Permissions::from_mode(0o755)).unwrap();

    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", snippet]).current_dir(directory.path()).env_clear().kill_on_drop(true);
    command.env("PATH", format!("{}:{path}", directory.path().display()));
    let output = timeout(LIMIT * 2, command.output()).await;
    let left = fs::read_to_string(file("left")).ok();
    if let Some(left) = left.and_then(|pid| pid.trim().parse().ok()) {
        kill(Pid::from_raw(left), Signal::SIGKILL).unwrap();
    }
    let output = output.expect("the lease leaks").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("psql -h 127.0.0.1 -p "), "{text}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    // The snippet closes both at once.
    let ends = ["stdin closed", "stdout closed"];
    assert!(ends.iter().any(|end| stderr.contains(end)), "{stderr}");
    assert!(!file("lease").exists() && !file("ready").exists());
    world.finish().await;
}
