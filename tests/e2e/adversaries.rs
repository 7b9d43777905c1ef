//! Hostile parties, one file each: what they send costs memory and processor time within bounds, ends in
//! the error code intended for it or has no effect, leaves no session, and does not affect other tunnels.
//!
//! The details of each attack are tested where the input is parsed; here the whole program is attacked,
//! with a neighbour tunnel beside it whose connection is used all the time.

mod agent;
mod config;
mod gateway;
mod local;
mod sshd;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::unistd::Pid;
use tests::fixtures::{Sidecar, TcpServer, eventually};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use crate::{
    echo::ping,
    slow_parties::peak_kib,
    world::{LIMIT, STOP, Tunnel, World},
};

/// How much more memory than the neighbour both processes together may use during any attack, in KiB: one
/// lane with all its buffers full, and the largest accepted message, a few times over.
const MORE_KIB: u64 = 24 << 10;

/// How long the neighbour may wait for any answer, on a machine that is busy with an attack.
const NEIGHBOUR_WAITS: Duration = Duration::from_secs(2);

/// A tunnel of another customer, whose client sends requests all the time.
struct Neighbour {
    world: World,
    tunnel: Tunnel,
    _server: TcpServer,
    answers: Arc<AtomicU64>,
    slowest_ms: Arc<AtomicU64>,
    client: JoinSet<()>,
}

impl Neighbour {
    async fn start() -> Self {
        let world = World::start().await;
        let server = TcpServer::echo().await.unwrap();
        let tunnel = world.tunnel(server.port()).await;
        let answers = Arc::new(AtomicU64::new(0));
        let slowest_ms = Arc::new(AtomicU64::new(0));
        let mut client = JoinSet::new();
        let (port, count, slowest) = (tunnel.port, Arc::clone(&answers), Arc::clone(&slowest_ms));
        client.spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            loop {
                let asked = Instant::now();
                assert_eq!(ask(&mut stream).await, Some(()), "the neighbour got no answer");
                let took = u64::try_from(asked.elapsed().as_millis()).unwrap();
                slowest.fetch_max(took, Relaxed);
                count.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let this = Self { world, tunnel, _server: server, answers, slowest_ms, client };
        this.was_served().await;
        // The duration of the start does not count.
        this.slowest_ms.store(0, Relaxed);
        this
    }

    /// Waits for an answer to a request sent from now on.
    async fn was_served(&self) {
        let before = self.answers.load(Relaxed);
        let served = || async { self.answers.load(Relaxed) > before + 1 };
        assert!(eventually(LIMIT, served).await, "the neighbour is not served");
    }

    /// Asserts that it was served all the time, and closes it.
    async fn finish(mut self) {
        self.was_served().await;
        let slowest = Duration::from_millis(self.slowest_ms.load(Relaxed));
        assert!(slowest < NEIGHBOUR_WAITS, "the neighbour waited for {slowest:?}");
        assert!(self.client.try_join_next().is_none(), "the neighbour's connection has ended");
        self.client.shutdown().await;
        self.tunnel.close().await;
        self.world.finish().await;
    }
}

/// Sends a message and receives its echo.
async fn ask(stream: &mut TcpStream) -> Option<()> {
    (ping(stream, LIMIT).await? == *b"ping").then_some(())
}

/// Asserts that a new connection through the tunnel is eventually echoed. Connections made while their path
/// is being lost are reset with it, so several are tried.
async fn assert_answers(port: u16, what: &str) {
    let answered = || async {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(mut stream) => ask(&mut stream).await.is_some(),
            Err(_) => false,
        }
    };
    assert!(eventually(LIMIT, answered).await, "{what}: no connection any more");
}

/// Samples both processes of a sidecar until they have exited: the kernel keeps the peak memory of each
/// only as long as it lives.
struct Watch {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<Used>,
}

/// What both processes together have used.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    memory_kib: u64,
    processor: Duration,
}

impl Watch {
    fn on(sidecar: &Sidecar) -> Self {
        let monitor = sidecar.pid().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let (mut used, mut worker) = ([Used::default(); 2], None);
            while !stopped.load(Relaxed) {
                worker = worker.or_else(|| child_of(monitor));
                for (used, pid) in used.iter_mut().zip([Some(monitor), worker]) {
                    if let Some(now) = pid.and_then(Used::by) {
                        *used = now;
                    }
                }
                std::thread::park_timeout(Duration::from_millis(5));
            }
            let [monitor, worker] = used;
            Used {
                memory_kib: monitor.memory_kib + worker.memory_kib,
                processor: monitor.processor + worker.processor,
            }
        });
        Self { stop, watcher }
    }

    /// Asserts that the memory used exceeds that of `neighbour` by no more than the bound, and the
    /// processor time is below `limit`.
    fn assert_within(self, what: &str, neighbour: &Neighbour, limit: Duration) {
        self.stop.store(true, Relaxed);
        let used = self.watcher.join().unwrap();
        let bound_kib = peak_kib(&neighbour.tunnel) + MORE_KIB;
        println!(
            "{what}: {} KiB of {bound_kib}, {:?} of the processor",
            used.memory_kib, used.processor
        );
        assert!(used.memory_kib > 0, "{what}: no sample was taken");
        assert!(used.memory_kib < bound_kib, "{what}: {used:?}, {bound_kib} KiB is the bound");
        assert!(used.processor < limit, "{what}: {used:?}, {limit:?} is the bound");
    }
}

impl Used {
    /// `None` once the process has exited.
    fn by(pid: Pid) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let memory_kib = peak.trim().trim_end_matches(" kB").parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name in parentheses; user and system time are fields 14 and 15 of the line, in
        // ticks of 10 ms.
        let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Some(Self { memory_kib, processor: Duration::from_millis(10 * ticks) })
    }
}

fn child_of(pid: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
}

/// As [`World::finish`], for tests in which messages were forged in the agent's name: the client's
/// acknowledges of those are violations to the emulator, and are expected.
async fn finish_with_forged_messages(world: World) {
    let journal = world.emulator.journal();
    let ended = eventually(STOP, || async { journal.open_sessions().is_empty() }).await;
    assert!(ended, "sessions left open: {:?}", journal.open_sessions());
    let mut violations = journal.violations();
    violations.retain(|text| !text.contains("acknowledge:"));
    assert!(violations.is_empty(), "protocol violations: {violations:#?}");
}
