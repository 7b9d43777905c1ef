//! Dumps of a plausible table from real servers: the gain of compression, and its cost on random bytes.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tests::{
    emulator::Pacing,
    fixtures::{MariaDb, Postgres},
};
use tokio::{io::AsyncReadExt as _, process::Command, task::JoinSet};

use super::{
    Bench, Outcome,
    load::{Carried, Stretch, download},
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
    let columns = ["dump", "inside the tunnel", "compression", "rows/s", "× uncompressed"];
    let mut table = Table::new("Table dumps on one connection, the agent's real pacing", &columns);
    let postgres = Postgres::start().await?;
    let mariadb = MariaDb::start().await?;
    for engine in [Engine::Postgres(postgres.port()), Engine::MariaDb(mariadb.port())] {
        engine.fill(bench.rows()).await?;
        let mut medians = Vec::new();
        // The last is what a customer has whose database wants TLS: nothing can be compressed.
        for (inside, compression) in
            [(Inside::PlainText, "off"), (Inside::PlainText, "auto"), (Inside::Tls, "auto")]
        {
            let changes = json!({ "tunnel": { "compression": compression } });
            let tunnel = world.tunnel(engine.port(), &changes).await?;
            let mut samples = Vec::new();
            for _ in 0..bench.repeats() {
                let carried = engine.dump(tunnel.port, 1, bench.stretch(), inside).await?;
                samples.push(carried.bytes_per_second);
            }
            tunnel.close().await?;
            let figures = Figures::of(samples).ok_or("nothing measured")?;
            medians.push(figures.median());
            let times = figures.median() / medians.first().copied().unwrap_or(f64::NAN);
            let inside = inside.name();
            let cells = [engine.name(), inside, compression, &figures.to_string(), &digits(times)];
            table.row(cells.map(str::to_owned));
        }
        let [off, auto, _] = medians.as_slice() else { return Err("three were measured".into()) };
        let subject = format!(
            "{}, one connection, plain text inside: compressed rows/s × uncompressed",
            engine.name()
        );
        report.goal(&subject, "≥ 3.5", digits(auto / off), auto / off >= 3.5);
    }
    report.table(table);

    let source = bench.target.source.port();
    let mut tunnels = Vec::new();
    for compression in ["off", "auto"] {
        let changes = json!({ "tunnel": { "compression": compression } });
        tunnels.push(world.tunnel(source, &changes).await?);
    }
    let mut ratios = Vec::new();
    for _ in 0..bench.repeats() {
        let mut rates = Vec::new();
        for tunnel in &tunnels {
            let carried = download(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?;
            rates.push(carried.bytes_per_second);
        }
        let [off, auto] = rates.as_slice() else { return Err("two were measured".into()) };
        ratios.push(auto / off);
    }
    for tunnel in tunnels {
        tunnel.close().await?;
    }
    let ratios = Figures::of(ratios).ok_or("nothing measured")?;
    let subject = "Incompressible bytes with compression: share of the rate without";
    report.goal(subject, "≥ 0.97", ratios.to_string(), ratios.median() >= 0.97);
    Ok(())
}

impl Bench {
    /// Rows of the table: more than a dump reads in the time given.
    pub(crate) fn rows(&self) -> u32 {
        if self.quick { 30_000 } else { 150_000 }
    }
}

/// What the database's connection carries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Inside {
    PlainText,
    Tls,
}

impl Inside {
    fn name(self) -> &'static str {
        match self {
            Self::PlainText => "plain text",
            Self::Tls => "TLS",
        }
    }

    /// libpq's.
    pub(crate) fn sslmode(self) -> &'static str {
        match self {
            Self::PlainText => "disable",
            Self::Tls => "require",
        }
    }
}

/// A database server, identified by its port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Postgres(u16),
    MariaDb(u16),
}

impl Engine {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres(_) => "PostgreSQL COPY",
            Self::MariaDb(_) => "MariaDB result set",
        }
    }

    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Postgres(port) | Self::MariaDb(port) => port,
        }
    }

    /// Creates the table of orders.
    pub(crate) async fn fill(self, rows: u32) -> Outcome<()> {
        let statement = match self {
            Self::Postgres(_) => POSTGRES_ORDERS.replace("ROWS", &rows.to_string()),
            Self::MariaDb(_) => MARIADB_ORDERS.replace("ROWS", &rows.to_string()),
        };
        let mut client = self.client(self.port(), &statement, Inside::PlainText);
        let output = client.output().await?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(())
    }

    /// Rows a second through `port`, dumped by this many clients at once.
    pub(crate) async fn dump(
        self,
        port: u16,
        clients: usize,
        time: Stretch,
        inside: Inside,
    ) -> Outcome<Carried> {
        let rows = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..clients {
            let statement = match self {
                Self::Postgres(_) => "COPY orders TO STDOUT",
                Self::MariaDb(_) => "SELECT * FROM orders",
            };
            let mut child = self.client(port, statement, inside).stdout(Stdio::piped()).spawn()?;
            let mut stdout = child.stdout.take().ok_or("no pipe")?;
            let rows = Arc::clone(&rows);
            readers.spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
                    let piece = buffer.get(..count).unwrap_or_default();
                    let ends = piece.split(|byte| *byte == b'\n').count() - 1;
                    rows.fetch_add(u64::try_from(ends).unwrap_or_default(), Relaxed);
                }
                // Ended when its reader is dropped.
                drop(child);
            });
        }
        let carried = time.measure(&rows, || Duration::ZERO).await;
        if carried.bytes_per_second <= 0.0 {
            return Err(format!("no rows from {}", self.name()).into());
        }
        Ok(carried)
    }

    /// A client that prints what `statement` returns.
    pub(crate) fn client(self, port: u16, statement: &str, inside: Inside) -> Command {
        let mut command = match self {
            Self::Postgres(_) => {
                let mut command = Command::new("psql");
                command
                    .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
                    .args(["-p", &port.to_string(), "-U", Postgres::USER])
                    .args(["-d", Postgres::DATABASE, "-c", statement])
                    .env("PGPASSWORD", Postgres::PASSWORD)
                    .env("PGSSLMODE", inside.sslmode());
                command
            }
            Self::MariaDb(_) => {
                let mut command = Command::new("mariadb");
                command
                    .args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1"])
                    .args(["-P", &port.to_string(), "-u", MariaDb::USER])
                    .args(match inside {
                        Inside::PlainText => &["--skip-ssl"][..],
                        Inside::Tls => &["--ssl", "--skip-ssl-verify-server-cert"],
                    })
                    .args(["--quick", "--batch", "-e", statement, MariaDb::DATABASE])
                    .env("MYSQL_PWD", MariaDb::PASSWORD);
                command
            }
        };
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

const POSTGRES_ORDERS: &str = "
    SELECT setseed(0.5); CREATE TABLE orders AS SELECT i AS id, (random() * 90000)::int AS customer_id,
    (array['Aoi','Haruto','Yui','Sota','Hina','Ren','Mei','Yuto','Rin','Kaito'])[1 + (random() * 9)::int] || ' ' ||
    (array['Sato','Suzuki','Takahashi','Tanaka','Ito','Watanabe','Yamamoto','Nakamura','Kobayashi','Kato'])
        [1 + (random() * 9)::int] AS customer,
    'user' || (random() * 90000)::int || '@example.com' AS email,
    timestamptz '2023-01-01 00:00:00+00' + i * interval '71 seconds' + random() * interval '1 minute' AS ordered_at,
    (array['paid','shipped','delivered','cancelled','refunded'])[1 + (random() * 4)::int] AS status,
    round((random() * 50000)::numeric, 2) AS amount, 'JPY' AS currency,
    jsonb_build_object('sku', 'SKU-' || lpad((random() * 9999)::int::text, 5, '0'),
        'quantity', 1 + (random() * 9)::int, 'gift', random() < 0.1,
        'address', jsonb_build_object('city', (array['Tokyo','Osaka','Nagoya','Fukuoka'])[1 + (random() * 3)::int],
        'zip', lpad((random() * 9999999)::int::text, 7, '0'))) AS details
    FROM generate_series(1, ROWS) i";

const MARIADB_ORDERS: &str = "
    CREATE TABLE orders AS SELECT seq AS id, FLOOR(RAND(1) * 90000) AS customer_id,
    CONCAT(ELT(1 + FLOOR(RAND(2) * 10), 'Aoi','Haruto','Yui','Sota','Hina','Ren','Mei','Yuto','Rin','Kaito'), ' ',
        ELT(1 + FLOOR(RAND(3) * 10), 'Sato','Suzuki','Takahashi','Tanaka','Ito','Watanabe','Yamamoto','Nakamura',
        'Kobayashi','Kato')) AS customer,
    CONCAT('user', FLOOR(RAND(4) * 90000), '@example.com') AS email,
    TIMESTAMP('2023-01-01') + INTERVAL (seq * 71 + FLOOR(RAND(5) * 60)) SECOND AS ordered_at,
    ELT(1 + FLOOR(RAND(6) * 5), 'paid','shipped','delivered','cancelled','refunded') AS status,
    ROUND(RAND(7) * 50000, 2) AS amount, 'JPY' AS currency,
    JSON_OBJECT('sku', CONCAT('SKU-', LPAD(FLOOR(RAND(8) * 9999), 5, '0')), 'quantity', 1 + FLOOR(RAND(9) * 9),
        'gift', RAND(10) < 0.1, 'address', JSON_OBJECT('city', ELT(1 + FLOOR(RAND(11) * 4), 'Tokyo','Osaka','Nagoya',
        'Fukuoka'), 'zip', LPAD(FLOOR(RAND(12) * 9999999), 7, '0'))) AS details
    FROM seq_1_to_ROWS";
