//! The thread that is the parent of all sidecars of this process.
//!
//! A parent-death signal is sent when the parent's *thread* ends, and runners start sidecars from threads that
//! end; this one ends only with the process. It also stops and waits for the children that no longer have an
//! owner, so that none becomes a zombie, whichever future was dropped, and whether or not the async runtime still
//! runs.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getegid, geteuid},
};
use tokio::sync::oneshot;

use super::{
    child::{self, ChildSpec, Report},
    error::LaunchError,
    isolation::{Isolation, MissingProtection, Network, Protection},
};

/// A request to start a sidecar.
#[derive(Debug)]
pub(super) struct StartRequest {
    pub(super) spec: ChildSpec,
    pub(super) isolation: Isolation,
    pub(super) network: Network,
}

/// A process that the supervisor has started. If it is dropped before the process has been waited for, the
/// supervisor stops the process.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Set once it has been waited for; then the kernel may reuse its id.
    exit: Option<WaitStatus>,
}

impl Child {
    /// The process id; `None` once it has been waited for.
    pub(super) fn id(&self) -> Option<Pid> {
        self.exit.is_none().then_some(self.pid)
    }

    /// The wait status, if it has ended.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<WaitStatus>> {
        if self.exit.is_none() {
            self.exit = reap(self.pid)?;
        }
        Ok(self.exit)
    }

    /// Sends a signal, unless it has been waited for.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.id() {
            Some(pid) => Ok(kill(pid, signal)?),
            None => Ok(()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none()
            && let Ok(supervisor) = supervisor()
        {
            // Fails only if the supervisor has ended, which it does with the process.
            drop(supervisor.send(Command::Stop(self.pid)));
        }
    }
}

/// Starts a process. Cancel-safe: if dropped, the process is stopped like any [`Child`] that is dropped.
///
/// # Errors
///
/// As [`super::Launcher::launch`].
pub(super) async fn start(request: StartRequest) -> StartResult {
    let (sender, receiver) = oneshot::channel();
    let command = Command::Start(Box::new(request), sender);
    supervisor()?.send(command).map_err(|_| supervisor_ended())?;
    receiver.await.map_err(|_| supervisor_ended())?
}

type StartResult = Result<(Child, Vec<MissingProtection>), LaunchError>;

enum Command {
    Start(Box<StartRequest>, oneshot::Sender<StartResult>),
    /// Stop a process that no longer has an owner, and wait for it.
    Stop(Pid),
}

fn supervisor_ended() -> io::Error {
    io::Error::other("the thread that starts sidecars has ended")
}

/// Returns the channel to the supervisor; starts its thread on the first call.
///
/// The channel has no bound, but holds at most one command for each caller and child.
fn supervisor() -> io::Result<&'static Sender<Command>> {
    static SUPERVISOR: OnceLock<Sender<Command>> = OnceLock::new();
    if let Some(supervisor) = SUPERVISOR.get() {
        return Ok(supervisor);
    }
    let (sender, commands) = channel();
    let own_network = File::open(OWN_NETWORK)?.into();
    let supervisor = Supervisor { own_network, in_other_network: false, orphans: Vec::new() };
    // If two callers race, one sender is kept; the thread of the other ends, since its channel has no sender.
    thread::Builder::new().name("sidecars".to_owned()).spawn(move || supervisor.run(&commands))?;
    Ok(SUPERVISOR.get_or_init(|| sender))
}

struct Supervisor {
    /// The network namespace of the runner.
    own_network: OwnedFd,
    /// Whether this thread is in another network namespace than `own_network`.
    in_other_network: bool,
    orphans: Vec<Orphan>,
}

/// A process without an owner, which is being stopped.
struct Orphan {
    pid: Pid,
    next_signal: Signal,
    /// When `next_signal` is due.
    deadline: Instant,
}

impl Supervisor {
    fn run(mut self, commands: &Receiver<Command>) {
        // A child must not run signal handlers of this process before it execs; it unblocks signals then.
        drop(SigSet::all().thread_block().map_err(io::Error::from));
        loop {
            let command = if self.orphans.is_empty() {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                commands.recv_timeout(POLL_INTERVAL)
            };
            match command {
                // If the receiver has been dropped, the child in the result is dropped too, and so stopped.
                Ok(Command::Start(request, sender)) => drop(sender.send(self.start(&request))),
                Ok(Command::Stop(pid)) => {
                    let deadline = Instant::now() + GRACE;
                    self.orphans.push(Orphan { pid, next_signal: Signal::SIGTERM, deadline });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.orphans.retain_mut(|orphan| !orphan.poll_ended());
        }
    }

    fn start(&mut self, request: &StartRequest) -> StartResult {
        self.enter(&request.network)?;
        let mut all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        if request.network == Network::Fresh {
            all |= CloneFlags::CLONE_NEWNET;
        }
        let mut missing = Vec::new();
        // First with all namespaces; then, for a privileged runner, without the user namespace.
        for (flags, protection) in [
            (all | CloneFlags::CLONE_NEWUSER, Protection::UserNamespace),
            (all, Protection::Namespaces),
        ] {
            match attempt(request, flags, &mut missing)? {
                Ok(child) => return Ok((child, missing)),
                Err(cause) => {
                    missing.push(MissingProtection { protection, cause: cause.into() });
                }
            }
            if request.isolation == Isolation::Required {
                return Err(LaunchError::MissingProtections(missing));
            }
        }
        if request.network == Network::Fresh {
            // Without the network namespace, the sidecar would have access to the runner's network.
            return Err(LaunchError::MissingProtections(missing));
        }
        match attempt(request, CloneFlags::empty(), &mut missing)? {
            Ok(child) => Ok((child, missing)),
            Err(cause) => Err(LaunchError::Io(cause.into())),
        }
    }

    /// Moves this thread, and so its next child, into the requested network namespace.
    fn enter(&mut self, network: &Network) -> Result<(), LaunchError> {
        let failed = |path: &Path, cause| LaunchError::Network { path: path.to_owned(), cause };
        if let Network::At(path) = network {
            let namespace = File::open(path).map_err(|cause| failed(path, cause))?;
            let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
            entered.map_err(|cause| failed(path, cause.into()))?;
            self.in_other_network = true;
        } else if self.in_other_network {
            setns(&self.own_network, CloneFlags::CLONE_NEWNET)
                .map_err(|cause| failed(OWN_NETWORK.as_ref(), cause.into()))?;
            self.in_other_network = false;
        }
        Ok(())
    }
}

impl Orphan {
    /// Whether it has been waited for; otherwise sends the next signal if that is due.
    fn poll_ended(&mut self) -> bool {
        // An error means that it is not, or no longer, a child of this process.
        if !matches!(reap(self.pid), Ok(None)) {
            return true;
        }
        if Instant::now() >= self.deadline {
            send(self.pid, self.next_signal);
            self.next_signal = Signal::SIGKILL;
            self.deadline += TERMINATE_GRACE;
        }
        false
    }
}

/// Starts a child in new namespaces according to `flags`. The inner error is one that may not occur with fewer
/// namespaces.
fn attempt(
    request: &StartRequest,
    flags: CloneFlags,
    missing: &mut Vec<MissingProtection>,
) -> Result<Result<Child, Errno>, LaunchError> {
    let (mut control, child_end) = UnixStream::pair()?;
    control.set_read_timeout(Some(CONTROL_TIMEOUT))?;
    let pid = match child::start(&request.spec, flags, child_end.as_fd()) {
        Ok(pid) => pid,
        Err(cause) => return Ok(Err(cause)),
    };
    drop(child_end);
    let child = PendingChild(Some(pid));
    if flags.contains(CloneFlags::CLONE_NEWUSER)
        && let Err(cause) = map_users(pid, request.spec.user)
    {
        let errno = cause.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        return Ok(Err(errno));
    }
    control.write_all(PROCEED)?;
    loop {
        match next_report(&mut control)? {
            Some(Report::Missing(protection, errno)) => {
                let cause = io::Error::from_raw_os_error(errno);
                missing.push(MissingProtection { protection, cause });
            }
            Some(Report::Failed(what, errno)) => return Err(start_error(what, errno)),
            Some(Report::Prepared) => break,
            None => return Err(start_error("ended before its exec", 0)),
        }
    }
    if request.isolation == Isolation::Required && !missing.is_empty() {
        return Err(LaunchError::MissingProtections(std::mem::take(missing)));
    }
    control.write_all(PROCEED)?;
    // A successful exec closes the child's end.
    match next_report(&mut control)? {
        None => Ok(Ok(child.into_child(pid))),
        Some(Report::Failed(what, errno)) => Err(start_error(what, errno)),
        Some(_) => Err(start_error("sent an unexpected report", 0)),
    }
}

fn start_error(what: &'static str, errno: i32) -> LaunchError {
    LaunchError::Start { what, cause: io::Error::from_raw_os_error(errno) }
}

fn next_report(control: &mut UnixStream) -> io::Result<Option<Report>> {
    let mut report = [0; 5];
    match control.read_exact(&mut report) {
        Ok(()) => Ok(Some(Report::decode(report))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Maps one user and one group into the child's user namespace, with the same ids as outside.
fn map_users(pid: Pid, user: Option<(u32, u32)>) -> io::Result<()> {
    let proc_file = |name: &str| format!("/proc/{pid}/{name}");
    if !geteuid().is_root() {
        // Required by the kernel for a group map that is written without privileges (user_namespaces(7)).
        fs::write(proc_file("setgroups"), "deny")?;
    }
    let (user, group) = user.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
    fs::write(proc_file("uid_map"), format!("{user} {user} 1"))?;
    fs::write(proc_file("gid_map"), format!("{group} {group} 1"))
}

/// A child before its exec; killed and waited for when dropped.
struct PendingChild(Option<Pid>);

impl PendingChild {
    /// Hands the process over to its owner, which has to wait for it.
    fn into_child(mut self, pid: Pid) -> Child {
        self.0 = None;
        Child { pid, exit: None }
    }
}

impl Drop for PendingChild {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            send(pid, Signal::SIGKILL);
            drop(waitpid(pid, None).map_err(io::Error::from));
        }
    }
}

/// Sends a signal. Fails if the process has ended, which is fine.
fn send(pid: Pid, signal: Signal) {
    drop(kill(pid, signal).map_err(io::Error::from));
}

fn reap(pid: Pid) -> io::Result<Option<WaitStatus>> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(status) => return Ok(Some(status)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// From the end of the lease to SIGTERM: more than the 5 s that a sidecar may take to terminate its sessions.
pub(super) const GRACE: Duration = Duration::from_secs(6);

/// From SIGTERM to SIGKILL.
pub(super) const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// Interval at which processes without an owner are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Limit for each report of a child before its exec; all of them take milliseconds.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

const PROCEED: &[u8] = b".";

const OWN_NETWORK: &str = "/proc/thread-self/ns/net";
