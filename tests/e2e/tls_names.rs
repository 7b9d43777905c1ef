//! Drivers verify the database's name in its certificate through 127.0.0.1, as `sidecar/README.md` says.

use std::{ffi::OsStr, fs, path::Path, process::Output};

use tempfile::TempDir;
use tests::fixtures::{Certificate, MariaDb, Postgres};
use tokio::{process::Command, time::timeout};

use crate::world::{LIMIT, World, mariadb_server, postgres_server};

/// Not in the certificate.
const ANOTHER_NAME: &str = "payments.db.internal";

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
    let directory = TempDir::new().unwrap();
    let hosts = directory.path().join("hosts");
    // What `hostAliases` of a pod makes.
    fs::write(&hosts, format!("127.0.0.1 {} {ANOTHER_NAME}\n", Certificate::NAME)).unwrap();
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

/// A program that sees another /etc/hosts, in a mount namespace of its own.
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
