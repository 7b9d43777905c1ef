//! The demo keeps what it promises, on its own and in the hands of a newcomer.

use std::{path::Path, process::Stdio};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tests::fixtures::{ORDERS, binary};
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
            let line = lines.next_line().await.unwrap().expect("a line how to connect");
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
    // Rows, their description and the end of the command.
    tokio::select! {
        length = query => assert_eq!(length, ORDERS.len() + 2),
        end = connection => panic!("the connection ended: {end:?}"),
    }

    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    while timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().is_some() {}
    assert_eq!(timeout(LIMIT, child.wait()).await.unwrap().unwrap().code(), Some(0));
}

/// The demo, with the sidecar that the other tests use.
async fn demo() -> Command {
    let sidecar = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_demo")));
    command.env("SSM_SIDECAR_BIN", sidecar).stdin(Stdio::null()).kill_on_drop(true);
    command
}
