//! Eight connections over eight sessions that are open beforehand, compared with one over one. How connections that
//! arrive together get there is in `together.rs`.

use std::time::Duration;

use serde_json::json;
use tests::{
    emulator::Pacing,
    fixtures::{Postgres, eventually},
};
use tokio::{net::TcpStream, time::sleep};

use super::{
    Bench, Outcome,
    load::{download, download_from},
    report::{Report, Table},
    stats::digits,
    tables::{Engine, Inside},
    world::{Net, Tunnel, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
    let columns = ["data", "sessions", "connections", "", "× one"];
    let mut table = Table::new(
        "Sessions side by side, open beforehand, plain text inside, the agent's real pacing",
        &columns,
    );
    let source = bench.target.source.port();
    let one = world.tunnel(source, &json!({})).await?;
    let single = download(one.port, 1, bench.stretch(), || one.cpu()).await?;
    one.close().await?;
    let mut eight = world.tunnel(source, &sessions(8)).await?;
    let streams = one_on_each(&mut eight, 8).await?;
    let all = download_from(streams, bench.stretch(), || eight.cpu()).await?;
    eight.close().await?;
    let times = all.bytes_per_second / single.bytes_per_second;
    let rate = |megabytes: f64| format!("{} MB/s", digits(megabytes));
    let cells = |data: &str, count: &str, figure: String, times: f64| {
        [data.to_owned(), count.to_owned(), count.to_owned(), figure, digits(times)]
    };
    table.row(cells("random bytes", "1", rate(single.megabytes()), 1.0));
    table.row(cells("random bytes", "8", rate(all.megabytes()), times));
    let subject = "8 connections on 8 open sessions, random bytes: × one on one";
    report.goal(subject, "≥ 7.5", digits(times), times >= 7.5);

    let postgres = Postgres::start().await?;
    let engine = Engine::Postgres(postgres.port());
    engine.fill(bench.rows()).await?;
    let off = json!({ "tunnel": { "compression": "off" } });
    let one = world.tunnel(engine.port(), &off).await?;
    let single =
        engine.dump(one.port, 1, bench.stretch(), Inside::PlainText).await?.bytes_per_second;
    one.close().await?;
    let mut eight = world.tunnel(engine.port(), &sessions(8)).await?;
    drop(one_on_each(&mut eight, 8).await?);
    // The lanes stay open; they are empty once the server has seen the end of these connections.
    sleep(Duration::from_millis(500)).await;
    let all =
        engine.dump(eight.port, 8, bench.stretch(), Inside::PlainText).await?.bytes_per_second;
    eight.close().await?;
    let times = all / single;
    let rate = |rows: f64| format!("{} rows/s", digits(rows));
    table.row(cells("table dump, one uncompressed", "1", rate(single), 1.0));
    table.row(cells("table dump, compressed", "8", rate(all), times));
    let subject =
        "8 dumps on 8 open sessions, plain text, compressed: rows/s × one on one, uncompressed";
    report.goal(subject, "≥ 25", digits(times), times >= 25.0);
    report.table(table);

    let journal = world.emulator.journal();
    let ended =
        eventually(Duration::from_secs(5), || async { journal.open_sessions().is_empty() }).await;
    let left = journal.open_sessions().len();
    report.goal("Sessions left when the tunnels are closed", "none", left.to_string(), ended);
    Ok(())
}

fn sessions(count: usize) -> serde_json::Value {
    json!({ "tunnel": { "sessions": count } })
}

/// Opens connections at once, and waits until each has a lane of its own.
pub(crate) async fn one_on_each(tunnel: &mut Tunnel, sessions: usize) -> Outcome<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..sessions {
        streams.push(TcpStream::connect(("127.0.0.1", tunnel.port)).await?);
    }
    for opened in 2..=sessions {
        let number = format!("\"lane\":{opened},");
        let is_open = |line: &str| line.contains("lane opened") && line.contains(&number);
        tunnel.sidecar.log_line(LANE_OPENS, is_open).await?;
    }
    Ok(streams)
}

/// Time limit for opening a lane.
const LANE_OPENS: Duration = Duration::from_secs(30);
