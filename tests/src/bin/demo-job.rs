//! The main job on embedded parts, with one command: `cargo run --release --bin demo`.
//!
//! Needs nothing but this repository. This process emulates AWS and the customer's network; the sidecar is
//! the real program in its own process, started as a runner starts it.

#![expect(clippy::print_stdout, reason = "what this program is for")]

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    emulator::{Emulator, Ending, Policy},
    fixtures::{Bastion, Config, Database, Exit, Sidecar, binary, eventually},
};
use tokio::{select, signal::ctrl_c, time::timeout};
use tokio_postgres::{NoTls, Row};

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(_) => {
            println!("usage: demo [--keep]");
            return ExitCode::from(64);
        }
    };
    match demo(keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThis is not as promised: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The demo, top to bottom.
async fn demo(keep: bool) -> Outcome<()> {
    println!("ssm-sidecar: a query to a database that nothing but a bastion can reach\n");
    let sidecar = build().await?;

    println!("The customer's side, played by this process:");
    let database = Database::start().await?;
    let bastion = Bastion::start(DATABASE_HOST, database.port()).await?;
    let emulator = Emulator::builder()
        .instance(INSTANCE)
        .access_key(ACCESS_KEY_ID, SECRET_ACCESS_KEY)
        .policy(Policy::least_privilege(INSTANCE))
        .build()
        .await?;
    println!(
        "  database  port {:<6} speaks PostgreSQL's protocol; a table `orders`",
        database.port()
    );
    println!(
        "  bastion   port {:<6} an SSH server that forwards to this database alone",
        bastion.port()
    );
    println!("  AWS       {}", emulator.api_url());
    println!("            Systems Manager's API, message gateway and agent on {INSTANCE};");
    println!(
        "            checks signatures; the policy allows ssm:StartSession and nothing else\n"
    );

    println!("The runner's side: start {}", sidecar.display());
    println!("  and write one JSON config to its stdin, which stays open: the job's lease.");
    let (mut sidecar, port) = start(&config(&emulator, &bastion, &database)).await?;

    println!("\nA PostgreSQL driver connects to 127.0.0.1:{port} and asks:\n  {QUERY}\n");
    print_table(&query(port).await?)?;

    if keep {
        println!("\nOpen until Ctrl-C. From another terminal:");
        println!("  psql -h 127.0.0.1 -p {port} -U demo -d demo -c 'SELECT * FROM orders'");
        select! {
            result = ctrl_c() => result?,
            line = sidecar.word("closed", FOREVER) => drop(line?),
        }
    }

    println!("\nThe job is done: close the sidecar's stdin.");
    let asked = Instant::now();
    sidecar.close_stdin();
    let exit = sidecar.exit(STOP).await?;
    println!("  exit status {} after {} ms", status(&exit)?, asked.elapsed().as_millis());
    verify_end(&exit, &emulator).await
}

/// Finds or builds the sidecar; cargo's progress is shown on stderr.
async fn build() -> Outcome<std::path::PathBuf> {
    if std::env::var_os("SSM_SIDECAR_BIN").is_none() {
        println!("Building the sidecar, unless it is up to date ...");
    }
    Ok(tokio::task::spawn_blocking(binary).await??)
}

/// The config that the runner writes for this job.
fn config(emulator: &Emulator, bastion: &Bastion, database: &Database) -> Config {
    Config::new("demo").with(&json!({
        "aws": {
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "endpoint_url": emulator.api_url(),
        },
        "bastion": {
            "instance_id": INSTANCE,
            "ssh_port": bastion.port(),
            "ssh_user": Bastion::USER,
            "ssh_private_key": bastion.client_key(),
            "ssh_host_key": bastion.fingerprint(),
        },
        "target": { "engine": "postgresql", "host": DATABASE_HOST, "port": database.port() },
        "events": true,
    }))
}

/// Starts the sidecar and prints its lines until it is ready.
async fn start(config: &Config) -> Outcome<(Sidecar, u16)> {
    let mut sidecar = Sidecar::spawn(config).await?;
    let started = Instant::now();
    loop {
        let Some(line) = sidecar.line(READY).await? else {
            return Err("the sidecar ended before it was ready".into());
        };
        println!("  {:>6} ms  {line}", started.elapsed().as_millis());
        io::stdout().flush()?;
        match line.split_once(' ') {
            Some(("ready", port)) => return Ok((sidecar, port.parse()?)),
            Some(("failed", _)) => return Err("the sidecar failed".into()),
            _ => {}
        }
    }
}

/// Queries the database through the tunnel.
async fn query(port: u16) -> Outcome<Vec<Row>> {
    let config = format!("host=127.0.0.1 port={port} user=demo dbname=demo");
    let (client, connection) = timeout(READY, tokio_postgres::connect(&config, NoTls)).await??;
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&1_000_i64];
    select! {
        rows = client.query(QUERY, &parameters) => Ok(rows?),
        end = connection => {
            end?;
            Err("the database closed the connection".into())
        }
    }
}

/// Prints rows as `psql` does.
fn print_table(rows: &[Row]) -> Outcome<()> {
    if rows.is_empty() {
        return Err("the database has sent no rows".into());
    }
    println!("   id │ customer    │ item         │ yen");
    println!("  ────┼─────────────┼──────────────┼───────");
    for row in rows {
        let (id, customer): (i32, &str) = (row.try_get(0)?, row.try_get(1)?);
        let (item, amount): (&str, i64) = (row.try_get(2)?, row.try_get(3)?);
        println!("  {id:>3} │ {customer:<11} │ {item:<12} │ {amount:>6}");
    }
    Ok(())
}

/// Checks that the sidecar ended as the contract says, and that no session is left in AWS.
async fn verify_end(exit: &Exit, emulator: &Emulator) -> Outcome<()> {
    if status(exit)? != 0 {
        return Err(format!("the sidecar said: {}", exit.text()).into());
    }
    let journal = emulator.journal();
    if !eventually(STOP, || async { journal.open_sessions().is_empty() }).await {
        return Err(format!("sessions left open: {:?}", journal.open_sessions()).into());
    }
    let violations = journal.violations();
    if !violations.is_empty() {
        return Err(format!("the protocol was broken: {violations:?}").into());
    }
    for session in journal.sessions() {
        let how = match journal.ending(&session) {
            Some(Ending::Flag) => "by the flag in its channel",
            Some(Ending::Api) => "by the API",
            _ => return Err(format!("session {session} ended in another way").into()),
        };
        println!("  session {session} was terminated {how}");
    }
    println!("  no session is left on the instance");

    let summary = exit.closed().ok_or("the sidecar printed no summary")?;
    println!("\nThe sidecar's summary:");
    let phases = summary.get("phases_ms").and_then(Value::as_object).ok_or("no times in it")?;
    let times: Vec<_> = phases.iter().map(|(name, took)| format!("{name} {took} ms")).collect();
    println!("  start       {}", times.join(", "));
    for name in ["bytes_to_target", "bytes_from_target", "connections", "retransmissions"] {
        println!("  {:<18} {}", name, summary.get(name).unwrap_or(&Value::Null));
    }
    Ok(())
}

fn status(exit: &Exit) -> Outcome<i32> {
    exit.status.code().ok_or_else(|| format!("the sidecar was killed: {}", exit.status).into())
}

const INSTANCE: &str = "i-0123456789abcdef0";
const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The database's address as the bastion sees it.
const DATABASE_HOST: &str = "127.0.0.1";

const QUERY: &str = "SELECT id, customer, item, amount_yen FROM orders WHERE amount_yen > $1";

const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(5);

/// Longer than anyone keeps a demo open.
const FOREVER: Duration = Duration::from_hours(24 * 365);
