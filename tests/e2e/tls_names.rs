//! Drivers verify the database's name in its certificate through 127.0.0.1, as described in
//! `sidecar/README.md`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use mysql_async::prelude::Queryable as _;
use tempfile::TempDir;
use tests::fixtures::{Certificate, MariaDb, Postgres};
use tokio::{process::Command, time::timeout};

use crate::{
    clients::{mysql_tls_for, postgres_tls_for},
    world::{LIMIT, Tunnel, World, mariadb_server, postgres_server},
};

/// A name that is not in the certificate.
const ANOTHER_NAME: &str = "payments.db.internal";

/// Queries whose last column is the version of TLS.
const POSTGRESQL_TLS: &str = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
const MARIADB_TLS: &str = "SHOW STATUS LIKE 'Ssl_version'";

/// The interpreter for which Debian's packages are built.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test]
async fn libpq_verifies_the_name_with_hostaddr() {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let ask = async |name: &str| {
        let root = server.certificate().certificate.display();
        let parameters = format!(
            "host={name} hostaddr=127.0.0.1 port={} sslmode=verify-full sslrootcert={root} user={} dbname={}",
            tunnel.port,
            Postgres::USER,
            Postgres::DATABASE
        );
        let query = "SELECT 'verified', ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let mut command = Command::new("psql");
        command.args(["-X", "-A", "-t", &parameters, "-c", query]);
        output(command.env("PGPASSWORD", Postgres::PASSWORD)).await
    };
    let answer = ask(Certificate::NAME).await;
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "verified|t\n", "{answer:?}");
    let refused = ask(ANOTHER_NAME).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains(ANOTHER_NAME), "{refused:?}");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn mariadb_verifies_the_name_with_a_host_alias() {
    let world = World::start().await;
    let server = mariadb_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let directory = hosts();
    let hosts = directory.path().join("hosts");
    let ask = async |name: &str| {
        let mut command = with_hosts(&hosts, "mariadb");
        command.args(["--no-defaults", "--protocol=tcp", "-N", "-h", name]);
        command.args(["-P", &tunnel.port.to_string(), "-u", MariaDb::USER]);
        command.arg("--ssl-verify-server-cert").arg("--ssl-ca");
        command.arg(&server.certificate().certificate);
        command.args(["-e", "SHOW STATUS LIKE 'Ssl_version'"]);
        output(command.env("MYSQL_PWD", MariaDb::PASSWORD)).await
    };
    let answer = ask(Certificate::NAME).await;
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(text.starts_with("Ssl_version\tTLSv1."), "{answer:?}");
    let refused = ask(ANOTHER_NAME).await;
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("Validation of SSL server certificate failed"), "{refused:?}");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn tokio_postgres_verifies_the_name_with_hostaddr() {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let certificate = &server.certificate().certificate;
    let client = postgres_tls_for(Certificate::NAME, tunnel.port, certificate).await.unwrap();
    let row = client.query_one(POSTGRESQL_TLS, &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "TLSv1.3");
    let refused = postgres_tls_for(ANOTHER_NAME, tunnel.port, certificate).await.unwrap_err();
    assert!(format!("{refused:?}").contains("NotValidForName"), "{refused:?}");
    drop(client);
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn mysql_async_verifies_the_name_that_it_is_given_apart() {
    let world = World::start().await;
    let server = mariadb_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let certificate = &server.certificate().certificate;
    let mut client = mysql_tls_for(Certificate::NAME, tunnel.port, certificate).await.unwrap();
    let (_, version): (String, String) = client.query_first(MARIADB_TLS).await.unwrap().unwrap();
    assert_eq!(version, "TLSv1.3");
    let refused = mysql_tls_for(ANOTHER_NAME, tunnel.port, certificate).await.unwrap_err();
    assert!(format!("{refused:?}").contains("NotValidForName"), "{refused:?}");
    client.disconnect().await.unwrap();
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn psycopg_verifies_the_name_with_hostaddr() {
    let python = |_: &Path| Command::new(PYTHON);
    postgresql_in_python("psycopg", python, ANOTHER_NAME).await;
}

#[tokio::test]
async fn asyncpg_verifies_the_name_with_a_host_alias() {
    let python = |hosts: &Path| with_hosts(hosts, PYTHON);
    postgresql_in_python("asyncpg", python, "Hostname mismatch").await;
}

#[tokio::test]
async fn pymysql_verifies_the_name_over_a_socket_of_the_callers() {
    let world = World::start().await;
    let server = mariadb_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let certificate = &server.certificate().certificate;
    let login = [MariaDb::USER, MariaDb::PASSWORD, MariaDb::DATABASE];
    let ask = async |name: &str| {
        let mut command = Command::new(PYTHON);
        output(python(&mut command, "pymysql", name, &tunnel, certificate).args(login)).await
    };
    assert_verified(&ask(Certificate::NAME).await);
    assert_refused(&ask(ANOTHER_NAME).await, "Hostname mismatch");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn jdbc_of_postgresql_verifies_the_name_with_a_hosts_file() {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let login = [Postgres::USER, Postgres::PASSWORD, POSTGRESQL_TLS];
    let ask = async |name: &str| {
        let root = server.certificate().certificate.display();
        let (port, database) = (tunnel.port, Postgres::DATABASE);
        let url = format!(
            "jdbc:postgresql://{name}:{port}/{database}?sslmode=verify-full&sslrootcert={root}"
        );
        let (mut command, _hosts) = java("postgresql.jar");
        output(command.arg(url).args(login)).await
    };
    assert_verified(&ask(Certificate::NAME).await);
    assert_refused(&ask(ANOTHER_NAME).await, "could not be verified by hostnameverifier");
    tunnel.close().await;
    world.finish().await;
}

#[tokio::test]
async fn jdbc_of_mariadb_verifies_the_name_with_a_hosts_file() {
    let world = World::start().await;
    let server = mariadb_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let login = [MariaDb::USER, MariaDb::PASSWORD, MARIADB_TLS];
    let ask = async |name: &str| {
        let root = server.certificate().certificate.display();
        let (port, database) = (tunnel.port, MariaDb::DATABASE);
        let url =
            format!("jdbc:mariadb://{name}:{port}/{database}?useSsl=true&serverSslCert={root}");
        let (mut command, _hosts) = java("mariadb-java-client.jar");
        output(command.arg(url).args(login)).await
    };
    assert_verified(&ask(Certificate::NAME).await);
    assert_refused(&ask(ANOTHER_NAME).await, "doesn't correspond to certificate");
    tunnel.close().await;
    world.finish().await;
}

/// A Python driver of PostgreSQL accepts the right name, and rejects another one with this message.
async fn postgresql_in_python(driver: &str, interpreter: impl Fn(&Path) -> Command, refusal: &str) {
    let world = World::start().await;
    let server = postgres_server().await;
    let tunnel = world.tunnel(server.port()).await;
    let certificate = &server.certificate().certificate;
    let login = [Postgres::USER, Postgres::PASSWORD, Postgres::DATABASE];
    let hosts = hosts();
    let ask = async |name: &str| {
        let mut command = interpreter(&hosts.path().join("hosts"));
        output(python(&mut command, driver, name, &tunnel, certificate).args(login)).await
    };
    assert_verified(&ask(Certificate::NAME).await);
    assert_refused(&ask(ANOTHER_NAME).await, refusal);
    tunnel.close().await;
    world.finish().await;
}

fn python<'a>(
    interpreter: &'a mut Command,
    driver: &str,
    name: &str,
    tunnel: &Tunnel,
    certificate: &Path,
) -> &'a mut Command {
    interpreter.arg(beside("drivers.py")).args([driver, name, &tunnel.port.to_string()]);
    interpreter.arg(certificate)
}

/// A JVM with its own hosts file, and a driver packaged by Debian.
fn java(driver: &str) -> (Command, TempDir) {
    let hosts = hosts();
    let mut command = Command::new("java");
    command.arg(format!("-Djdk.net.hosts.file={}", hosts.path().join("hosts").display()));
    command.arg("-cp").arg(Path::new("/usr/share/java").join(driver)).arg(beside("Driver.java"));
    (command, hosts)
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tls_names").join(name)
}

fn assert_verified(answer: &Output) {
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "TLSv1.3\n", "{answer:?}");
}

fn assert_refused(answer: &Output, why: &str) {
    assert!(!answer.status.success() && answer.stdout.is_empty(), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains(why), "{answer:?}");
}

/// A hosts file like the one that `hostAliases` of a pod creates: both names lead to the tunnel.
fn hosts() -> TempDir {
    let directory = TempDir::new().unwrap();
    let aliases = format!("127.0.0.1 localhost {} {ANOTHER_NAME}\n", Certificate::NAME);
    fs::write(directory.path().join("hosts"), aliases).unwrap();
    directory
}

/// A program that sees another /etc/hosts, in its own mount namespace.
fn with_hosts(hosts: &Path, program: &str) -> Command {
    let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script].map(OsStr::new));
    command.arg(hosts).arg(program);
    command
}

async fn output(command: &mut Command) -> Output {
    timeout(LIMIT, command.kill_on_drop(true).output()).await.unwrap().unwrap()
}
