//! How throughput and cost scale.

use std::time::Duration;

use serde_json::json;
use tests::emulator::Pacing;

use super::{
    Bench, Outcome,
    lanes::one_on_each,
    load::{Carried, download, download_from},
    plot::{Curve, Plot},
    report::{Report, Table},
    stats::digits,
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    connections(bench, report).await?;
    sessions(bench, report).await?;
    round_trips(bench, report).await?;
    message_rate(bench, report).await
}

impl Bench {
    /// All points of a curve, or only its ends.
    fn points<T: Copy>(&self, all: &[T]) -> Vec<T> {
        match all {
            [first, .., last] if self.quick => vec![*first, *last],
            all => all.to_vec(),
        }
    }
}

/// The figures of a curve, and its plots.
struct Course {
    table: Table,
    points: Vec<(f64, Carried)>,
}

impl Course {
    fn new(title: &str, x: &str) -> Self {
        let columns = [x, "MB/s", "% of a processor", "CPU s per 100 MB"];
        Self { table: Table::new(title, &columns), points: Vec::new() }
    }

    fn add(&mut self, x: f64, carried: Carried) {
        let cells = [carried.megabytes(), carried.cpu_share * 100.0, carried.cpu_per_100_mb];
        self.table.row([x.to_string()].into_iter().chain(cells.map(digits)));
        self.points.push((x, carried));
    }

    fn curve(&self, label: &'static str, value: fn(Carried) -> f64) -> Curve {
        let points = self.points.iter().map(|(x, carried)| (*x, value(*carried))).collect();
        Curve { label, points }
    }

    fn rate_and_cost(self, report: &mut Report, names: [&'static str; 2], x: &'static str) {
        let title = self.title().to_owned();
        let [rate, cost] = names;
        let curves = vec![self.curve("sidecar", Carried::megabytes)];
        report.plot(Plot { name: rate, title: title.clone(), x, y: "MB/s", curves });
        let curves = vec![self.curve("sidecar", |carried| carried.cpu_share * 100.0)];
        let title = format!("{title}: processor time");
        report.plot(Plot { name: cost, title, x, y: "% of a processor", curves });
        report.table(self.table);
    }

    fn title(&self) -> &str {
        self.table.title()
    }
}

async fn connections(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let mut course = Course::new("Connections, one session, no pauses, down", "connections");
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Unpaced).await?;
    for count in bench.points(&[1_u32, 2, 4, 8, 16, 32, 64]) {
        let tunnel = world.tunnel(bench.target.source.port(), &json!({})).await?;
        let number = usize::try_from(count)?;
        let carried = download(tunnel.port, number, bench.short(), || tunnel.cpu()).await?;
        course.add(f64::from(count), carried);
        tunnel.close().await?;
    }
    course.rate_and_cost(report, ["connections-rate", "connections-cpu"], "connections");
    Ok(())
}

async fn sessions(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let mut course = Course::new("Sessions, a connection on each, real pacing, down", "sessions");
    for count in bench.points(&[1_u32, 2, 4, 8, 16]) {
        let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
        let number = usize::try_from(count)?;
        let changes = json!({ "tunnel": { "sessions": number } });
        let mut tunnel = world.tunnel(bench.target.source.port(), &changes).await?;
        let streams = one_on_each(&mut tunnel, number).await?;
        course.add(f64::from(count), download_from(streams, bench.short(), || tunnel.cpu()).await?);
        tunnel.close().await?;
    }
    course.rate_and_cost(report, ["sessions-rate", "sessions-cpu"], "sessions");
    Ok(())
}

async fn round_trips(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let mut down = Course::new("Round-trip time, one session, real pacing, down", "ms");
    let mut up = Course::new("Round-trip time, one session, up, 1,024 bytes a message", "ms");
    for milliseconds in bench.points(&[0_u32, 20, 50, 100, 150, 200]) {
        let one_way = Duration::from_millis(u64::from(milliseconds)) / 4;
        let net = Net { one_way, loss: 0.0 };
        let world = World::start(&bench.sshd, net, Pacing::Real).await?;
        let tunnel = world.tunnel(bench.target.source.port(), &json!({})).await?;
        let x = f64::from(milliseconds);
        down.add(x, download(tunnel.port, 1, bench.short(), || tunnel.cpu()).await?);
        tunnel.close().await?;
        let tunnel = world.tunnel(bench.target.sink.port(), &json!({})).await?;
        up.add(x, bench.target.upload(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?);
        tunnel.close().await?;
    }
    down.rate_and_cost(report, ["rtt-rate-down", "rtt-cpu-down"], "ms");
    up.rate_and_cost(report, ["rtt-rate-up", "rtt-cpu-up"], "ms");
    Ok(())
}

/// The cost of messages lost between gateway and agent.
pub(crate) async fn loss(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let mut down = Course::new("Loss both ways, legs of 5 ms, real pacing, down", "% of messages");
    let mut up = Course::new("Loss both ways, legs of 5 ms, up", "% of messages");
    for percent in bench.points(&[0.0, 0.5, 1.0, 2.0, 5.0]) {
        let net = Net { one_way: Duration::from_millis(5), loss: percent / 100.0 };
        let world = World::start(&bench.sshd, net, Pacing::Real).await?;
        let tunnel = world.tunnel(bench.target.source.port(), &json!({})).await?;
        down.add(percent, download(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?);
        drop(tunnel);
        let tunnel = world.tunnel(bench.target.sink.port(), &json!({})).await?;
        let carried = bench.target.upload(tunnel.port, 1, bench.stretch(), || tunnel.cpu()).await?;
        up.add(percent, carried);
        drop(tunnel);
    }
    down.rate_and_cost(report, ["loss-rate-down", "loss-cpu-down"], "% of messages");
    up.rate_and_cost(report, ["loss-rate-up", "loss-cpu-up"], "% of messages");
    Ok(())
}

/// The same bytes in smaller and larger messages.
async fn message_rate(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let columns = ["bytes a message", "messages/s", "MB/s", "CPU µs a message"];
    let mut table = Table::new("Message rate, up, no pauses, no limits of the service", &columns);
    let (mut rate, mut cost) = (Vec::new(), Vec::new());
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Unpaced).await?;
    for size in bench.points(&[256_u32, 1_024, 4_096, 16_384, 65_536]) {
        let changes = json!({ "tunnel": { "message_bytes": size, "compression": "off" } });
        let tunnel = world.tunnel(bench.target.sink.port(), &changes).await?;
        let carried = bench.target.upload(tunnel.port, 1, bench.short(), || tunnel.cpu()).await?;
        tunnel.close().await?;
        let messages = carried.bytes_per_second / f64::from(size);
        let each = carried.cpu_share / messages.max(1.0) * 1e6;
        let cells = [messages, carried.megabytes(), each];
        table.row([size.to_string()].into_iter().chain(cells.map(digits)));
        rate.push((messages, carried.megabytes()));
        cost.push((messages, carried.cpu_share * 100.0));
    }
    for (name, y, points) in
        [("message-rate", "MB/s", rate), ("message-rate-cpu", "% of a processor", cost)]
    {
        let title = format!("Messages a second, from 65,536 to 256 bytes each: {y}");
        let curves = vec![Curve { label: "sidecar, up", points }];
        report.plot(Plot { name, title, x: "messages/s", y, curves });
    }
    report.table(table);
    Ok(())
}
