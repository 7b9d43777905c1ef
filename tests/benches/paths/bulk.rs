//! One session and random bytes: how near to the agent's limit downwards, how far past the plugin's upwards.

use serde_json::json;
use tests::emulator::Pacing;

use super::{
    Bench, Outcome,
    acker::Acker,
    link::Leg,
    load::{download, no_cpu},
    openssh::{PLUGIN, SshL},
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let columns = ["one way, each leg", "path", "MB/s down", "of the ceiling"];
    let mut table = Table::new("One session, random bytes, the agent's real pacing", &columns);
    for net in [Net::NEAR, Net::FAR] {
        down(bench, net, report, &mut table).await?;
    }
    report.table(table);
    let columns =
        ["one way, each leg", "path", "bytes a message", "MB/s up", "× the plugin's 1 KB/ms"];
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
    for _ in 0..bench.repeats() {
        let mut acker = Acker::open(&world, source).await?;
        let most = acker.download(time.warm_up, time.window).await? / 1e6;
        drop(acker);
        let carried = download(tunnel.port, 1, time, || tunnel.cpu()).await?.megabytes();
        ceiling.push(most);
        ours.push(carried);
        ratios.push(carried / most);
    }
    tunnel.close().await?;
    let figures = |samples: Vec<f64>| Figures::of(samples).ok_or("nothing measured");
    let (ceiling, ours, ratios) = (figures(ceiling)?, figures(ours)?, figures(ratios)?);
    let goal = format!(
        "One session down, legs of {}: share of a client that only acknowledges",
        net.label()
    );
    report.goal(&goal, "≥ 0.97", ratios.to_string(), ratios.median() >= 0.97);
    let row =
        |name: &str, figure: String, ratio: String| [net.label(), name.to_owned(), figure, ratio];
    table.row(row("only acknowledges", ceiling.to_string(), "1".to_owned()));
    table.row(row("sidecar", ours.to_string(), digits(ratios.median())));
    if let Some(plugin) = SshL::through_plugin(&world, source).await? {
        let carried = download(plugin.port, 1, time, no_cpu).await?.megabytes();
        table.row(row(
            "official plugin, ssh -L",
            digits(carried),
            digits(carried / ceiling.median()),
        ));
    }
    let leg = Leg::to(bench.sshd.port(), 2 * net.one_way).await?;
    let ssh = SshL::open(&world, leg.port(), source).await?;
    let carried = download(ssh.port, 1, time, no_cpu).await?.megabytes();
    table.row(row("ssh -L, no SSM", digits(carried), digits(carried / ceiling.median())));
    Ok(())
}

async fn up(bench: &Bench, net: Net, report: &mut Report, table: &mut Table) -> Outcome<()> {
    let world = World::start(&bench.sshd, net, Pacing::Real).await?;
    let sink = bench.target.sink.port();
    let row = |path: &str, size: String, figure: String, times: f64| {
        [net.label(), path.to_owned(), size, figure, digits(times)]
    };
    for (message_bytes, goal) in [(1_024, 20.0), (16_384, 60.0)] {
        let changes = json!({ "tunnel": { "message_bytes": message_bytes } });
        let tunnel = world.tunnel(sink, &changes).await?;
        let mut samples = Vec::new();
        for _ in 0..bench.repeats() {
            let carried =
                bench.target.upload(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?;
            samples.push(carried.megabytes());
        }
        tunnel.close().await?;
        let figures = Figures::of(samples).ok_or("nothing measured")?;
        let times = figures.median() / PLUGIN_UP;
        table.row(row("sidecar", message_bytes.to_string(), figures.to_string(), times));
        let subject = format!(
            "One session up, {message_bytes} bytes a message, legs of {}: × the plugin's 1 KB/ms",
            net.label()
        );
        report.goal(&subject, &format!("≥ {goal}"), digits(times), times >= goal);
    }
    if let Some(plugin) = SshL::through_plugin(&world, sink).await? {
        let carried =
            bench.target.upload(plugin.port, 1, bench.stretch(), no_cpu).await?.megabytes();
        let path = format!("official plugin (`{PLUGIN}`), ssh -L");
        table.row(row(&path, "1024".to_owned(), digits(carried), carried / PLUGIN_UP));
    }
    let leg = Leg::to(bench.sshd.port(), 2 * net.one_way).await?;
    let ssh = SshL::open(&world, leg.port(), sink).await?;
    let carried = bench.target.upload(ssh.port, 1, bench.stretch(), no_cpu).await?.megabytes();
    table.row(row("ssh -L, no SSM", "–".to_owned(), digits(carried), carried / PLUGIN_UP));
    Ok(())
}

/// The plugin's most: 1,024 bytes, then a pause of 1 ms. In MB/s.
const PLUGIN_UP: f64 = 1.024;
