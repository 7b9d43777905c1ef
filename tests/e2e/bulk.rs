//! Bytes arrive as they were sent: dumps of a hundred megabytes in each direction, and exact counts.

use std::{path::Path, process::Stdio, time::Duration};

use mysql_async::prelude::Queryable as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tests::{
    emulator::Pacing,
    fixtures::{TcpServer, pattern},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use crate::{
    clients::{mariadb, mysql, output, postgres, psql},
    world::{LIMIT, World, mariadb_server, postgres_server},
};

/// Time limit for a hundred megabytes on a loaded machine, without the agent's pauses.
const BULK: Duration = Duration::from_mins(2);

/// Rows of a dump, of about a kilobyte each.
const ROWS: u32 = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_dump_of_100_megabytes_comes_and_goes_unchanged() {
    let server = postgres_server().await;
    let direct = postgres(server.port()).await;
    let create = format!(
        "CREATE TABLE dumped AS SELECT i AS id, (SELECT string_agg(md5((i * 32 + j)::text), '') \
         FROM generate_series(1, 32) j) AS payload FROM generate_series(1, {ROWS}) i; \
         CREATE TABLE restored (LIKE dumped)"
    );
    direct.batch_execute(&create).await.unwrap();
    let copy = |port, table: &str| {
        let mut command = psql(port);
        command.args(["-c", &format!("COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT")]);
        command
    };
    let (expected, length) = digest(copy(server.port(), "dumped"), None).await;
    assert!(length > 100_000_000, "the dump has {length} bytes");

    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let tunnel = world.tunnel(server.port()).await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("dump");
    let (actual, _) = digest(copy(tunnel.port, "dumped"), Some(&file)).await;
    assert_eq!(actual, expected, "the dump differs");

    let mut restore = psql(tunnel.port);
    restore.args(["-c", "COPY restored FROM STDIN"]);
    feed(restore, &file).await;
    let (actual, _) = digest(copy(server.port(), "restored"), None).await;
    assert_eq!(actual, expected, "the restored rows differ");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_dump_of_100_megabytes_comes_and_goes_unchanged() {
    let server = mariadb_server().await;
    let mut direct = mysql(server.port()).await;
    let payload: Vec<String> = (1..=32).map(|j| format!("MD5(seq * 32 + {j})")).collect();
    let create = format!(
        "CREATE TABLE dumped (id INT PRIMARY KEY, payload TEXT) AS SELECT seq AS id, \
         CONCAT({}) AS payload FROM seq_1_to_{ROWS}",
        payload.join(", ")
    );
    direct.query_drop(create).await.unwrap();
    direct.query_drop("CREATE DATABASE restored").await.unwrap();
    direct.disconnect().await.unwrap();
    let dump = |port, database: &str| {
        let mut command = mariadb("mariadb-dump", port);
        command.args(["--skip-comments", "--skip-lock-tables", "--single-transaction"]);
        command.args([database, "dumped"]);
        command
    };
    let source = tests::fixtures::MariaDb::DATABASE;
    let (expected, length) = digest(dump(server.port(), source), None).await;
    assert!(length > 100_000_000, "the dump has {length} bytes");

    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let tunnel = world.tunnel(server.port()).await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("dump");
    let (actual, _) = digest(dump(tunnel.port, source), Some(&file)).await;
    assert_eq!(actual, expected, "the dump differs");

    let mut restore = mariadb("mariadb", tunnel.port);
    restore.arg("restored");
    feed(restore, &file).await;
    let (actual, _) = digest(dump(server.port(), "restored"), None).await;
    assert_eq!(actual, expected, "the restored rows differ");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_counted_exactly() {
    let world = World::with(|builder| builder.pacing(Pacing::Unpaced)).await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut total = 0;
    for length in [1, 1_024, 5_000_000] {
        let stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
        let (mut input, mut output) = stream.into_split();
        let sent = pattern(length);
        let mut received = Vec::new();
        let write = async {
            output.write_all(&sent).await.unwrap();
            output.shutdown().await.unwrap();
        };
        let read = timeout(LIMIT, input.read_to_end(&mut received));
        let ((), length) = tokio::join!(write, read);
        total += length.unwrap().unwrap();
        assert!(received == sent, "the echo of {} bytes differs", sent.len());
    }
    let exit = tunnel.close().await;
    let summary = exit.logs().pop().unwrap();
    let count = |name: &str| summary.pointer(&format!("/{name}")).cloned();
    assert_eq!(count("connections"), Some(3.into()), "{summary}");
    assert_eq!(count("bytes_to_target"), Some(total.into()), "{summary}");
    assert_eq!(count("bytes_from_target"), Some(total.into()), "{summary}");
    world.finish().await;
}

/// Runs a command and returns digest and length of its stdout, which is also written to `file` if given.
async fn digest(mut command: Command, file: Option<&Path>) -> (Vec<u8>, usize) {
    let run = async {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut file = match file {
            Some(path) => Some(File::create(path).await.unwrap()),
            None => None,
        };
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = stdout.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            length += count;
            if let Some(file) = &mut file {
                file.write_all(&buffer[..count]).await.unwrap();
            }
        }
        if let Some(file) = &mut file {
            file.flush().await.unwrap();
        }
        assert!(child.wait().await.unwrap().success(), "{command:?}");
        (hash.finalize().to_vec(), length)
    };
    timeout(BULK, run).await.expect("in time")
}

/// Runs a command with a file as stdin.
async fn feed(mut command: Command, file: &Path) {
    command.stdin(std::fs::File::open(file).unwrap());
    timeout(BULK, output(command)).await.expect("in time");
}
