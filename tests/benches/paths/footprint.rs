//! Memory, binary size, and two hundred sidecars at once.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use tests::{emulator::Pacing, fixtures::TcpServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Bench, Outcome,
    load::download,
    openssh::{PLUGIN_PATH, SshL},
    process::Memory,
    report::{Report, Table},
    stats::{Figures, digits},
    world::{Net, Tunnel, World},
};

pub(crate) async fn run(bench: &Bench, program: &Path, report: &mut Report) -> Outcome<()> {
    let columns = ["state", "resident MB", "anonymous MB", "proportional MB"];
    let mut table = Table::new("Memory", &columns);
    let mut row = |state: &str, memory: Memory| {
        let cells = [memory.resident, memory.anonymous, memory.proportional].map(digits);
        table.row([state.to_owned()].into_iter().chain(cells));
    };
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
    let tunnel = world.tunnel(bench.target.source.port(), &json!({})).await?;
    sleep(Duration::from_millis(300)).await;
    let idle = tunnel.memory();
    row("idle", idle);
    download(tunnel.port, 8, bench.stretch(), || tunnel.cpu()).await?;
    let loaded = tunnel.memory();
    row("after a download of 8 connections, paced", loaded);
    tunnel.close().await?;
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Unpaced).await?;
    let tunnel = world.tunnel(bench.target.source.port(), &json!({})).await?;
    download(tunnel.port, 8, bench.stretch(), || tunnel.cpu()).await?;
    let unpaced = tunnel.memory();
    row("after a download of 8 connections, unpaced", unpaced);
    tunnel.close().await?;
    if let Some(plugin) = SshL::through_plugin(&world, bench.target.source.port()).await? {
        sleep(Duration::from_millis(300)).await;
        row(&format!("{PLUGIN_PATH}, idle"), plugin.memory());
    }
    report.table(table);
    let megabytes = |value: f64| format!("{} MB", digits(value));
    // The two processes share the program's pages, which resident memory would count twice.
    let (subject, goal) = ("Memory, idle, proportional", "≤ 12 MB");
    report.goal(subject, goal, megabytes(idle.proportional), idle.proportional <= 12.0);
    let most = loaded.proportional.max(unpaced.proportional);
    report.goal("Memory, 8 connections, proportional", "≤ 18 MB", megabytes(most), most <= 18.0);
    let size = f64::from(u32::try_from(fs::metadata(program)?.len())?) / 1e6;
    let subject = "Size of the program (as built here, see the README for the static one)";
    report.goal(subject, "≤ 14 MB", megabytes(size), size <= 14.0);
    many(bench, report).await
}

/// Starts many sidecars at once and uses each.
async fn many(bench: &Bench, report: &mut Report) -> Outcome<()> {
    let columns = [
        "sidecars",
        "all ready after s",
        "resident MB",
        "proportional MB",
        "answer ms, median",
        "p99",
    ];
    let mut table = Table::new("Many on this machine", &columns);
    let world = World::start(&bench.sshd, Net::NEAR, Pacing::Real).await?;
    let echo = TcpServer::echo().await?;
    let mut each = Vec::new();
    let counts: &[usize] = if bench.quick { &[8] } else { &[25, 100, 200] };
    for &count in counts {
        let started = Instant::now();
        let mut starting = JoinSet::new();
        for _ in 0..count {
            let config = world.config(echo.port(), &json!({}))?;
            starting.spawn(async move { Tunnel::open(&config).await });
        }
        let mut tunnels = Vec::new();
        while let Some(tunnel) = starting.join_next().await {
            tunnels.push(tunnel??);
        }
        let took = started.elapsed();
        let mut asking = JoinSet::new();
        for port in tunnels.iter().map(|tunnel| tunnel.port).collect::<Vec<_>>() {
            asking.spawn(async move { timeout(Duration::from_mins(1), ask(port)).await });
        }
        let mut answers = Vec::new();
        while let Some(answer) = asking.join_next().await {
            answers.push(answer???.as_secs_f64() * 1e3);
        }
        let memory: Vec<Memory> = tunnels.iter().map(Tunnel::memory).collect();
        let resident: f64 = memory.iter().map(|memory| memory.resident).sum();
        let proportional: f64 = memory.iter().map(|memory| memory.proportional).sum();
        let answers = Figures::of(answers).ok_or("no sidecar answered")?;
        let cells =
            [took.as_secs_f64(), resident, proportional, answers.median(), answers.quantile(0.99)];
        table.row([count.to_string()].into_iter().chain(cells.map(digits)));
        each.push(resident / f64::from(u32::try_from(count)?));
        for tunnel in &mut tunnels {
            tunnel.sidecar.close_stdin();
        }
        for tunnel in tunnels {
            tunnel.close().await?;
        }
    }
    report.table(table);
    let each = Figures::of(each).ok_or("none was measured")?;
    let most = counts.last().copied().unwrap_or_default();
    let linear = each.quantile(1.0) <= each.quantile(0.0) * 1.1;
    let subject = format!("{most} sidecars at once: all ready, all working, linear memory");
    report.goal(&subject, "the same MB each", format!("{each} MB each"), linear);
    Ok(())
}

/// A request of a kilobyte to an echo server.
async fn ask(port: u16) -> Outcome<Duration> {
    let started = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&[7; 1000]).await?;
    stream.read_exact(&mut [0; 1000]).await?;
    Ok(started.elapsed())
}
