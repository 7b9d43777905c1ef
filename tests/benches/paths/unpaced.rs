//! An agent without pauses, and a service without limits for uploads: the cost of the sidecar itself.

use serde_json::json;
use tests::emulator::Pacing;

use super::{
    Bench, Outcome,
    load::{Carried, download},
    openssh::{PLUGIN_PATH, SshL},
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Unpaced).await?;
    let columns =
        ["path", "direction", "MB/s", "CPU s per 100 MB", "MB/s of a processor of its own"];
    let mut table = Table::new(
        "No pauses of the agent, no limits of the service, one connection, random bytes",
        &columns,
    );
    let (source, sink) = (bench.target.source.port(), bench.target.sink.port());
    let time = bench.stretch();
    // Cost of the plain paths down and up, with messages of 1,024 bytes.
    let mut costs = Vec::new();
    for (message_bytes, compression) in [(1_024, "off"), (1_024, "auto"), (16_384, "off")] {
        let changes =
            json!({ "tunnel": { "message_bytes": message_bytes, "compression": compression } });
        let plain = compression == "off";
        if message_bytes == 1_024 {
            let tunnel = world.tunnel(source, &changes).await?;
            let mut samples = Vec::new();
            for _ in 0..bench.repeats() {
                samples.push(download(tunnel.port, 1, time, || tunnel.cpu()).await?);
            }
            tunnel.close().await?;
            let name = format!("sidecar, compression {compression}");
            let cost = add(&mut table, report, [&name, "down"], &samples, plain)?;
            costs.extend(plain.then_some(cost));
        }
        let tunnel = world.tunnel(sink, &changes).await?;
        let mut samples = Vec::new();
        for _ in 0..bench.repeats() {
            samples.push(bench.target.upload(tunnel.port, 1, time, || tunnel.cpu()).await?);
        }
        tunnel.close().await?;
        let name = format!("sidecar, {message_bytes} bytes a message, compression {compression}");
        let cost = add(&mut table, report, [&name, "up"], &samples, plain)?;
        costs.extend((plain && costs.len() < 2).then_some(cost));
    }

    let ssh_port = bench.sshd.port();
    let ssh = SshL::open(&world, ssh_port, source).await?;
    let carried = download(ssh.port, 1, time, || ssh.cpu()).await?;
    add(&mut table, report, ["ssh -L, no SSM", "down"], &[carried], false)?;
    let ssh = SshL::open(&world, ssh_port, sink).await?;
    let carried = bench.target.upload(ssh.port, 1, time, || ssh.cpu()).await?;
    add(&mut table, report, ["ssh -L, no SSM", "up"], &[carried], false)?;
    for (direction, ours) in ["down", "up"].into_iter().zip(costs) {
        let target = if direction == "down" { source } else { sink };
        let Some(plugin) = SshL::through_plugin(&world, target).await? else { continue };
        let carried = if direction == "down" {
            download(plugin.port, 1, time, || plugin.cpu()).await?
        } else {
            bench.target.upload(plugin.port, 1, time, || plugin.cpu()).await?
        };
        add(&mut table, report, [PLUGIN_PATH, direction], &[carried], false)?;
        let subject = format!("No pauses of the agent, 1024 bytes a message, {direction}");
        report.fewer_cpu_seconds(&subject, ours, carried.cpu_per_100_mb);
    }
    report.table(table);
    Ok(())
}

/// Adds a row and returns the CPU seconds per 100 MB.
fn add(
    table: &mut Table,
    report: &mut Report,
    [path, direction]: [&str; 2],
    samples: &[Carried],
    is_goal: bool,
) -> Outcome<f64> {
    let of = |value: fn(&Carried) -> f64| {
        Figures::of(samples.iter().map(value)).ok_or("nothing measured")
    };
    let rate = of(|carried| carried.megabytes())?;
    let cpu = of(|carried| carried.cpu_per_100_mb)?;
    let alone = 100.0 / cpu.median();
    let cells = [path.to_owned(), direction.to_owned(), rate.to_string(), cpu.to_string()];
    table.row(cells.into_iter().chain([digits(alone)]));
    if is_goal {
        let subject = format!("No pauses, {path}, {direction}");
        let figure = format!(
            "{} MB/s ({} with a processor of its own)",
            digits(rate.median()),
            digits(alone)
        );
        report.goal(&subject, "≥ 100 MB/s, the sidecar alone", figure, alone >= 100.0);
        let figure = format!("{} s", digits(cpu.median()));
        report.goal(&format!("{subject}: CPU"), "≤ 0.6 s per 100 MB", figure, cpu.median() <= 0.6);
    }
    Ok(cpu.median())
}
