//! Twenty transfers of twenty customers at once, each isolated with its own database: `cargo run --release
//! --example orchestrator`.
//!
//! Needs Linux, and nothing but this repository. This process emulates AWS and the customers' networks; the
//! sidecars are the real program, started by `runner_protocol::launch`, and each transfer is a separate
//! process in its own network namespace. Exits with an error if anything differs from what is described
//! here.

#![expect(clippy::print_stdout, reason = "what this program is for")]

mod customers;
mod inside;
mod job;
mod report;

use std::{error::Error, fs, io, process::ExitCode, time::Duration};

use futures_util::future::{join_all, try_join_all};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use runner_protocol::{
    ErrorCode,
    launch::{Isolation, Launcher},
};
use serde_json::{Value, json};
use tests::fixtures::{Namespace, binary, eventually};
use tokio::{net::TcpStream, runtime::Runtime, select, sync::Notify};

use customers::{Customer, World};
use job::Job;
use report::Row;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => orchestrate(),
        ["transfer", port] => run(async { inside::transfer(port.parse()?).await }),
        ["reach", ports @ ..] => run(async {
            let ports: Result<_, _> = ports.iter().map(|port| port.parse()).collect();
            inside::reach(ports?).await
        }),
        _ => {
            println!("usage: orchestrator");
            return ExitCode::from(64);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThis is not as promised: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: impl Future<Output = Outcome<()>>) -> Outcome<()> {
    Runtime::new()?.block_on(work)
}

/// The example, top to bottom.
fn orchestrate() -> Outcome<()> {
    println!(
        "ssm-sidecar: 20 transfers of 20 customers at once, each alone with its own database\n"
    );
    let launcher = Launcher::new(binary()?).isolation(Isolation::BestEffort);
    may_make_namespaces()?;
    run(async {
        let world = World::start().await?;
        println!(
            "The customers' side, played by this process: {COUNT} AWS users, each allowed to start"
        );
        println!(
            "sessions on one instance, its own; as many bastions and databases, with keys and rows of"
        );
        println!("their own.\n");
        all_at_once(&world, &launcher).await?;
        with_faults(&world, &launcher).await
    })
}

/// Runs all jobs concurrently: opens every tunnel, checks the isolation, then runs every transfer.
async fn all_at_once(world: &World, launcher: &Launcher) -> Outcome<()> {
    println!("All at once:");
    let opening = world.customers.iter().map(async |customer| {
        let namespace = Namespace::new()?;
        let config = world.config(customer, &namespace.path());
        let opened = Job::open(customer, namespace, &config, launcher).await?;
        opened.map_err(|failed| {
            format!("{}: {}; {}", failed.code, failed.message, failed.hint).into()
        })
    });
    let jobs: Vec<Job<'_>> = try_join_all(opening).await.map_err(|error: Box<dyn Error>| error)?;
    let walls = walls(world, &jobs).await?;

    let transfers = jobs.into_iter().map(async |job| {
        let mut row = Row::of(job.customer, &job.namespace)?;
        row.opened(&job);
        row.transferred(job.run(|| ()).await?);
        Outcome::Ok(row)
    });
    report::print(&try_join_all(transfers).await?);
    println!("\n{walls}");
    nothing_left(world, COUNT).await
}

/// Asserts, while all tunnels are open, that each can be reached only from its own namespace.
async fn walls(world: &World, jobs: &[Job<'_>]) -> Outcome<String> {
    let tunnels: Vec<u16> = jobs.iter().map(|job| job.customer.port).collect();
    let outside = world.ports_outside()?;
    let all: Vec<u16> = tunnels.iter().chain(&outside).copied().collect();
    for job in jobs {
        let reach = job.reach(&all).await?;
        if reach.ports != [job.customer.port] || reach.interfaces != "lo" {
            return Err(format!("the namespace of {} reaches {reach:?}", job.customer.name).into());
        }
    }
    for port in &tunnels {
        if TcpStream::connect(("127.0.0.1", *port)).await.is_ok() {
            return Err(format!("port {port} is reached from outside").into());
        }
    }
    // They do exist: from here they answer.
    for port in &outside {
        TcpStream::connect(("127.0.0.1", *port)).await?;
    }
    let (own, foreign) = (jobs.len(), jobs.len() * (jobs.len() - 1));
    Ok(format!(
        "Walls, tried while all tunnels were open:\n  \
           from each namespace to its own tunnel      {own:>3} of {own:>3} connected\n  \
           from each namespace to all others' tunnels {foreign:>3} of {foreign:>3} refused\n  \
           from the host to each tunnel               {own:>3} of {own:>3} refused\n  \
           from each namespace to AWS, bastions and databases themselves: {direct} of {direct} refused\n  \
           interfaces in each namespace: lo, and no other",
        direct = own * outside.len(),
    ))
}

/// Runs all jobs again, three of them with faults, which the others must not notice.
async fn with_faults(world: &World, launcher: &Launcher) -> Outcome<()> {
    println!("\nOnce more, with three faults:");
    let rows = world.customers.iter().map(async |customer| {
        let namespace = Namespace::new()?;
        let mut row = Row::of(customer, &namespace)?;
        let fault = Fault::of(customer, world)?;
        let config = world.config(customer, &namespace.path()).with(&fault.changes());
        match (Job::open(customer, namespace, &config, launcher).await?, fault.code()) {
            (Ok(job), None) => {
                row.opened(&job);
                let first_row = Notify::new();
                select! {
                    // To drop the job, its future is dropped, with everything it holds.
                    () = first_row.notified(), if matches!(fault, Fault::Dropped) => row.dropped(),
                    done = job.run(|| first_row.notify_one()) => match fault {
                        Fault::Dropped => return Err("the job was over before it was dropped".into()),
                        _ => row.transferred(done?),
                    },
                }
            }
            (Err(failed), Some(code)) if failed.code == code => row.failed(&failed),
            (opened, expected) => {
                return Err(
                    format!("{}: {opened:?} in place of {expected:?}", customer.name).into()
                );
            }
        }
        Outcome::Ok(row)
    });
    let rows = join_all(rows).await.into_iter().collect::<Outcome<Vec<_>>>()?;
    report::print(&rows);
    println!();
    // One of the jobs was not permitted to start a session.
    nothing_left(world, 2 * COUNT - 1).await
}

/// A fault of a job.
#[derive(Debug)]
enum Fault<'a> {
    None,
    /// The customer uses the SSH key of this other customer.
    KeyOf(&'a Customer),
    /// The customer uses the bastion of this other customer, with all keys for it except AWS's.
    BastionOf(&'a Customer),
    /// Its runner drops it during the transfer.
    Dropped,
}

impl<'a> Fault<'a> {
    fn of(customer: &Customer, world: &'a World) -> Outcome<Self> {
        // Customers count from 1, so this is the next one.
        let next = || world.customers.get(customer.number).ok_or("there is no next customer");
        Ok(match customer.number {
            7 => Self::KeyOf(next()?),
            12 => Self::BastionOf(next()?),
            17 => Self::Dropped,
            _ => Self::None,
        })
    }

    /// The changes to the config.
    fn changes(&self) -> Value {
        match self {
            Self::KeyOf(other) => Customer::with_key_of(other),
            Self::BastionOf(other) => Customer::with_bastion_of(other),
            Self::None | Self::Dropped => json!({}),
        }
    }

    /// The expected error code.
    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::KeyOf(_) => Some(ErrorCode::SshAuthRejected),
            Self::BastionOf(_) => Some(ErrorCode::AwsAccessDenied),
            Self::None | Self::Dropped => None,
        }
    }
}

/// Asserts that every session has ended, that the expected number was started, and that no process is left.
async fn nothing_left(world: &World, started: usize) -> Outcome<()> {
    let journal = world.emulator.journal();
    if !eventually(STOP, || async { journal.open_sessions().is_empty() && children().is_empty() })
        .await
    {
        let sessions = journal.open_sessions();
        return Err(format!("left: sessions {sessions:?}, processes {:?}", children()).into());
    }
    let violations = journal.violations();
    if !violations.is_empty() {
        return Err(format!("the protocol was broken: {violations:?}").into());
    }
    if journal.sessions().len() != started {
        return Err(format!("{} sessions were started", journal.sessions().len()).into());
    }
    println!("Sessions started so far: {started}; sessions left: 0; processes left: 0");
    Ok(())
}

/// Child processes that have not been waited for.
fn children() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Becomes root in a user namespace, unless it is root already, since network namespaces can be created
/// there. Must be called before a second thread exists.
fn may_make_namespaces() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// How many customers there are.
const COUNT: usize = 20;

/// Time limit for the cleanup of what was dropped.
const STOP: Duration = Duration::from_secs(10);
