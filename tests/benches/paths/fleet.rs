//! Thirty jobs that start at once on one bastion, whose agent begins sessions a second apart.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tests::{emulator::Pacing, fixtures::eventually};
use tokio::{net::TcpStream, time::sleep};

use super::{
    Bench, Outcome,
    report::{Report, Table},
    stats::{Figures, digits},
    together::START_SPACING,
    world::{Net, Tunnel, World},
};

pub(crate) async fn run(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let jobs = if bench.quick { 5 } else { 30 };
    let columns = ["sessions allowed", "s to ready: median", "last", "sessions started"];
    let title =
        format!("{jobs} jobs that start at once on one agent, which begins sessions 1 s apart");
    let mut table = Table::new(&title, &columns);
    for sessions in [1, 8] {
        let world =
            World::start_spaced(&bench.sshd, Net::NEAR, Pacing::Real, START_SPACING).await?;
        let target = bench.target.sink.port();
        let changes = json!({ "tunnel": { "sessions": sessions }, "timeouts": { "ready_s": 60 } });
        let tunnels = join_all((0..jobs).map(|_| world.tunnel(target, &changes))).await;
        let tunnels = tunnels.into_iter().collect::<Outcome<Vec<_>>>()?;
        let ready = tunnels.iter().map(|tunnel| tunnel.ready_after.as_secs_f64());
        let ready = Figures::of(ready).ok_or("nothing measured")?;
        let mut clients = Vec::new();
        for tunnel in &tunnels {
            clients.push(TcpStream::connect(("127.0.0.1", tunnel.port)).await?);
        }
        // Lanes for single clients would be opened within this time.
        sleep(Duration::from_secs(3)).await;
        let journal = world.emulator.journal();
        let started = journal.sessions().len();
        let last = ready.quantile(1.0);
        table.row([
            sessions.to_string(),
            digits(ready.median()),
            digits(last),
            started.to_string(),
        ]);
        let subject = format!("{jobs} jobs at once, {sessions} session(s) allowed: last one ready");
        report.goal(&subject, "≤ 60 s", format!("{} s", digits(last)), last <= 60.0);
        let subject = "… sessions started, with one client each";
        report.goal(subject, &jobs.to_string(), started.to_string(), started == jobs);
        drop(clients);
        let closed = join_all(tunnels.into_iter().map(Tunnel::close)).await;
        closed.into_iter().collect::<Outcome<Vec<_>>>()?;
        let is_empty = || async { journal.open_sessions().is_empty() };
        if !eventually(Duration::from_secs(5), is_empty).await {
            return Err("sessions are left".into());
        }
    }
    report.table(table);
    Ok(())
}
