//! Clients that connect together right after `ready`, over TLS to the database, with the agent's pace and its second
//! between two sessions; no setting but `tunnel.sessions`.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tests::{emulator::Pacing, fixtures::Postgres};
use tokio::{
    io::AsyncReadExt as _,
    process::Command,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Bench, Outcome,
    load::per_second,
    report::{Report, Table},
    stats::digits,
    tables::{Engine, Inside},
    world::{Net, Tunnel, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let world = World::start_spaced(&bench.sshd, Net::NEAR, Pacing::Real, START_SPACING).await?;
    let postgres = Postgres::start().await?;
    let engine = Engine::Postgres(postgres.port());
    engine.fill(if bench.quick { 1_000 } else { 100_000 }).await?;
    downloads(bench, &world, engine, report).await?;
    dumps(bench, &world, engine, report).await
}

/// Eight downloads at once, from the moment of `ready` and again over the lanes that stand then.
async fn downloads(
    bench: &Bench,
    world: &World,
    engine: Engine,
    report: &mut Report,
) -> Outcome<()> {
    let window = Duration::from_secs(if bench.quick { 12 } else { 60 });
    let columns = ["sessions", "clients", "lanes", "MB/s of rows", "least and most of a client"];
    let title = format!(
        "Downloads over TLS that begin together, {} s, the agent's pace and starts",
        window.as_secs()
    );
    let mut table = Table::new(&title, &columns);
    let mut row = |sessions: usize, clients: usize, lanes: &str, rates: &[f64]| {
        let rate = |rate: f64| digits(rate / 1e6);
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let spread = format!("{} – {}", rate(least), rate(most));
        let all = rates.iter().sum();
        table.row([sessions.to_string(), clients.to_string(), lanes.to_owned(), rate(all), spread]);
        all
    };
    let one = world.tunnel(engine.port(), &json!({})).await?;
    let single = row(1, 1, "open", &together(engine, one.port, 1, window / 4).await?);
    let shared = row(1, 8, "open", &together(engine, one.port, 8, window / 4).await?);
    one.close().await?;
    let eight = world.tunnel(engine.port(), &json!({ "tunnel": { "sessions": 8 } })).await?;
    let burst = row(8, 8, "one, at `ready`", &together(engine, eight.port, 8, window).await?);
    let lanes = world.emulator.journal().open_sessions().len();
    // The clients are gone, and sshd has seen it.
    sleep(Duration::from_secs(2)).await;
    let standing = row(8, 8, "open", &together(engine, eight.port, 8, window).await?);
    eight.close().await?;
    report.table(table);
    let subject = "8 TLS downloads right after `ready`: share of the same when all lanes stand";
    let share = burst / standing;
    report.goal(subject, "≥ 0.85", digits(share), share >= 0.85);
    report.goal("… sessions open after them", "8", lanes.to_string(), lanes == 8);
    let figure =
        format!("{} × one, {} × 8 on one session", digits(burst / single), digits(burst / shared));
    report.goal("… rate", "> 5 × one", figure, burst / single > 5.0);
    Ok(())
}

/// Bytes a second that each of the clients reads, from when they are started.
async fn together(
    engine: Engine,
    port: u16,
    clients: usize,
    window: Duration,
) -> Outcome<Vec<f64>> {
    let began = Instant::now();
    let mut counts = Vec::new();
    let mut readers = JoinSet::new();
    for _ in 0..clients {
        let mut client = engine.client(port, ENDLESS, Inside::Tls);
        // It complains when it is cut off at the end.
        let mut child = client.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut stdout = child.stdout.take().ok_or("no pipe")?;
        let count = Arc::new(AtomicU64::new(0));
        counts.push(Arc::clone(&count));
        readers.spawn(async move {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(bytes @ 1..) = stdout.read(&mut buffer).await {
                count.fetch_add(u64::try_from(bytes).unwrap_or_default(), Relaxed);
            }
            // Ended when its reader is dropped.
            drop(child);
        });
    }
    sleep(window).await;
    let rate = |count: &Arc<AtomicU64>| {
        per_second(usize::try_from(count.load(Relaxed)).unwrap_or(usize::MAX), began.elapsed())
    };
    let rates: Vec<f64> = counts.iter().map(rate).collect();
    if readers.try_join_next().is_some() {
        return Err("a download has ended".into());
    }
    Ok(rates)
}

/// `pg_dump` with eight jobs: nine connections, since its leader keeps one.
async fn dumps(bench: &Bench, world: &World, engine: Engine, report: &mut Report) -> Outcome<()> {
    // 100 bytes a row.
    let rows = if bench.quick { 10_000 } else { 300_000 };
    for number in 1..=8 {
        let statement = format!(
            "CREATE TABLE part_{number} AS SELECT i, md5(i::text) || md5((i + 1)::text) || \
             substr(md5((i + 2)::text), 1, 27) AS text FROM generate_series(100001, 100000 + {rows}) i"
        );
        let made = engine.client(engine.port(), &statement, Inside::PlainText).status().await?;
        if !made.success() {
            return Err("no tables to dump".into());
        }
    }
    let megabytes = rows / 10_000;
    let title =
        format!("`pg_dump -Fd -j8` of 8 tables of {megabytes} MB over TLS, right after `ready`");
    let mut table = Table::new(&title, &["sessions", "s", "MB/s", "× one session"]);
    let mut took = Vec::new();
    for sessions in [1, 8] {
        let changes = json!({ "tunnel": { "sessions": sessions } });
        let tunnel = world.tunnel(engine.port(), &changes).await?;
        let seconds = pg_dump(&tunnel).await?.as_secs_f64();
        tunnel.close().await?;
        took.push(seconds);
        let times = took.first().copied().unwrap_or(f64::NAN) / seconds;
        let rate = f64::from(8 * megabytes) / seconds;
        table.row([sessions.to_string(), digits(seconds), digits(rate), digits(times)]);
    }
    report.table(table);
    let [one, eight] = took.as_slice() else { return Err("two were measured".into()) };
    let subject = format!("`pg_dump -j8` of 8 × {megabytes} MB, 8 sessions: × one session");
    report.goal(&subject, "≥ 5", digits(one / eight), one / eight >= 5.0);
    Ok(())
}

async fn pg_dump(tunnel: &Tunnel) -> Outcome<Duration> {
    let directory = TempDir::new()?;
    let mut command = Command::new("pg_dump");
    command
        .args(["-h", "127.0.0.1", "-p", &tunnel.port.to_string(), "-U", Postgres::USER])
        .args(["-Fd", "-j", "8", "-Z", "0", "--no-sync", "-t", "part_*", "-f"])
        .arg(directory.path().join("dump"))
        .arg(Postgres::DATABASE)
        .env("PGPASSWORD", Postgres::PASSWORD)
        .env("PGSSLMODE", Inside::Tls.sslmode())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let began = Instant::now();
    let output = command.output().await?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(began.elapsed())
}

/// Rows for longer than any window.
const ENDLESS: &str = "COPY (SELECT orders.* FROM generate_series(1, 100000), orders) TO STDOUT";

/// Between two sessions that the real agent begins.
pub(crate) const START_SPACING: Duration = Duration::from_secs(1);
