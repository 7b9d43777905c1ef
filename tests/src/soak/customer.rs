//! One customer: AWS, a bastion, a database, a sidecar, and the clients that use it.

use std::{fs, future::Future, io, pin::Pin, time::Duration};

use nix::unistd::Pid;
use serde_json::json;
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{
    faults::FaultInjector,
    load::{Counts, Tally, read_again_and_again, run_again_and_again, write_again_and_again},
    report::Findings,
};
use crate::{
    emulator::{AgentSettings, Control, Emulator, OWN_SESSIONS, Policy},
    fixtures::{Config, MariaDb, Postgres, Sidecar, Sshd, eventually},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Engine {
    PostgreSql,
    MariaDb,
}

enum Database {
    PostgreSql(Postgres),
    MariaDb(MariaDb),
}

/// A sidecar that is ready, with everything around it.
pub(super) struct Customer {
    emulator: Emulator,
    database: Database,
    sidecar: Sidecar,
    port: u16,
    /// Expected dump of the table.
    expected: Vec<u8>,
    _sshd: Sshd,
}

impl Customer {
    /// Starts everything. `resumable`: whether the customer allows `ssm:ResumeSession`.
    pub(super) async fn start(engine: Engine, resumable: bool) -> Outcome<Self> {
        let database = match engine {
            Engine::PostgreSql => Database::PostgreSql(Postgres::start().await?),
            Engine::MariaDb => Database::MariaDb(MariaDb::start().await?),
        };
        let sshd = Sshd::start().await?;
        let policy = if resumable {
            Policy::full(INSTANCE)
        } else {
            Policy::least_privilege(INSTANCE).allowing("ssm:TerminateSession", OWN_SESSIONS)
        };
        let emulator = Emulator::builder()
            .instance(INSTANCE)
            .access_key(ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            .policy(policy)
            .channel_lifetime(CHANNEL_LIFE)
            .agent(
                AgentSettings::default().channel_lifetime(AGENT_CHANNEL_LIFE).report_delay(REPORT),
            )
            .build()
            .await?;
        let config = Config::new("soak").with(&json!({
            "aws": {
                "access_key_id": ACCESS_KEY_ID,
                "secret_access_key": SECRET_ACCESS_KEY,
                "endpoint_url": emulator.api_url(),
            },
            "bastion": {
                "instance_id": INSTANCE,
                "ssh_port": sshd.port(),
                "ssh_user": sshd.user(),
                "ssh_private_key": sshd.client_key().private,
                "ssh_host_key": sshd.host_key_fingerprint("ed25519")?,
            },
            "target": { "host": "127.0.0.1", "port": database.port() },
            "tunnel": { "sessions": 2 },
            "events": true,
        }));
        let sidecar = Sidecar::spawn_with(&config, |command| {
            command.env("RUST_LOG", "warn");
        });
        let mut sidecar = sidecar.await?;
        let port = sidecar.ready(READY).await?;
        prepare(&database).await?;
        let expected = database.dump(database.port(), SOURCE).output().await?.stdout;
        if expected.len() < 1_000_000 {
            return Err("the table to be dumped is missing".into());
        }
        Ok(Self { emulator, database, sidecar, port, expected, _sshd: sshd })
    }

    /// Puts load on the tunnel and injects faults below it until `end`, then ends the sidecar.
    pub(super) async fn soak(self, end: Instant, seed: u64) -> Outcome<Findings> {
        let Self { emulator, database, sidecar, port, expected, _sshd } = self;
        let pid = sidecar.pid()?;
        let tally = Tally::default();
        let sidecar = Mutex::new(sidecar);
        let journal = emulator.journal();
        let injector = FaultInjector::new(emulator.control(), &journal, seed);
        let control = emulator.control();
        let renew = async |turn| drop(renew_keys(&control, &sidecar, turn).await);
        let loads: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = vec![
            Box::pin(read_again_and_again(
                "first reader",
                || database.dump(port, SOURCE),
                &expected,
                &tally,
                end,
            )),
            Box::pin(read_again_and_again(
                "second reader",
                || database.dump(port, SOURCE),
                &expected,
                &tally,
                end,
            )),
            Box::pin(write_again_and_again(
                "writer",
                || database.restore(port),
                || database.dump(database.port(), TARGET),
                &expected,
                &tally,
                end,
            )),
            Box::pin(run_again_and_again(
                || database.queries(port),
                |text, counts| database.count(text, counts),
                &tally,
                end,
            )),
        ];
        let (faults, _) =
            tokio::join!(injector.work(end, renew), futures_util::future::join_all(loads));

        let peak_kib = peak_kib(pid);
        let mut sidecar = sidecar.into_inner();
        sidecar.close_stdin();
        let mut died = None;
        let mut summary = serde_json::Value::Null;
        match sidecar.exit(STOP).await {
            Ok(exit) => {
                if !exit.status.success() {
                    died = Some(format!("the sidecar ended with {}: {}", exit.status, exit.text()));
                }
                summary = exit.closed().unwrap_or_default();
            }
            Err(error) => died = Some(error.to_string()),
        }
        eventually(STOP, || async { journal.open_sessions().is_empty() }).await;
        let Counts { compared, differing, transfers, transactions, cut } = tally.counts();
        let number = |name: &str| summary.get(name).and_then(serde_json::Value::as_u64);
        Ok(Findings {
            name: database.name(),
            compared,
            differing,
            transfers,
            transactions,
            cut,
            faults,
            sessions: journal.sessions().len(),
            left: journal.open_sessions(),
            violations: journal.violations(),
            connections: number("connections").unwrap_or_default(),
            resumes: number("resumes").unwrap_or_default(),
            retransmissions: number("retransmissions").unwrap_or_default(),
            pauses: journal.pauses(),
            closes_provoked: journal.closes_provoked(),
            peak_kib,
            died,
        })
    }
}

/// Gives the sidecar new keys and expires the old ones.
async fn renew_keys(control: &Control, sidecar: &Mutex<Sidecar>, turn: u64) -> io::Result<()> {
    let id = format!("AKIA{turn:016}");
    control.expire_credentials(None);
    control.add_key(&id, SECRET_ACCESS_KEY, None);
    let keys = json!({
        "type": "credentials",
        "access_key_id": id,
        "secret_access_key": SECRET_ACCESS_KEY,
    });
    sidecar.lock().await.write(format!("{keys}\n").as_bytes()).await
}

async fn prepare(database: &Database) -> Outcome<()> {
    for mut command in database.preparations() {
        let output = command.output().await?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{command:?}: {text}").into());
        }
    }
    Ok(())
}

impl Database {
    fn name(&self) -> &'static str {
        match self {
            Self::PostgreSql(_) => "PostgreSQL, sessions may be resumed",
            Self::MariaDb(_) => "MariaDB, sessions may not be resumed",
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::PostgreSql(server) => server.port(),
            Self::MariaDb(server) => server.port(),
        }
    }

    fn preparations(&self) -> Vec<Command> {
        match self {
            Self::PostgreSql(server) => {
                let mut tables = psql(server.port());
                tables.args([
                    "-c",
                    &format!(
                        "CREATE TABLE source AS SELECT i AS id, now() - i * interval '1 s' AS at, \
                     md5(i::text) || md5((i * 7)::text) AS payload, (i * 37) % 100000 AS amount \
                     FROM generate_series(1, {ROWS}) i; CREATE TABLE target (LIKE source)"
                    ),
                ]);
                let mut bench = postgres_program("pgbench", server.port());
                bench.args(["-i", "-q", "-s", "1", Postgres::DATABASE]);
                vec![tables, bench]
            }
            Self::MariaDb(server) => {
                let create = format!(
                    "CREATE TABLE source (id INT PRIMARY KEY, payload TEXT, amount INT) AS \
                     SELECT seq AS id, CONCAT(MD5(seq), MD5(seq * 7)) AS payload, \
                     (seq * 37) % 100000 AS amount FROM seq_1_to_{ROWS}; \
                     CREATE TABLE target LIKE source"
                );
                let mut tables = mariadb("mariadb", server.port());
                tables.args([MariaDb::DATABASE, "-e", &create]);
                vec![tables]
            }
        }
    }

    /// Writes a table's rows in order to stdout.
    fn dump(&self, port: u16, table: &str) -> Command {
        match self {
            Self::PostgreSql(_) => {
                let mut command = psql(port);
                let copy = format!("COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT");
                command.args(["-c", &copy]);
                command
            }
            Self::MariaDb(_) => {
                let mut command = mariadb("mariadb", port);
                let select = format!("SELECT * FROM {table} ORDER BY id");
                command.args(["--quick", "--batch", "--skip-column-names"]);
                command.args([MariaDb::DATABASE, "-e", &select]);
                command
            }
        }
    }

    /// Restores rows from stdin into the other table, replacing its content.
    fn restore(&self, port: u16) -> Command {
        match self {
            Self::PostgreSql(_) => {
                let mut command = psql(port);
                let copy = "BEGIN; TRUNCATE target; COPY target FROM STDIN; COMMIT";
                command.args(["-c", copy]);
                command
            }
            Self::MariaDb(_) => {
                let mut command = mariadb("mariadb", port);
                let load = "DELETE FROM target; \
                            LOAD DATA LOCAL INFILE '/dev/stdin' INTO TABLE target";
                command.args(["--local-infile=1", "--init-command=SET autocommit=1"]);
                command.args([MariaDb::DATABASE, "-e", load]);
                command
            }
        }
    }

    /// Many short transactions.
    fn queries(&self, port: u16) -> Command {
        match self {
            Self::PostgreSql(_) => {
                let mut command = postgres_program("pgbench", port);
                command.args(["-n", "-c", "3", "-T", "5", "-C", Postgres::DATABASE]);
                command
            }
            Self::MariaDb(_) => {
                let mut command = mariadb("mariadb", port);
                let select = "SELECT COUNT(*), SUM(amount) FROM source";
                command.args(["--batch", "--skip-column-names", MariaDb::DATABASE, "-e", select]);
                command
            }
        }
    }

    /// Evaluates the output of the queries.
    fn count(&self, text: &str, counts: &mut Counts) {
        match self {
            Self::PostgreSql(_) => {
                let words = "number of transactions actually processed: ";
                let line = text.lines().find_map(|line| line.strip_prefix(words));
                let number = line.and_then(|rest| rest.split(['/', ' ']).next()?.parse().ok());
                counts.transactions += number.unwrap_or(0_u64);
            }
            Self::MariaDb(_) => counts.transactions += u64::from(!text.is_empty()),
        }
    }
}

fn psql(port: u16) -> Command {
    let mut command = postgres_program("psql", port);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", Postgres::DATABASE]);
    command
}

fn postgres_program(name: &str, port: u16) -> Command {
    let mut command = Command::new(name);
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", Postgres::USER])
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PGSSLMODE", "disable")
        .kill_on_drop(true);
    command
}

fn mariadb(name: &str, port: u16) -> Command {
    let mut command = Command::new(name);
    command
        .args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-P", &port.to_string()])
        .args(["-u", MariaDb::USER, "--skip-ssl"])
        .env("MYSQL_PWD", MariaDb::PASSWORD)
        .kill_on_drop(true);
    command
}

/// Peak memory of a process and its children so far, in KiB.
fn peak_kib(pid: Pid) -> u64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let own = pid.to_string();
    children.split_whitespace().chain([own.as_str()]).filter_map(peak_of).sum()
}

fn peak_of(pid: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

const INSTANCE: &str = "i-0123456789abcdef0";
const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const SOURCE: &str = "source";
const TARGET: &str = "target";

/// Rows of the table, of about a hundred bytes each.
const ROWS: u32 = 20_000;

/// Lifetime of a data channel, in place of the service's hour.
const CHANNEL_LIFE: Duration = Duration::from_secs(40);

/// Lifetime of the agent's own channel, in place of the hour.
const AGENT_CHANNEL_LIFE: Duration = Duration::from_secs(50);

/// How long the agent takes to report a killed session worker, in place of a minute.
const REPORT: Duration = Duration::from_secs(5);

const READY: Duration = Duration::from_secs(30);

/// Time limit for the stop: the contract allows five seconds; the machine may be busy.
const STOP: Duration = Duration::from_secs(6);
