//! `SELECT 1` by pgbench: what the sidecar adds to the path's own time, alone and beside a dump.

use std::{process::Stdio, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tests::{
    emulator::Pacing,
    fixtures::{Postgres, TcpServer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::sleep,
};

use super::{
    Bench, Outcome,
    acker::Acker,
    openssh::{PLUGIN_PATH, SshL},
    report::{Report, Table},
    stats::{Figures, digits},
    tables::{Engine, Inside},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let postgres = Postgres::start().await?;
    let port = postgres.port();
    let columns = ["pacing", "path", "clients", "median ms", "p99 ms"];
    let mut table = Table::new("SELECT 1", &columns);
    let seconds = if bench.quick { 1 } else { 3 };
    for (pacing, name) in [(Pacing::Real, "real"), (Pacing::Unpaced, "none")] {
        let world = World::start(&bench.sshd, Net::NEAR, pacing).await?;
        let tunnel = world.tunnel(port, &json!({})).await?;
        let ssh = SshL::open(&world, bench.sshd.port(), port).await?;
        let plugin = SshL::through_plugin(&world, port).await?;
        let mut row = |path: &str, clients: usize, figures: &Figures| {
            let [median, p99] = [0.5, 0.99].map(|share| digits(figures.quantile(share)));
            table.row([name.to_owned(), path.to_owned(), clients.to_string(), median, p99]);
        };
        for clients in [1, 8] {
            // Answers share the agent's pauses, with and without SSH.
            let at_once = own_time(&world, bench, clients, true).await?;
            row("session without SSH, echo of 100 bytes", clients, &at_once);
            let own = own_time(&world, bench, clients, false).await?;
            row("the same, answers sent by Nagle's algorithm, as sshd does", clients, &own);
            let direct = pgbench(port, clients, seconds).await?;
            let through_ssh = pgbench(ssh.port, clients, seconds).await?;
            let ours = pgbench(tunnel.port, clients, seconds).await?;
            row("straight", clients, &direct);
            row("ssh -L, no SSM", clients, &through_ssh);
            row("sidecar", clients, &ours);
            if let Some(plugin) = &plugin {
                row(PLUGIN_PATH, clients, &pgbench(plugin.port, clients, seconds).await?);
            }
            let added = |share| ours.quantile(share) - direct.quantile(share) - own.quantile(share);
            let subject = format!(
                "SELECT 1, pacing {name}, {clients} client(s): added to the path's own time"
            );
            let figure =
                format!("{} ms median, {} ms p99", digits(added(0.5)), digits(added(0.99)));
            let met = added(0.5) <= 1.5 && added(0.99) <= 5.0;
            report.goal(&subject, "≤ 1.5 ms median, ≤ 5 ms p99", figure, met);
        }
        tunnel.close().await?;
    }

    let engine = Engine::Postgres(port);
    // Large enough for a dump to last as long as the queries, however well the rows compress.
    engine.fill(150_000).await?;
    for (data, sessions) in [("random bytes", 1), ("table dump", 1), ("table dump", 2)] {
        let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
        let changes = json!({ "tunnel": { "sessions": sessions } });
        let tunnel = world.tunnel(port, &changes).await?;
        let ours = if data == "table dump" {
            let time = super::load::Stretch {
                warm_up: Duration::from_secs(seconds + 2),
                window: Duration::from_millis(500),
            };
            let (rate, ours) =
                tokio::join!(engine.dump(tunnel.port, 1, time, Inside::PlainText), async {
                    sleep(Duration::from_millis(1500)).await;
                    pgbench(tunnel.port, 1, seconds).await
                });
            rate?;
            ours?
        } else {
            beside_random(tunnel.port, port, seconds).await?
        };
        tunnel.close().await?;
        let subject = format!("SELECT 1 beside a download of {data}, {sessions} session(s)");
        let [median, p99] = [0.5, 0.99].map(|share| ours.quantile(share));
        let figure = format!("{} ms median, {} ms p99", digits(median), digits(p99));
        report.goal(&subject, "≤ 25 ms p99", figure, p99 <= 25.0);
        let path = format!("sidecar beside {data}, {sessions} session(s)");
        table.row(["real".to_owned(), path, "1".to_owned(), digits(median), digits(p99)]);
    }
    report.table(table);
    Ok(())
}

/// Queries beside a dump of incompressible bytes from the same database.
async fn beside_random(tunnel: u16, direct: u16, seconds: u64) -> Outcome<Figures> {
    let rows = "CREATE TABLE noise AS SELECT string_agg(decode(replace(gen_random_uuid()::text, '-', ''), 'hex'), '') \
                AS bytes FROM generate_series(1, 400000) i GROUP BY i / 64";
    let made = psql(direct, rows).status().await?;
    if !made.success() {
        return Err("no table of random bytes".into());
    }
    let mut dump = psql(tunnel, "COPY noise TO STDOUT (FORMAT binary)");
    let mut dump = dump.stdout(Stdio::null()).spawn()?;
    sleep(Duration::from_millis(1500)).await;
    let queries = pgbench(tunnel, 1, seconds).await;
    if dump.try_wait()?.is_some() {
        return Err("the dump ended before the queries".into());
    }
    dump.kill().await?;
    queries
}

fn psql(port: u16, statement: &str) -> Command {
    let mut command = Command::new("psql");
    command
        .args(["-X", "-q", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", Postgres::USER])
        .args(["-d", Postgres::DATABASE, "-c", statement])
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Milliseconds of an echo through a session without SSH, with this many clients at once.
///
/// sshd leaves Nagle's algorithm on for sessions without a terminal: behind an answer that the agent's
/// kernel has not acknowledged, further answers wait, and the agent pauses after each read.
async fn own_time(world: &World, bench: &Bench, clients: usize, at_once: bool) -> Outcome<Figures> {
    let server = TcpServer::start(move |mut stream| async move {
        stream.set_nodelay(at_once)?;
        let mut question = [0; 100];
        loop {
            stream.read_exact(&mut question).await?;
            stream.write_all(&question).await?;
        }
    })
    .await?;
    let mut acker = Acker::open(world, server.port()).await?;
    let count = if bench.quick { 100 } else { 500 } * clients;
    let samples = acker.echoes(&[7; 100], clients, count).await?;
    let samples = samples.into_iter().map(|time| time.as_secs_f64() * 1e3);
    Ok(Figures::of(samples).ok_or("nothing measured")?)
}

/// Milliseconds of each pgbench transaction.
async fn pgbench(port: u16, clients: usize, seconds: u64) -> Outcome<Figures> {
    let directory = TempDir::new()?;
    let script = directory.path().join("script");
    tokio::fs::write(&script, "SELECT 1;\n").await?;
    let prefix = directory.path().join("log");
    let mut command = Command::new("pgbench");
    command
        .args(["-n", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", Postgres::USER])
        .args(["-c", &clients.to_string(), "-j", "1", "-T", &seconds.to_string(), "-l", "-f"])
        .arg(&script)
        .arg(format!("--log-prefix={}", prefix.display()))
        .arg(Postgres::DATABASE)
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PGSSLMODE", "disable")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let mut samples = Vec::new();
    for entry in std::fs::read_dir(directory.path())?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("log") {
            let log = std::fs::read_to_string(entry.path())?;
            // Fields: client, number, microseconds, …
            let times = log.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
            samples.extend(times.map(|microseconds| microseconds / 1e3));
        }
    }
    Ok(Figures::of(samples).ok_or("pgbench has logged nothing")?)
}
