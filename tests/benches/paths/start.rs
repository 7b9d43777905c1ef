//! From the start of the process to `ready`, and the round trips in it.

use std::time::Duration;

use serde_json::{Value, json};
use tests::emulator::Pacing;

use super::{
    Bench, Outcome,
    openssh::{PLUGIN_PATH, SshL},
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let columns = [
        "one way, each leg",
        "ms to ready",
        "CPU ms by then",
        "config",
        "start_session",
        "session",
        "ssh",
        "target",
    ];
    let mut table = Table::new("Time to ready", &columns);
    for net in [Net::NEAR, Net::FAR] {
        // The agent pauses after each of its reads; that time belongs to the path.
        let world = World::start(&bench.sshd, net, Pacing::Real).await?;
        let target = bench.target.sink.port();
        let repeats = if bench.quick { 2 } else { 9 };
        let (mut ready, mut cpu, mut phases) =
            (Vec::new(), Vec::new(), vec![Vec::new(); PHASES.len()]);
        for _ in 0..repeats {
            let tunnel = world.tunnel(target, &json!({})).await?;
            ready.push(tunnel.ready_after.as_secs_f64() * 1e3);
            cpu.push(tunnel.cpu().as_secs_f64() * 1e3);
            let summary = tunnel.close().await?;
            for (phase, samples) in PHASES.iter().zip(&mut phases) {
                let took = summary.get(format!("{phase}_ms"));
                samples.extend(took.and_then(Value::as_f64));
            }
        }
        let ready = Figures::of(ready).ok_or("nothing measured")?;
        let cpu = Figures::of(cpu).ok_or("nothing measured")?;
        let phases = phases.into_iter().map(|samples| {
            Figures::of(samples).map_or_else(|| "–".to_owned(), |figures| digits(figures.median()))
        });
        table.row([net.label(), ready.to_string(), cpu.to_string()].into_iter().chain(phases));
        let mut plugin = Vec::new();
        for _ in 0..if bench.quick { 1 } else { 3 } {
            let path = SshL::through_plugin(&world, target).await?;
            plugin.extend(path.map(|path| path.ready_after.as_secs_f64() * 1e3));
        }
        if let Some(figures) = Figures::of(plugin) {
            let cells = [net.label(), format!("{figures}, {PLUGIN_PATH}, no AWS CLI")];
            table.row(cells.into_iter().chain(vec!["–".to_owned(); PHASES.len() + 1]));
        }
        let unavoidable = unavoidable(net).as_secs_f64() * 1e3;
        let limit = if unavoidable > 0.0 { 1.1 * unavoidable + 40.0 } else { 60.0 };
        let subject = format!("Time to `ready`, legs of {}", net.label());
        let target = format!("≤ {} ms", digits(limit));
        let figure = format!("{ready} ms, of which round trips {} ms", digits(unavoidable));
        report.goal(&subject, &target, figure, ready.median() <= limit);
    }
    report.table(table);

    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
    let changes = json!({ "aws": {
        "endpoint_url": format!("http://127.0.0.1:{}", world.api_leg().port()),
    } });
    let tunnel = world.tunnel(bench.target.sink.port(), &changes).await?;
    let first = world.api_leg().first_byte().ok_or("no byte was seen")? - tunnel.started;
    tunnel.close().await?;
    let milliseconds = first.as_secs_f64() * 1e3;
    let figure = format!("{} ms", digits(milliseconds));
    report.goal("Process start to first byte sent", "≤ 15 ms", figure, milliseconds <= 15.0);
    Ok(())
}

/// The least time that the sidecar must wait for its peers, on this emulator, without TLS.
fn unavoidable(net: Net) -> Duration {
    let leg = 2 * net.one_way;
    // Connecting and StartSession. The connection to the gateway can be made meanwhile.
    let api = 2 * leg;
    // The upgrade.
    let gateway = leg;
    // OpenDataChannel is answered by the handshake request, the response to that by
    // `HandshakeComplete` followed by sshd's identification. Then in SSH: identification and
    // KEXINIT (1), the key exchange (1), NEWKEYS and the signed login request (1), the channel to
    // the target (1).
    let agent = 6 * net.rtt();
    api + gateway + agent
}

const PHASES: [&str; 5] = ["config", "start_session", "session", "ssh", "target"];
