//! One session and random bytes: how close downloads get to the agent's limit, and how far uploads exceed
//! the plugin's.

use serde_json::json;
use tests::emulator::Pacing;

use super::{
    Bench, Outcome,
    acker::Acker,
    link::Leg,
    load::download,
    openssh::{PLUGIN_PATH, SshL},
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let columns = ["one way, each leg", "path", "MB/s down", "of the ceiling", "CPU s per 100 MB"];
    let mut table = Table::new("One session, random bytes, the agent's real pacing", &columns);
    for net in [Net::NEAR, Net::FAR] {
        down(bench, net, report, &mut table).await?;
    }
    report.table(table);
    let columns = [
        "one way, each leg",
        "path",
        "bytes a message",
        "MB/s up",
        "× the plugin's 1 KB/ms",
        "CPU s per 100 MB",
    ];
    let mut table = Table::new("One session, random bytes upwards", &columns);
    for net in [Net::NEAR, Net::FAR] {
        up(bench, net, report, &mut table).await?;
    }
    report.table(table);
    Ok(())
}

async fn down(bench: &Bench, net: Net, report: &mut Report, table: &mut Table) -> Outcome<()> {
    let world = World::start(&bench.sshd, net, Pacing::Real).await?;
    let source = bench.target.source.port();
    let tunnel = world.tunnel(source, &json!({})).await?;
    let time = bench.stretch();
    let (mut ceiling, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut costs = Vec::new();
    for _ in 0..bench.repeats() {
        let mut acker = Acker::open(&world, source).await?;
        let most = acker.download(time.warm_up, time.window).await? / 1e6;
        drop(acker);
        let carried = download(tunnel.port, 1, time, || tunnel.cpu()).await?;
        ceiling.push(most);
        ours.push(carried.megabytes());
        ratios.push(carried.megabytes() / most);
        costs.push(carried.cpu_per_100_mb);
    }
    tunnel.close().await?;
    let figures = |samples: Vec<f64>| Figures::of(samples).ok_or("nothing measured");
    let (ceiling, ours, ratios) = (figures(ceiling)?, figures(ours)?, figures(ratios)?);
    let costs = figures(costs)?;
    let goal = format!(
        "One session down, legs of {}: share of a client that only acknowledges",
        net.label()
    );
    report.goal(&goal, "≥ 0.97", ratios.to_string(), ratios.median() >= 0.97);
    let row = |name: &str, figure: String, ratio: f64, cost: String| {
        [net.label(), name.to_owned(), figure, digits(ratio), cost]
    };
    table.row(row("only acknowledges", ceiling.to_string(), 1.0, "–".to_owned()));
    table.row(row("sidecar", ours.to_string(), ratios.median(), costs.to_string()));
    if let Some(plugin) = SshL::through_plugin(&world, source).await? {
        let carried = download(plugin.port, 1, time, || plugin.cpu()).await?;
        let (rate, cost) = (carried.megabytes(), carried.cpu_per_100_mb);
        table.row(row(PLUGIN_PATH, digits(rate), rate / ceiling.median(), digits(cost)));
        report.fewer_cpu_seconds(
            &format!("One session down, paced, legs of {}", net.label()),
            costs.median(),
            cost,
        );
    }
    let leg = Leg::to(bench.sshd.port(), 2 * net.one_way).await?;
    let ssh = SshL::open(&world, leg.port(), source).await?;
    let carried = download(ssh.port, 1, time, || ssh.cpu()).await?;
    let (rate, cost) = (carried.megabytes(), carried.cpu_per_100_mb);
    table.row(row("ssh -L, no SSM", digits(rate), rate / ceiling.median(), digits(cost)));
    Ok(())
}

async fn up(bench: &Bench, net: Net, report: &mut Report, table: &mut Table) -> Outcome<()> {
    let world = World::start(&bench.sshd, net, Pacing::Real).await?;
    let sink = bench.target.sink.port();
    let row = |path: &str, size: &str, carried: String, times: f64, cost: f64| {
        let (times, cost) = (digits(times), digits(cost));
        [net.label(), path.to_owned(), size.to_owned(), carried, times, cost]
    };
    let mut costs = Vec::new();
    for (message_bytes, goal) in [(1_024, 20.0), (16_384, 60.0)] {
        let changes = json!({ "tunnel": { "message_bytes": message_bytes } });
        let tunnel = world.tunnel(sink, &changes).await?;
        let mut samples = Vec::new();
        for _ in 0..bench.repeats() {
            samples
                .push(bench.target.upload(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?);
        }
        tunnel.close().await?;
        let cost = Figures::of(samples.iter().map(|carried| carried.cpu_per_100_mb));
        let cost = cost.ok_or("nothing measured")?.median();
        costs.push(cost);
        let figures = Figures::of(samples.iter().map(|carried| carried.megabytes()));
        let figures = figures.ok_or("nothing measured")?;
        let times = figures.median() / PLUGIN_UP;
        table.row(row("sidecar", &message_bytes.to_string(), figures.to_string(), times, cost));
        let subject = format!(
            "One session up, {message_bytes} bytes a message, legs of {}: × the plugin's 1 KB/ms",
            net.label()
        );
        report.goal(&subject, &format!("≥ {goal}"), digits(times), times >= goal);
    }
    if let Some(plugin) = SshL::through_plugin(&world, sink).await? {
        let time = bench.stretch();
        let carried = bench.target.upload(plugin.port, 1, time, || plugin.cpu()).await?;
        let (rate, cost) = (carried.megabytes(), carried.cpu_per_100_mb);
        table.row(row(PLUGIN_PATH, "1024", digits(rate), rate / PLUGIN_UP, cost));
        let ours = costs.first().copied().unwrap_or(f64::NAN);
        let subject = format!("One session up, 1024 bytes a message, legs of {}", net.label());
        report.fewer_cpu_seconds(&subject, ours, cost);
    }
    let leg = Leg::to(bench.sshd.port(), 2 * net.one_way).await?;
    let ssh = SshL::open(&world, leg.port(), sink).await?;
    let carried = bench.target.upload(ssh.port, 1, bench.stretch(), || ssh.cpu()).await?;
    let (rate, cost) = (carried.megabytes(), carried.cpu_per_100_mb);
    table.row(row("ssh -L, no SSM", "–", digits(rate), rate / PLUGIN_UP, cost));
    Ok(())
}

/// Limit of the plugin in MB/s: 1,024 bytes, then a pause of 1 ms.
const PLUGIN_UP: f64 = 1.024;
