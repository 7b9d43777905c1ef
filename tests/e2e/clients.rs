//! Database clients as transfers use them: the engines' own programs and Rust drivers.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::Stdio,
    sync::{Arc, OnceLock},
};

use mysql_async::{Conn, OptsBuilder, SslOpts};
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};
use tests::fixtures::{MariaDb, Postgres};
use tokio::{process::Command, task::JoinHandle};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

/// `psql` connected to a port of 127.0.0.1.
pub(crate) fn psql(port: u16) -> Command {
    let mut command = Command::new("psql");
    command
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
        .args(["-p", &port.to_string(), "-U", Postgres::USER, "-d", Postgres::DATABASE])
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A program of MariaDB, connected to a port of 127.0.0.1.
pub(crate) fn mariadb(program: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-P", &port.to_string()])
        .args(["-u", MariaDb::USER, "--max-allowed-packet=256M", "--skip-ssl"])
        .env("MYSQL_PWD", MariaDb::PASSWORD)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command, asserts that it succeeds, and returns its trimmed stdout.
pub(crate) async fn output(mut command: Command) -> String {
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A PostgreSQL connection without TLS, and the task that drives it.
pub(crate) async fn postgres(port: u16) -> Client {
    let (client, connection) = postgres_config(port).connect(NoTls).await.unwrap();
    drive(connection);
    client
}

/// A PostgreSQL connection that requires TLS and the server's own certificate.
pub(crate) async fn postgres_tls(port: u16, certificate: &Path) -> Client {
    let mut config = postgres_config(port);
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    let (client, connection) = config.connect(trusting(certificate)).await.unwrap();
    drive(connection);
    client
}

/// The same, with a certificate that must be valid for `name`.
pub(crate) async fn postgres_tls_for(
    name: &str,
    port: u16,
    certificate: &Path,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = postgres_login(port);
    config.host(name).hostaddr(Ipv4Addr::LOCALHOST.into());
    config.ssl_mode(tokio_postgres::config::SslMode::Require);
    let (client, connection) = config.connect(trusting(certificate)).await?;
    drive(connection);
    Ok(client)
}

/// TLS that trusts only this certificate.
fn trusting(certificate: &Path) -> MakeRustlsConnect {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    MakeRustlsConnect::new(tls)
}

/// A MariaDB connection without TLS.
pub(crate) async fn mysql(port: u16) -> Conn {
    Conn::new(mysql_options(port)).await.unwrap()
}

/// A MariaDB connection that requires TLS and the server's own certificate.
pub(crate) async fn mysql_tls(port: u16, certificate: &Path) -> Conn {
    Conn::new(mysql_options(port).ssl_opts(mysql_trusting(certificate))).await.unwrap()
}

/// The same, with a certificate that must be valid for `name`.
pub(crate) async fn mysql_tls_for(
    name: &'static str,
    port: u16,
    certificate: &Path,
) -> mysql_async::Result<Conn> {
    let tls = mysql_trusting(certificate).with_danger_tls_hostname_override(Some(name));
    Conn::new(mysql_options(port).ssl_opts(tls)).await
}

/// TLS options that trust only this certificate.
pub(crate) fn mysql_trusting(certificate: &Path) -> SslOpts {
    static PROVIDER: OnceLock<()> = OnceLock::new();
    // The driver uses the process's default provider; rustls keeps the first one installed.
    PROVIDER.get_or_init(|| drop(aws_lc_rs::default_provider().install_default()));
    SslOpts::default()
        .with_root_certs(vec![certificate.to_owned().into()])
        .with_disable_built_in_roots(true)
}

fn postgres_config(port: u16) -> tokio_postgres::Config {
    let mut config = postgres_login(port);
    config.host("127.0.0.1");
    config
}

fn postgres_login(port: u16) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.port(port).user(Postgres::USER).password(Postgres::PASSWORD).dbname(Postgres::DATABASE);
    config
}

fn mysql_options(port: u16) -> OptsBuilder {
    OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(port)
        .user(Some(MariaDb::USER))
        .pass(Some(MariaDb::PASSWORD))
        .db_name(Some(MariaDb::DATABASE))
        // A Unix socket of the server would bypass the tunnel.
        .prefer_socket(false)
}

/// Drives a connection until its client is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "ends when its client is dropped, at the latest with the test"
)]
fn drive<F>(connection: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(connection)
}
