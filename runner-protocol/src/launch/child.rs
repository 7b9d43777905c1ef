//! From the clone to the exec: the only unsafe code of the launcher.
//!
//! The child of a process with threads may not allocate, lock or panic before it execs. So all that it needs
//! is made beforehand, and it calls nothing but the kernel. What it cannot do it reports to its parent, which
//! decides; it execs when told to.

use std::{
    ffi::{CString, c_char, c_long, c_ulong},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    ptr,
};

use nix::{
    libc,
    sched::{CloneFlags, clone},
    unistd::Pid,
};

use super::isolation::{Limits, Protection};

/// All that the child needs.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) program: CString,
    /// With the name of the program.
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// What becomes its descriptors 0, 1, 2 and so on; at most [`PLACES`].
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) hidden: Vec<CString>,
    pub(super) limits: Limits,
    /// Whether its stderr is a file, which it then has to write.
    pub(super) logs_to_file: bool,
    /// User and group that it is to run as, if not the runner's.
    pub(super) user: Option<(u32, u32)>,
}

/// A report of the child, five bytes on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Report {
    /// A protection is refused; the child goes on.
    Refused(Protection, i32),
    /// The child cannot go on, and ends.
    Broken(&'static str, i32),
    /// All is done; the child waits for the word to exec.
    Prepared,
}

impl Report {
    /// Reads what the child wrote.
    pub(super) fn decode([step, errno @ ..]: [u8; 5]) -> Self {
        let errno = i32::from_ne_bytes(errno);
        match step {
            PREPARED => Self::Prepared,
            MOUNTS => Self::Refused(Protection::PrivateMounts, errno),
            PROC => Self::Refused(Protection::OwnProc, errno),
            HIDDEN => Self::Refused(Protection::HiddenDirectory, errno),
            HOST_NAME => Self::Refused(Protection::HostName, errno),
            CAPABILITIES => Self::Refused(Protection::NoCapabilities, errno),
            IDENTITY => Self::Broken("cannot take its user", errno),
            LIMITS => Self::Broken("cannot set its limits", errno),
            PRIVILEGES => Self::Broken("cannot give up new privileges", errno),
            PARENT => Self::Broken("cannot be tied to its parent", errno),
            DESCRIPTORS => Self::Broken("cannot arrange its descriptors", errno),
            _ => Self::Broken("cannot be executed", errno),
        }
    }
}

/// Starts the child, which waits on `control` for one byte before it does anything, and for another before
/// it execs.
///
/// # Errors
///
/// What `clone(2)` says.
pub(super) fn start(plan: &Plan, flags: CloneFlags, control: BorrowedFd<'_>) -> nix::Result<Pid> {
    let mut child = Child {
        plan,
        flags,
        control: control.as_raw_fd(),
        arguments: pointers(&plan.arguments),
        environment: pointers(&plan.environment),
    };
    let mut stack = vec![0; STACK_BYTES];
    // SAFETY: without `CLONE_VM` the child has copies of the stack and of all that the closure borrows. Until
    // it execs or ends it makes system calls only: nothing there allocates, locks, unwinds or returns into
    // code of the parent.
    #[expect(unsafe_code, reason = "std's `Command` cannot give its child a PID namespace")]
    unsafe {
        clone(Box::new(|| child.run()), &mut stack, flags, Some(libc::SIGCHLD))
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

struct Child<'a> {
    plan: &'a Plan,
    flags: CloneFlags,
    control: RawFd,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

#[expect(unsafe_code, reason = "wrappers that allocate or lock must not run here; see the module")]
impl Child<'_> {
    /// The whole life of the child; what it returns is its exit status.
    fn run(&mut self) -> isize {
        // SAFETY: no pointers.
        self.control = unsafe { libc::fcntl(self.control, libc::F_DUPFD_CLOEXEC, FIRST_FREE) };
        if !self.is_told_to_go_on() {
            return STATUS;
        }
        let Err(step) = self.prepare() else {
            self.report(PREPARED);
            if self.is_told_to_go_on() {
                // SAFETY: path and lists end with a null each, and outlive the call.
                unsafe {
                    libc::execve(
                        self.plan.program.as_ptr(),
                        self.arguments.as_ptr(),
                        self.environment.as_ptr(),
                    );
                }
                self.report(EXECUTION);
            }
            return STATUS;
        };
        self.report(step);
        STATUS
    }

    /// In an order that leaves each step the rights that it needs.
    fn prepare(&self) -> Result<(), u8> {
        let in_user_namespace = self.flags.contains(CloneFlags::CLONE_NEWUSER);
        // SAFETY: no pointers.
        unsafe {
            // A Ctrl-C in the runner's terminal is the runner's to judge.
            libc::setsid();
            libc::umask(0o077);
        }
        if in_user_namespace {
            // Its user is known there, which the mounts below need; its rights over the namespace stay.
            self.take_user()?;
        }
        if self.flags.contains(CloneFlags::CLONE_NEWNS) {
            self.arrange_mounts();
        }
        if self.flags.contains(CloneFlags::CLONE_NEWUTS) {
            // SAFETY: the text is as long as is said.
            let named = unsafe { libc::sethostname(HOST.as_ptr(), HOST_LENGTH) };
            self.judge(HOST_NAME, named.into());
        }
        self.drop_capabilities();
        if !in_user_namespace {
            self.take_user()?;
        }
        self.set_limits()?;
        // SAFETY: no pointers. The signal comes after the change of user, which would clear it.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0), PRIVILEGES)?;
            // Not SIGKILL: it is to end its sessions.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as c_ulong, 0, 0, 0), PARENT)?;
        }
        self.arrange_descriptors()?;
        Self::reset_signals();
        Ok(())
    }

    fn take_user(&self) -> Result<(), u8> {
        // Raw calls: the wrappers of libc would ask all threads to do the same, and those did not come along.
        // SAFETY: the list of groups is empty.
        unsafe {
            let dropped = libc::syscall(libc::SYS_setgroups, 0_usize, ptr::null::<u32>());
            let Some((user, group)) = self.plan.user else { return Ok(()) };
            check_long(dropped, IDENTITY)?;
            check_long(libc::syscall(libc::SYS_setresgid, group, group, group), IDENTITY)?;
            check_long(libc::syscall(libc::SYS_setresuid, user, user, user), IDENTITY)
        }
    }

    fn arrange_mounts(&self) {
        let none = ptr::null::<c_char>();
        // SAFETY: each path ends with a null; where a pointer may be null it is.
        unsafe {
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let private = libc::mount(none, c"/".as_ptr(), none, flags, none.cast());
            self.judge(MOUNTS, private.into());
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            if self.flags.contains(CloneFlags::CLONE_NEWPID) {
                let name = c"proc".as_ptr();
                let mounted = libc::mount(name, c"/proc".as_ptr(), name, flags, none.cast());
                self.judge(PROC, mounted.into());
            }
            for path in &self.plan.hidden {
                let (name, options) = (c"tmpfs".as_ptr(), c"size=4k,mode=0555".as_ptr());
                let flags = flags | libc::MS_RDONLY;
                let mounted = libc::mount(name, path.as_ptr(), name, flags, options.cast());
                // What is not there is hidden.
                if mounted == 0 || errno() != libc::ENOENT {
                    self.judge(HIDDEN, mounted.into());
                }
            }
            // The directory it stands in may be one of the host's that is hidden by now.
            libc::chdir(c"/".as_ptr());
        }
    }

    /// Empties the bounding and ambient sets; the exec empties the others.
    fn drop_capabilities(&self) {
        // SAFETY: no pointers.
        unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
            for capability in 0..64 as c_ulong {
                if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                    // EINVAL: there are no more. A user without rights has none to lose.
                    if errno() != libc::EINVAL && libc::geteuid() == 0 {
                        self.report(CAPABILITIES);
                    }
                    return;
                }
            }
        }
    }

    fn set_limits(&self) -> Result<(), u8> {
        let Limits { open_files, address_space } = self.plan.limits;
        let limits = [
            (libc::RLIMIT_CORE, Some(0)),
            // Writing beyond it is death by SIGXFSZ, also for the first line of a log.
            (libc::RLIMIT_FSIZE, (!self.plan.logs_to_file).then_some(0)),
            (libc::RLIMIT_NOFILE, Some(open_files)),
            (libc::RLIMIT_AS, address_space),
        ];
        for (resource, limit) in limits {
            if let Some(limit) = limit {
                let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                // SAFETY: the limit is read during the call.
                check(unsafe { libc::setrlimit(resource, &raw const limit) }, LIMITS)?;
            }
        }
        Ok(())
    }

    /// Puts its descriptors in their places, and has all others closed by the exec.
    fn arrange_descriptors(&self) -> Result<(), u8> {
        // Out of the way first, so that none is overwritten before it is in its place.
        let mut raised = [-1; PLACES];
        for (raised, descriptor) in raised.iter_mut().zip(&self.plan.descriptors) {
            let number = descriptor.as_raw_fd();
            // SAFETY: no pointers.
            *raised = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_FREE) };
            check(*raised, DESCRIPTORS)?;
        }
        let mut place = 0;
        for raised in raised.into_iter().take_while(|raised| *raised >= 0) {
            // SAFETY: no pointers.
            check(unsafe { libc::dup2(raised, place) }, DESCRIPTORS)?;
            place += 1;
        }
        // SAFETY: no pointers; all that it touches is flags, which the exec reads.
        unsafe {
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, place, libc::c_uint::MAX, flags) == 0 {
                return Ok(());
            }
            // A kernel before 5.11, or a sandbox. No descriptor is as high as the limit was, of which
            // nothing is known here but that it is seldom more than this.
            for descriptor in place..HIGHEST_DESCRIPTOR {
                libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Ok(())
    }

    /// As after a login: nothing ignored, nothing blocked.
    fn reset_signals() {
        for signal in 1..=64 {
            // SAFETY: the default needs no handler. Of SIGKILL and SIGSTOP the kernel says no.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: zero bytes are a set of no signals, in the kernel's own size.
        unsafe {
            let none = 0_u64;
            let (how, size) = (libc::SIG_SETMASK, size_of::<u64>());
            let old = ptr::null::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, old, size);
        }
    }

    fn judge(&self, step: u8, outcome: c_long) {
        if outcome < 0 {
            self.report(step);
        }
    }

    fn report(&self, step: u8) {
        let [a, b, c, d] = errno().to_ne_bytes();
        let bytes = [step, a, b, c, d];
        // SAFETY: the bytes are there. A parent that has gone needs no report.
        unsafe { libc::write(self.control, bytes.as_ptr().cast(), bytes.len()) };
    }

    fn is_told_to_go_on(&self) -> bool {
        let mut byte = 0_u8;
        loop {
            // SAFETY: there is room for one byte.
            let read = unsafe { libc::read(self.control, (&raw mut byte).cast(), 1) };
            if read >= 0 || errno() != libc::EINTR {
                return read == 1;
            }
        }
    }
}

fn check(outcome: i32, step: u8) -> Result<(), u8> {
    check_long(outcome.into(), step)
}

fn check_long(outcome: c_long, step: u8) -> Result<(), u8> {
    if outcome < 0 { Err(step) } else { Ok(()) }
}

fn errno() -> i32 {
    nix::errno::Errno::last_raw()
}

const PREPARED: u8 = 0;
const MOUNTS: u8 = 1;
const PROC: u8 = 2;
const HIDDEN: u8 = 3;
const HOST_NAME: u8 = 4;
const CAPABILITIES: u8 = 5;
const IDENTITY: u8 = 6;
const LIMITS: u8 = 7;
const PRIVILEGES: u8 = 8;
const PARENT: u8 = 9;
const DESCRIPTORS: u8 = 10;
const EXECUTION: u8 = 11;

/// Of a child that does not exec; its report says why.
const STATUS: isize = 127;

const HOST: &std::ffi::CStr = c"sidecar";
const HOST_LENGTH: usize = 7;

/// Ample for the frames above.
const STACK_BYTES: usize = 256 << 10;

/// Three streams, the listener, and what tells who has connected.
const PLACES: usize = 5;

/// Above all places.
const FIRST_FREE: RawFd = 16;

/// Where `close_range(2)` is missing.
const HIGHEST_DESCRIPTOR: RawFd = 65_536;
