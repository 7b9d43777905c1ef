//! One job: a network namespace, a sidecar whose listening socket is in it, and a transfer that runs in it.

use std::{
    io,
    process::Stdio,
    time::{Duration, Instant},
};

use runner_protocol::{
    ErrorCode, ExitStatus,
    launch::{Launcher, NotReady, Sidecar, Stderr},
};
use tests::fixtures::{Config, Namespace};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    runtime::Handle,
    time::timeout,
};

use crate::{
    Outcome,
    customers::Customer,
    inside::{FIRST_ROW, INTERFACES, REACHED, TRANSFERRED},
};

/// An open tunnel, in a network namespace that contains nothing else.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) customer: &'a Customer,
    pub(crate) namespace: Namespace,
    pub(crate) ready: Duration,
    pub(crate) sidecar: Sidecar,
}

/// The result of a job that completed.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) rows: usize,
    /// Memory in use by the sidecar's processes at the end of the transfer.
    pub(crate) resident_bytes: u64,
}

/// A job whose tunnel could not be opened.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) code: ErrorCode,
    pub(crate) status: ExitStatus,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// What can be reached from a transfer's namespace.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) ports: Vec<u16>,
    pub(crate) interfaces: String,
}

impl<'a> Job<'a> {
    /// Starts the sidecar and waits until it is ready; the inner error is the sidecar's failure. Leaves
    /// nothing when dropped.
    pub(crate) async fn open(
        customer: &'a Customer,
        namespace: Namespace,
        config: &Config,
        launcher: &Launcher,
    ) -> Outcome<Result<Self, Failed>> {
        let started = Instant::now();
        let mut sidecar = launcher.launch(&config.compact(), Stderr::Discard).await?;
        match sidecar.ready().await {
            Ok(_) => Ok(Ok(Self { customer, namespace, ready: started.elapsed(), sidecar })),
            Err(NotReady::Failed(failure)) => {
                let status = timeout(LIMIT, sidecar.wait()).await??.status;
                let status = status.ok_or("a status that is not of the contract")?;
                let (message, hint) = (failure.message, failure.hint);
                Ok(Err(Failed { code: failure.code, status, message, hint }))
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Runs the transfer to its end and ends the sidecar. Leaves nothing when dropped.
    pub(crate) async fn run(self, at_the_first_row: impl FnOnce()) -> Outcome<Done> {
        let (mut transfer, mut lines) =
            self.inside(["transfer", &self.customer.port.to_string()])?;
        if said(&mut lines).await? != FIRST_ROW {
            return Err("the transfer has seen no row".into());
        }
        at_the_first_row();
        let last = said(&mut lines).await?;
        self.verify(&last)?;
        if !timeout(LIMIT, transfer.wait()).await??.success() {
            return Err("the transfer failed".into());
        }
        let resident_bytes = self.sidecar.metrics()?.resident_bytes;
        let ended = self.sidecar.stop().await?;
        if (ended.status, ended.force) != (Some(ExitStatus::Ok), None) {
            return Err(format!("the sidecar ended {ended}").into());
        }
        Ok(Done { rows: self.customer.orders.len(), resident_bytes })
    }

    /// Asserts that the transfer read all of the customer's rows, and no others.
    fn verify(&self, said: &str) -> Outcome<()> {
        let orders = &self.customer.orders;
        let sum: i64 = orders.iter().map(|order| order.amount_yen).sum();
        let expected = format!("{TRANSFERRED} {} {sum} {}", orders.len(), self.customer.name);
        if said == expected {
            return Ok(());
        }
        Err(format!("{} has transferred `{said}` instead of `{expected}`", self.customer.name)
            .into())
    }

    /// Tries to connect to these ports from within the namespace.
    pub(crate) async fn reach(&self, ports: &[u16]) -> Outcome<Reach> {
        let ports = ports.iter().map(u16::to_string);
        let arguments: Vec<_> = ["reach".to_owned()].into_iter().chain(ports).collect();
        let (mut process, mut lines) = self.inside(arguments.iter().map(String::as_str))?;
        let reached = said(&mut lines).await?;
        let interfaces = said(&mut lines).await?;
        timeout(LIMIT, process.wait()).await??;
        let reached = reached.strip_prefix(REACHED).ok_or("no line with the ports reached")?;
        let interfaces =
            interfaces.strip_prefix(INTERFACES).ok_or("no line with the interfaces")?;
        let ports: Result<_, _> = reached.split_whitespace().map(str::parse).collect();
        Ok(Reach { ports: ports?, interfaces: interfaces.trim().to_owned() })
    }

    /// Starts this program in the namespace; the process is killed when dropped.
    fn inside<'b>(
        &self,
        arguments: impl IntoIterator<Item = &'b str> + Send,
    ) -> io::Result<(Child, Lines<BufReader<ChildStdout>>)> {
        let runtime = Handle::current();
        // A process started by a thread inherits the thread's namespace.
        let start = || {
            let _entered = runtime.enter();
            Command::new(std::env::current_exe()?)
                .args(arguments)
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
        };
        let mut child = self.namespace.run(start)?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok((child, BufReader::new(stdout).lines()))
    }
}

async fn said(lines: &mut Lines<BufReader<ChildStdout>>) -> Outcome<String> {
    let line = timeout(LIMIT, lines.next_line()).await??;
    Ok(line.ok_or("a process in a namespace ended without a word")?)
}

/// Time limit for each step of a process, on a loaded machine.
const LIMIT: Duration = Duration::from_mins(1);
