//! The port leads to the database: for the engines' own programs and for drivers, with and without TLS, for
//! many connections at once, and for as long as a client needs it.

use std::time::Duration;

use futures_util::future::join_all;
use mysql_async::prelude::{Query as _, Queryable as _, WithParams as _};
use serde_json::json;
use tests::fixtures::{TcpServer, pattern};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::{
    clients::{mariadb, mysql, mysql_tls, output, postgres, postgres_tls, psql},
    echo::ping,
    world::{LIMIT, Tunnel, World, mariadb_server, postgres_server},
};

#[tokio::test]
async fn psql_gets_its_answer() {
    let world = World::start().await;
    let tunnel = world.tunnel(postgres_server().await.port()).await;
    let mut command = psql(tunnel.port);
    command.args(["-c", "SELECT 6 * 7"]);
    assert_eq!(output(command).await, "42");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn psql_verifies_the_database_through_the_tunnel() {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let mut command = psql(tunnel.port);
    command
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", &server.certificate().certificate)
        .args(["-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"]);
    assert_eq!(output(command).await, "t");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn mariadb_client_gets_its_answer() {
    let world = World::start().await;
    let tunnel = world.tunnel(mariadb_server().await.port()).await;
    let mut command = mariadb("mariadb", tunnel.port);
    command.args(["-N", "-e", "SELECT 6 * 7"]);
    assert_eq!(output(command).await, "42");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn postgresql_driver_queries_and_prepares() {
    let world = World::start().await;
    let tunnel = world.tunnel(postgres_server().await.port()).await;
    let client = postgres(tunnel.port).await;
    let statement = client.prepare("SELECT $1::int4 + n FROM generate_series(1, 3) n").await;
    let statement = statement.unwrap();
    for base in [0_i32, 1_000] {
        let rows = client.query(&statement, &[&base]).await.unwrap();
        let sums: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(sums, [base + 1, base + 2, base + 3]);
    }
    drop(client);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn postgresql_driver_speaks_tls_to_the_database() {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let client = postgres_tls(tunnel.port, &server.certificate().certificate).await;
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(client.query_one(query, &[]).await.unwrap().get::<_, bool>(0));
    drop(client);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn mysql_driver_queries_and_prepares() {
    let world = World::start().await;
    let tunnel = world.tunnel(mariadb_server().await.port()).await;
    let mut connection = mysql(tunnel.port).await;
    let statement = connection.prep("SELECT ? + seq FROM seq_1_to_3 ORDER BY seq").await.unwrap();
    for base in [0_i64, 1_000] {
        let sums: Vec<i64> = connection.exec(&statement, (base,)).await.unwrap();
        assert_eq!(sums, [base + 1, base + 2, base + 3]);
    }
    connection.disconnect().await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn mysql_driver_speaks_tls_to_the_database() {
    let world = World::start().await;
    let server = mariadb_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let mut connection = mysql_tls(tunnel.port, &server.certificate().certificate).await;
    let query = "SHOW STATUS LIKE 'Ssl_version'";
    let (_, version): (String, String) = connection.query_first(query).await.unwrap().unwrap();
    assert!(version.starts_with("TLSv1."), "version: {version}");
    connection.disconnect().await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn engine_gives_the_default_port() {
    // An address of the loopback network on which the default ports are free.
    let world = World::start().await;
    for (engine, port) in [("mysql", 3306), ("postgresql", 5432)] {
        let listener = tokio::net::TcpListener::bind(("127.0.0.77", port)).await.unwrap();
        let target = json!({ "engine": engine, "host": "127.0.0.77", "port": null });
        let config = world.config(1).with(&json!({ "target": target }));
        let tunnel = Tunnel::open(&config).await;
        timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        tunnel.close().await;
    }
    world.finish().await;
}

#[tokio::test]
async fn sixteen_postgresql_connections_at_once() {
    let world = World::start().await;
    let tunnel = world.tunnel(postgres_server().await.port()).await;
    let queries = (0..16_i32).map(|number| async move {
        let client = postgres(tunnel.port).await;
        let query =
            "SELECT string_agg(md5(($1 * 10000 + n)::text), '') FROM generate_series(1, 1000) n";
        let actual: String = client.query_one(query, &[&number]).await.unwrap().get(0);
        (number, actual)
    });
    let answers = join_all(queries).await;
    let direct = postgres(postgres_server().await.port()).await;
    for (number, actual) in answers {
        let query =
            "SELECT string_agg(md5(($1 * 10000 + n)::text), '') FROM generate_series(1, 1000) n";
        let expected: String = direct.query_one(query, &[&number]).await.unwrap().get(0);
        assert!(actual == expected, "connection {number} got other bytes");
    }
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn sixteen_mysql_connections_at_once() {
    let world = World::start().await;
    let tunnel = world.tunnel(mariadb_server().await.port()).await;
    let queries = (0..16_u64).map(|number| async move {
        let mut connection = mysql(tunnel.port).await;
        let query = "SELECT REPEAT(MD5(?), 1000), MD5(?)";
        let row = query.with((number, number)).first(&mut connection).await.unwrap().unwrap();
        let (actual, unit): (String, String) = row;
        connection.disconnect().await.unwrap();
        assert!(actual == unit.repeat(1000), "connection {number} got other bytes");
        unit
    });
    let mut units = join_all(queries).await;
    units.sort();
    units.dedup();
    assert_eq!(units.len(), 16, "two connections got the same answer");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn a_connection_that_idles_for_a_minute_still_works() {
    let world = World::start().await;
    let postgresql = world.tunnel(postgres_server().await.port()).await;
    let mariadb = world.tunnel(mariadb_server().await.port()).await;
    let client = postgres(postgresql.port).await;
    let mut connection = mysql(mariadb.port).await;
    client.batch_execute("SET application_name = 'idle'").await.unwrap();
    connection.query_drop("SET @before = 41").await.unwrap();

    // The minute is the promise; no event marks it.
    tokio::time::sleep(Duration::from_mins(1)).await;

    let name: String = client.query_one("SHOW application_name", &[]).await.unwrap().get(0);
    assert_eq!(name, "idle", "the same server process answers");
    let after: Option<i64> = "SELECT @before + 1".first(&mut connection).await.unwrap();
    assert_eq!(after, Some(42), "the same server thread answers");
    connection.disconnect().await.unwrap();
    drop(client);
    postgresql.close().await;
    mariadb.close().await;
    world.finish().await;
}

#[tokio::test]
async fn client_may_end_its_output_and_read_on() {
    let world = World::start().await;
    let server = TcpServer::count().await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    stream.write_all(&pattern(300_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, "300000", "the server's count at the end of its input");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn server_may_end_its_output_and_read_on() {
    let world = World::start().await;
    let (counted, mut counts) = mpsc::channel(8);
    let server = TcpServer::start(move |mut stream| {
        let counted = counted.clone();
        async move {
            stream.write_all(b"last words").await?;
            stream.shutdown().await?;
            let count = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            counted.send(count).await.map_err(std::io::Error::other)
        }
    });
    let server = server.await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut words = String::new();
    timeout(LIMIT, stream.read_to_string(&mut words)).await.unwrap().unwrap();
    assert_eq!(words, "last words");
    // The server has ended its output; the client's direction stays open.
    stream.write_all(&pattern(4_000_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let count = timeout(LIMIT, async {
        // A connection of the start that was not handed to this client has count 0.
        while let Some(count) = counts.recv().await {
            if count > 0 {
                return count;
            }
        }
        0
    });
    assert_eq!(count.await.unwrap(), 4_000_000);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn first_client_gets_the_connection_that_proved_the_target() {
    let world = World::start().await;
    let (accepted, mut accepts) = mpsc::channel(64);
    let server = TcpServer::start(move |mut stream| {
        let accepted = accepted.clone();
        async move {
            accepted.send(()).await.map_err(std::io::Error::other)?;
            stream.write_all(&MYSQL_GREETING).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
        }
    });
    let server = server.await.unwrap();
    // It is kept for a second: on a busy machine a client may come too late for it.
    let mut counts = Vec::new();
    while !counts.contains(&2) && counts.len() < 10 {
        let tunnel = world.tunnel(server.port()).await;
        let mut greeting = [0; MYSQL_GREETING.len()];
        for _ in 0..2 {
            let mut stream = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
            timeout(LIMIT, stream.read_exact(&mut greeting)).await.unwrap().unwrap();
            assert_eq!(greeting, MYSQL_GREETING);
        }
        tunnel.close().await;
        let mut count = 0;
        while accepts.try_recv().is_ok() {
            count += 1;
        }
        counts.push(count);
    }
    assert!(counts.contains(&2), "one connection for each client, none for the start: {counts:?}");
    world.finish().await;
}

/// The least that is one packet of `Protocol::HandshakeV10`.
const MYSQL_GREETING: [u8; 5] = [1, 0, 0, 0, 10];

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let tunnel =
        world.tunnel_with(server.port(), &json!({ "tunnel": { "max_connections": 2 } })).await;
    let connect = || TcpStream::connect(("127.0.0.1", tunnel.port));
    let mut first = connect().await.unwrap();
    let mut second = connect().await.unwrap();
    for stream in [&mut first, &mut second] {
        assert_eq!(ping(stream, LIMIT).await, Some(*b"ping"));
    }
    let mut third = connect().await.unwrap();
    assert_eq!(ping(&mut third, Duration::from_secs(1)).await, None, "served beyond the limit");
    drop(first);
    let mut answer = [0; 4];
    timeout(LIMIT, third.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"ping", "served when a connection ended");
    assert_eq!(ping(&mut second, LIMIT).await, Some(*b"ping"));
    tunnel.close().await;
    world.finish().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn users_that_are_not_named_are_refused() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let me = nix::unistd::geteuid().as_raw();
    for (allowed, answer) in [(me, Some(*b"ping")), (me + 1, None)] {
        let listen = json!({ "listen": { "allowed_uids": [allowed] } });
        let tunnel = Tunnel::open(&world.config(server.port()).with(&listen)).await;
        // A refused client may learn of it before the connection counts as established.
        let heard = match TcpStream::connect(("127.0.0.1", tunnel.port)).await {
            Ok(mut stream) => ping(&mut stream, LIMIT).await,
            Err(_) => None,
        };
        assert_eq!(heard, answer, "allowed: {allowed}, we are {me}");
        tunnel.close().await;
    }
    world.finish().await;
}
