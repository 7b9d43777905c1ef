//! The demo keeps its promises, by itself and when a newcomer follows the README.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Stdio,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tests::fixtures::{ORDERS, binary, eventually};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};
use tokio_postgres::NoTls;

use crate::world::LIMIT;

#[tokio::test]
async fn demo_shows_rows_and_a_terminated_session() {
    let output = timeout(2 * LIMIT, demo().await.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{stderr}");
    let rows = ORDERS.iter().filter(|order| text.contains(order.item));
    assert!(rows.count() > 0, "no rows in {text}");
    for words in ["exit status 0", "terminated", "start_session", "ms"] {
        assert!(text.contains(words), "`{words}` is not in {text}");
    }
}

#[tokio::test]
async fn demo_stays_open_until_it_is_interrupted() {
    let mut command = demo().await;
    let mut child = command.arg("--keep").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(LIMIT, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("a line that tells how to connect");
            if line.contains("psql") {
                return line;
            }
        }
    });
    let line = line.await.unwrap();
    let mut words = line.split_whitespace().skip_while(|word| *word != "-p").skip(1);
    let port: u16 = words.next().unwrap().parse().unwrap();

    let config = format!("host=127.0.0.1 port={port} user=demo dbname=demo");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    let query = async { client.simple_query("SELECT item FROM orders").await.unwrap().len() };
    // The row description, the rows, and the end of the command.
    tokio::select! {
        length = query => assert_eq!(length, ORDERS.len() + 2),
        end = connection => panic!("the connection ended: {end:?}"),
    }

    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    while timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().is_some() {}
    assert_eq!(timeout(LIMIT, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

#[tokio::test]
async fn readmes_way_from_check_to_a_query_works_as_it_is_written() {
    let readme = include_str!("../../README.md");
    let (_, chapter) = readme.split_once("## From `check` to a query").unwrap();
    let (chapter, _) = chapter.split_once("\n## ").unwrap();
    let command = |words: &str| {
        let mut lines = chapter.lines().filter(|line| line.starts_with("target/quick/"));
        lines.find(|line| line.contains(words)).unwrap_or_else(|| panic!("no `{words}`"))
    };
    let directory = TempDir::new().unwrap();
    let programs = directory.path().join("target/quick");
    fs::create_dir_all(&programs).unwrap();
    let sidecar = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    symlink(sidecar, programs.join("ssm-sidecar")).unwrap();
    symlink(env!("CARGO_BIN_EXE_emulator"), programs.join("emulator")).unwrap();
    let shell = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {line}")]).current_dir(directory.path());
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command
    };
    let mut emulator = shell(command("emulator")).stdout(Stdio::null()).spawn().unwrap();
    let file = directory.path().join("document.json");
    let is_written = async || fs::read_to_string(&file).is_ok_and(|text| text.ends_with('}'));
    assert!(eventually(LIMIT, is_written).await, "no config");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    for (line, rows) in [("check", "the tunnel works"), ("exec", "(4 rows)")] {
        let output = timeout(LIMIT, shell(command(line)).output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(rows), "{line}: {text}");
    }
    emulator.kill().await.unwrap();
}

/// The demo, with the same sidecar as the other tests.
async fn demo() -> Command {
    let sidecar = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_demo-job")));
    command.env("SSM_SIDECAR_BIN", sidecar).stdin(Stdio::null()).kill_on_drop(true);
    command
}
