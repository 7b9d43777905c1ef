//! The thread that all sidecars of this process are children of.
//!
//! A parent-death signal follows the parent's *thread*, and runners start sidecars from threads that end: this
//! one ends with the process. It also waits for those whose owner no longer does, so that none becomes a
//! zombie whatever future was dropped, and whether or not its runtime still runs.

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
    LaunchError,
    child::{self, Plan, Report},
    isolation::{Isolation, Network, Protection, Refused},
};

/// A request to start a sidecar.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) plan: Plan,
    pub(super) isolation: Isolation,
    pub(super) network: Network,
}

/// A process that the keeper has started.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    /// Set once it has been waited for; then its id may be another's.
    end: Option<WaitStatus>,
}

impl Child {
    /// Its id; `None` once it has been waited for.
    pub(super) fn id(&self) -> Option<Pid> {
        self.end.is_none().then_some(self.pid)
    }

    /// How it ended, if it has.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<WaitStatus>> {
        if self.end.is_none() {
            self.end = reap(self.pid)?;
        }
        Ok(self.end)
    }

    /// Sends it a signal, if it has not ended.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.id() {
            Some(pid) => Ok(kill(pid, signal)?),
            None => Ok(()),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.end.is_none()
            && let Ok(keeper) = keeper()
        {
            // Fails when the keeper has ended, which it does with the process.
            drop(keeper.send(Request::Bury(self.pid)));
        }
    }
}

/// Starts a process. Cancel-safe: when dropped, the process is ended as any whose owner is.
///
/// # Errors
///
/// As [`super::Launcher::launch`].
pub(super) async fn start(order: Order) -> Result<(Child, Vec<Refused>), LaunchError> {
    let (answer, answered) = oneshot::channel();
    let request = Request::Start(Box::new(order), answer);
    keeper()?.send(request).map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

type Answer = Result<(Child, Vec<Refused>), LaunchError>;

enum Request {
    Start(Box<Order>, oneshot::Sender<Answer>),
    Bury(Pid),
}

fn gone() -> io::Error {
    io::Error::other("the thread that starts sidecars has ended")
}

/// As many requests can wait as there are callers and children.
fn keeper() -> io::Result<&'static Sender<Request>> {
    static KEEPER: OnceLock<Sender<Request>> = OnceLock::new();
    if let Some(keeper) = KEEPER.get() {
        return Ok(keeper);
    }
    let (sender, requests) = channel();
    let keeper = Keeper { home: File::open(OWN_NETWORK)?.into(), away: false, dying: Vec::new() };
    // Of two that come here at once one is kept; the other's thread ends for want of a sender.
    thread::Builder::new().name("sidecars".to_owned()).spawn(move || keeper.run(&requests))?;
    Ok(KEEPER.get_or_init(|| sender))
}

struct Keeper {
    home: OwnedFd,
    /// Whether this thread is in another network namespace than `home`.
    away: bool,
    dying: Vec<Dying>,
}

/// A process without an owner.
struct Dying {
    pid: Pid,
    next: Signal,
    at: Instant,
}

impl Keeper {
    fn run(mut self, requests: &Receiver<Request>) {
        // A child must not run handlers of this process before it execs; it unblocks them then.
        drop(SigSet::all().thread_block().map_err(io::Error::from));
        loop {
            let request = if self.dying.is_empty() {
                requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                requests.recv_timeout(LOOK)
            };
            match request {
                // Where nobody waits for the answer any more, dropping it has the child ended.
                Ok(Request::Start(order, answer)) => drop(answer.send(self.start(&order))),
                Ok(Request::Bury(pid)) => {
                    let at = Instant::now() + GRACE;
                    self.dying.push(Dying { pid, next: Signal::SIGTERM, at });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.dying.retain_mut(|dying| !dying.is_over());
        }
    }

    fn start(&mut self, order: &Order) -> Answer {
        self.enter(&order.network)?;
        let mut all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        if order.network == Network::Fresh {
            all |= CloneFlags::CLONE_NEWNET;
        }
        let mut refused = Vec::new();
        // First all; then, for a runner with rights of its own, those that need no user namespace.
        for (flags, missing) in [
            (all | CloneFlags::CLONE_NEWUSER, Protection::UserNamespace),
            (all, Protection::Namespaces),
        ] {
            match attempt(order, flags, &mut refused)? {
                Ok(child) => return Ok((child, refused)),
                Err(cause) => refused.push(Refused { protection: missing, cause: cause.into() }),
            }
            if order.isolation == Isolation::Required {
                return Err(LaunchError::Refused(refused));
            }
        }
        if order.network == Network::Fresh {
            // Without it the sidecar would be in a network that it was not meant for.
            return Err(LaunchError::Refused(refused));
        }
        match attempt(order, CloneFlags::empty(), &mut refused)? {
            Ok(child) => Ok((child, refused)),
            Err(cause) => Err(LaunchError::Io(cause.into())),
        }
    }

    /// Takes this thread, and with it its next child, into the network that is asked for.
    fn enter(&mut self, network: &Network) -> Result<(), LaunchError> {
        let refused = |path: &Path, cause| LaunchError::Network { path: path.to_owned(), cause };
        if let Network::At(path) = network {
            let namespace = File::open(path).map_err(|cause| refused(path, cause))?;
            let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
            entered.map_err(|cause| refused(path, cause.into()))?;
            self.away = true;
        } else if self.away {
            setns(&self.home, CloneFlags::CLONE_NEWNET)
                .map_err(|cause| refused(OWN_NETWORK.as_ref(), cause.into()))?;
            self.away = false;
        }
        Ok(())
    }
}

impl Dying {
    /// Waits for it; sends the next signal when that is due.
    fn is_over(&mut self) -> bool {
        // It is no child of ours where it cannot be waited for.
        if !matches!(reap(self.pid), Ok(None)) {
            return true;
        }
        if Instant::now() >= self.at {
            send(self.pid, self.next);
            self.next = Signal::SIGKILL;
            self.at += TERMINATE_GRACE;
        }
        false
    }
}

/// Starts a child in these namespaces; the inner error is of those that fewer namespaces may cure.
fn attempt(
    order: &Order,
    flags: CloneFlags,
    refused: &mut Vec<Refused>,
) -> Result<Result<Child, Errno>, LaunchError> {
    let (mut control, theirs) = UnixStream::pair()?;
    control.set_read_timeout(Some(CONTROL_LIMIT))?;
    let pid = match child::start(&order.plan, flags, theirs.as_fd()) {
        Ok(pid) => pid,
        Err(cause) => return Ok(Err(cause)),
    };
    drop(theirs);
    let child = Unborn(Some(pid));
    if flags.contains(CloneFlags::CLONE_NEWUSER)
        && let Err(cause) = map_users(pid, order.plan.user)
    {
        let errno = cause.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        return Ok(Err(errno));
    }
    control.write_all(GO_ON)?;
    loop {
        match next_report(&mut control)? {
            Some(Report::Refused(protection, errno)) => {
                let cause = io::Error::from_raw_os_error(errno);
                refused.push(Refused { protection, cause });
            }
            Some(Report::Broken(what, errno)) => return Err(broken(what, errno)),
            Some(Report::Prepared) => break,
            None => return Err(broken("ended early", 0)),
        }
    }
    if order.isolation == Isolation::Required && !refused.is_empty() {
        return Err(LaunchError::Refused(std::mem::take(refused)));
    }
    control.write_all(GO_ON)?;
    // The exec closes the child's end.
    match next_report(&mut control)? {
        None => Ok(Ok(child.born(pid))),
        Some(Report::Broken(what, errno)) => Err(broken(what, errno)),
        Some(_) => Err(broken("repeats itself", 0)),
    }
}

fn broken(what: &'static str, errno: i32) -> LaunchError {
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

/// Lets the child know of one user and one group, which are the same outside.
fn map_users(pid: Pid, user: Option<(u32, u32)>) -> io::Result<()> {
    let of_child = |name: &str| format!("/proc/{pid}/{name}");
    if !geteuid().is_root() {
        // The kernel's condition for a map without rights (user_namespaces(7)).
        fs::write(of_child("setgroups"), "deny")?;
    }
    let (user, group) = user.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
    fs::write(of_child("uid_map"), format!("{user} {user} 1"))?;
    fs::write(of_child("gid_map"), format!("{group} {group} 1"))
}

/// A child that has not executed anything yet; killed and waited for when dropped.
struct Unborn(Option<Pid>);

impl Unborn {
    /// From here on its owner waits for it.
    fn born(mut self, pid: Pid) -> Child {
        self.0 = None;
        Child { pid, end: None }
    }
}

impl Drop for Unborn {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            send(pid, Signal::SIGKILL);
            drop(waitpid(pid, None).map_err(io::Error::from));
        }
    }
}

/// Fails when the process has ended, which is as good.
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

/// From the end of the lease to SIGTERM: more than the 5 s that a sidecar may take to end its sessions.
pub(super) const GRACE: Duration = Duration::from_secs(6);

/// From SIGTERM to SIGKILL.
pub(super) const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// Between two looks at processes without an owner.
const LOOK: Duration = Duration::from_millis(20);

/// For a child to get ready for its exec, which takes milliseconds.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

const GO_ON: &[u8] = b".";

const OWN_NETWORK: &str = "/proc/thread-self/ns/net";
