//! Databases, each with its own client and with drivers.

use std::{path::Path, time::Duration};

use mysql_async::{Conn, OptsBuilder, prelude::Queryable as _};
use tests::fixtures::{Certificate, Installation, MySql, PgBouncer};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::tried;
use crate::{
    clients::{mysql_trusting, output, postgres_tls, psql},
    world::{LIMIT, Tunnel, World, postgres_server},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(debian_sid), ignore = "needs Debian sid's MySQL: see tests/later-debian")]
async fn mysql_with_its_defaults_serves_its_own_client_and_drivers() {
    let server = MySql::start(Installation::debian("sid").unwrap(), &[]).await.unwrap();
    let world = World::start().await;
    let tunnel = world.tunnel(server.port()).await;

    // Its own client, told nothing about TLS; then with the server's certificate; then without TLS, where the
    // password is encrypted with the server's public key.
    let client = |arguments: &[&str], statement: &str| {
        let mut command = server.client(tunnel.port);
        command.args(arguments).args(["--execute", statement]);
        output(Command::from(command))
    };
    let version = client(&[], "SELECT VERSION()").await;
    let login = "SELECT plugin FROM mysql.user WHERE user = SUBSTRING_INDEX(USER(), '@', 1)";
    assert_eq!(client(&[], login).await, "caching_sha2_password");
    let cipher = "SHOW STATUS LIKE 'Ssl_version'";
    assert_eq!(client(&[], cipher).await, "Ssl_version\tTLSv1.3");
    let certificate = server.certificate().certificate.display().to_string();
    let verified = ["--ssl-mode=VERIFY_IDENTITY", &format!("--ssl-ca={certificate}")];
    assert_eq!(client(&verified, cipher).await, "Ssl_version\tTLSv1.3");
    client(&[], "FLUSH PRIVILEGES").await;
    let plain = ["--ssl-mode=DISABLED", "--get-server-public-key"];
    assert_eq!(client(&plain, "SELECT 1").await, "1");

    let certificate = &server.certificate().certificate;
    mysql_async(&tunnel, certificate).await;
    pymysql(&tunnel, certificate).await;
    tried(&format!("MySQL {version} with its mysql, mysql_async, PyMySQL"));
    tunnel.close().await;
    world.finish().await;
}

/// A client never gets an error from the connection that proved the target before `ready` that one of its own
/// would not get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(debian_sid), ignore = "needs Debian sid's MySQL: see tests/later-debian")]
async fn first_client_of_mysql_gets_no_connection_that_is_half_expired_or_refused() {
    let server = MySql::start(Installation::debian("sid").unwrap(), &[]).await.unwrap();
    let certificate = &server.certificate().certificate;
    let world = World::start().await;
    let mut administrator = mysql(server.port(), certificate).await.unwrap();

    // A server that waits two seconds for a login. A client that comes a second and a half after `ready`, and
    // logs in no faster than it must, has all of them.
    administrator.query_drop("SET GLOBAL connect_timeout = 2").await.unwrap();
    let tunnel = world.tunnel(server.port()).await;
    // That the connection gets old is what is tested.
    sleep(Duration::from_millis(1_500)).await;
    let began = Instant::now();
    let mut client = TcpStream::connect(("127.0.0.1", tunnel.port)).await.unwrap();
    let mut words = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut words)).await.unwrap().unwrap();
    let patience = began.elapsed();
    let words = String::from_utf8_lossy(&words);
    assert!(words.contains("Got timeout reading communication packets"), "{words}");
    assert!(patience >= Duration::from_millis(1_950), "cut after {patience:?}");
    tunnel.close().await;

    // A server that is full while the tunnel is opened, and not any more when the client comes.
    administrator.query_drop("SET GLOBAL connect_timeout = 10").await.unwrap();
    administrator.query_drop("SET GLOBAL max_connections = 1").await.unwrap();
    // One beyond the maximum may still log in where it has the privileges. What was closed above may count for
    // a moment.
    let mut other = None;
    while other.is_none() {
        assert!(began.elapsed() < 2 * LIMIT, "no second connection");
        other = mysql(server.port(), certificate).await.ok();
    }
    let tunnel = world.tunnel(server.port()).await;
    administrator.query_drop("SET GLOBAL max_connections = 100").await.unwrap();
    let mut client = mysql(tunnel.port, certificate).await.unwrap();
    assert_eq!(client.query_first("SELECT 1").await.unwrap(), Some(1));
    client.disconnect().await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

async fn mysql_async(tunnel: &Tunnel, certificate: &Path) {
    let mut connection = mysql(tunnel.port, certificate).await.unwrap();
    let rows: Vec<u32> = connection
        .query(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 500) \
             SELECT i FROM n",
        )
        .await
        .unwrap();
    assert_eq!(rows, (1..=500).collect::<Vec<_>>());
    connection.disconnect().await.unwrap();
}

/// A connection with TLS of `mysql_async` to a port of 127.0.0.1.
async fn mysql(port: u16, certificate: &Path) -> mysql_async::Result<Conn> {
    let options = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(port)
        .user(Some(MySql::USER))
        .pass(Some(MySql::PASSWORD))
        .db_name(Some(MySql::DATABASE))
        .prefer_socket(false)
        .ssl_opts(mysql_trusting(certificate));
    Conn::new(options).await
}

async fn pymysql(tunnel: &Tunnel, certificate: &Path) {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tls_names/drivers.py"));
    command.args(["pymysql", Certificate::NAME, &tunnel.port.to_string()]).arg(certificate);
    command.args([MySql::USER, MySql::PASSWORD, MySql::DATABASE]);
    assert_eq!(output(command).await, "TLSv1.3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_in_front_of_postgresql_serves_psql_and_a_driver() {
    let database = postgres_server().await;
    let server = PgBouncer::start(database).await.unwrap();
    let world = World::start().await;
    let tunnel = world.tunnel(server.port()).await;
    let certificate = &server.certificate().certificate;
    let client = |statement: &str| {
        let mut command = psql(tunnel.port);
        command.args(["-c", statement]);
        command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", certificate);
        output(command)
    };
    let counted = "SELECT count(*) FROM generate_series(1, 1000)";
    assert_eq!(client(counted).await, "1000");
    let postgresql = client("SHOW server_version").await;
    let driver = postgres_tls(tunnel.port, certificate).await;
    let row = driver.query_one("SELECT 1 + $1::int", &[&1]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2);
    drop(driver);
    tried(&format!("{} before PostgreSQL {postgresql}", server.version()));
    tunnel.close().await;
    world.finish().await;
}
