//! From the clone to the exec: the only unsafe code of the launcher.
//!
//! The child of a process with threads may not allocate, lock or panic before it execs. So everything that it
//! needs is prepared before the clone, and it makes system calls only. It reports failed steps to its parent,
//! which decides whether it may exec.

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

/// Everything that the child needs.
#[derive(Debug)]
pub(super) struct ChildSpec {
    pub(super) program: CString,
    /// `argv`, including the program's name.
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// They become descriptors 0, 1, 2 and so on; at most [`MAX_DESCRIPTORS`].
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) hidden: Vec<CString>,
    pub(super) limits: Limits,
    /// Whether its stderr is a file, so that it has to be allowed to write files.
    pub(super) logs_to_file: bool,
    /// User and group to run as; `None` for the runner's.
    pub(super) user: Option<(u32, u32)>,
}

/// A report of the child, five bytes on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Report {
    /// A protection is not supported; the child continues.
    Missing(Protection, i32),
    /// A required step failed; the child exits.
    Failed(&'static str, i32),
    /// All steps are done; the child waits for the byte that lets it exec.
    Prepared,
}

impl Report {
    /// Decodes what the child wrote.
    pub(super) fn decode([step, errno @ ..]: [u8; 5]) -> Self {
        let errno = i32::from_ne_bytes(errno);
        match step {
            PREPARED => Self::Prepared,
            MOUNTS => Self::Missing(Protection::PrivateMounts, errno),
            PROC => Self::Missing(Protection::OwnProc, errno),
            HIDDEN => Self::Missing(Protection::HiddenDirectory, errno),
            HOST_NAME => Self::Missing(Protection::HostName, errno),
            CAPABILITIES => Self::Missing(Protection::NoCapabilities, errno),
            IDENTITY => Self::Failed("cannot take its user", errno),
            LIMITS => Self::Failed("cannot set its limits", errno),
            PRIVILEGES => Self::Failed("cannot give up new privileges", errno),
            PARENT => Self::Failed("cannot be tied to its parent", errno),
            DESCRIPTORS => Self::Failed("cannot arrange its descriptors", errno),
            _ => Self::Failed("cannot be executed", errno),
        }
    }
}

/// Clones the child. It waits on `control` for one byte before its first step, and for another before it execs.
///
/// # Errors
///
/// Those of `clone(2)`.
pub(super) fn start(
    spec: &ChildSpec,
    flags: CloneFlags,
    control: BorrowedFd<'_>,
) -> nix::Result<Pid> {
    let mut child = Child {
        spec,
        flags,
        control: control.as_raw_fd(),
        arguments: pointers(&spec.arguments),
        environment: pointers(&spec.environment),
    };
    let mut stack = vec![0; STACK_BYTES];
    // SAFETY: without `CLONE_VM` the child has copies of the stack and of everything that the closure borrows.
    // Until it execs or exits it makes system calls only: it does not allocate, lock, unwind or return into code
    // of the parent.
    #[expect(unsafe_code, reason = "std's `Command` cannot give its child a PID namespace")]
    unsafe {
        clone(Box::new(|| child.run()), &mut stack, flags, Some(libc::SIGCHLD))
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

struct Child<'a> {
    spec: &'a ChildSpec,
    flags: CloneFlags,
    control: RawFd,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

#[expect(unsafe_code, reason = "wrappers that allocate or lock must not run here; see the module")]
impl Child<'_> {
    /// Runs the child; returns its exit status if it does not exec.
    fn run(&mut self) -> isize {
        // SAFETY: no pointers.
        self.control = unsafe { libc::fcntl(self.control, libc::F_DUPFD_CLOEXEC, FIRST_FREE) };
        if !self.may_proceed() {
            return EXIT_STATUS;
        }
        let Err(step) = self.prepare() else {
            self.report(PREPARED);
            if self.may_proceed() {
                // SAFETY: path and lists are null-terminated and outlive the call.
                unsafe {
                    libc::execve(
                        self.spec.program.as_ptr(),
                        self.arguments.as_ptr(),
                        self.environment.as_ptr(),
                    );
                }
                self.report(EXECUTION);
            }
            return EXIT_STATUS;
        };
        self.report(step);
        EXIT_STATUS
    }

    /// Takes all steps, in an order that leaves each one the rights that it needs; the error is the failed step.
    fn prepare(&self) -> Result<(), u8> {
        let in_user_namespace = self.flags.contains(CloneFlags::CLONE_NEWUSER);
        // SAFETY: no pointers.
        unsafe {
            // A session of its own: a Ctrl-C in the runner's terminal must reach only the runner.
            libc::setsid();
            libc::umask(0o077);
        }
        if in_user_namespace {
            // The mounts below need a user that is mapped in the namespace. The child keeps its rights over the
            // namespace.
            self.take_user()?;
        }
        if self.flags.contains(CloneFlags::CLONE_NEWNS) {
            self.arrange_mounts();
        }
        if self.flags.contains(CloneFlags::CLONE_NEWUTS) {
            // SAFETY: the length is that of the text.
            let named = unsafe { libc::sethostname(HOST.as_ptr(), HOST_LENGTH) };
            self.report_error(HOST_NAME, named.into());
        }
        self.drop_capabilities();
        if !in_user_namespace {
            self.take_user()?;
        }
        self.set_limits()?;
        // SAFETY: no pointers. The parent-death signal is set after the change of user, which would clear it.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0), PRIVILEGES)?;
            // Not SIGKILL: the sidecar has to terminate its sessions.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as c_ulong, 0, 0, 0), PARENT)?;
        }
        self.arrange_descriptors()?;
        Self::reset_signals();
        Ok(())
    }

    fn take_user(&self) -> Result<(), u8> {
        // Raw calls: libc's wrappers would make all threads do the same, and the child has none of them.
        // SAFETY: the list of groups is empty.
        unsafe {
            let dropped = libc::syscall(libc::SYS_setgroups, 0_usize, ptr::null::<u32>());
            let Some((user, group)) = self.spec.user else { return Ok(()) };
            check_long(dropped, IDENTITY)?;
            check_long(libc::syscall(libc::SYS_setresgid, group, group, group), IDENTITY)?;
            check_long(libc::syscall(libc::SYS_setresuid, user, user, user), IDENTITY)
        }
    }

    fn arrange_mounts(&self) {
        let none = ptr::null::<c_char>();
        // SAFETY: each path is null-terminated; pointers are null only where that is allowed.
        unsafe {
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            let private = libc::mount(none, c"/".as_ptr(), none, flags, none.cast());
            self.report_error(MOUNTS, private.into());
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            if self.flags.contains(CloneFlags::CLONE_NEWPID) {
                let name = c"proc".as_ptr();
                let mounted = libc::mount(name, c"/proc".as_ptr(), name, flags, none.cast());
                self.report_error(PROC, mounted.into());
            }
            for path in &self.spec.hidden {
                let (name, options) = (c"tmpfs".as_ptr(), c"size=4k,mode=0555".as_ptr());
                let flags = flags | libc::MS_RDONLY;
                let mounted = libc::mount(name, path.as_ptr(), name, flags, options.cast());
                // A directory that does not exist is hidden already.
                if mounted == 0 || errno() != libc::ENOENT {
                    self.report_error(HIDDEN, mounted.into());
                }
            }
            // The working directory may be one of the host's that is now hidden.
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
                    // EINVAL: there are no further capabilities. Users other than root have none to lose.
                    if errno() != libc::EINVAL && libc::geteuid() == 0 {
                        self.report(CAPABILITIES);
                    }
                    return;
                }
            }
        }
    }

    fn set_limits(&self) -> Result<(), u8> {
        let Limits { open_files, address_space } = self.spec.limits;
        let limits = [
            (libc::RLIMIT_CORE, Some(0)),
            // Writing beyond the limit raises SIGXFSZ, which would kill the sidecar at its first log line.
            (libc::RLIMIT_FSIZE, (!self.spec.logs_to_file).then_some(0)),
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

    /// Moves the descriptors to their numbers, and marks all others to be closed by the exec.
    fn arrange_descriptors(&self) -> Result<(), u8> {
        // To high numbers first, so that no descriptor is overwritten before it is moved.
        let mut raised = [-1; MAX_DESCRIPTORS];
        for (raised, descriptor) in raised.iter_mut().zip(&self.spec.descriptors) {
            let number = descriptor.as_raw_fd();
            // SAFETY: no pointers.
            *raised = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_FREE) };
            check(*raised, DESCRIPTORS)?;
        }
        let mut number = 0;
        for raised in raised.into_iter().take_while(|raised| *raised >= 0) {
            // SAFETY: no pointers.
            check(unsafe { libc::dup2(raised, number) }, DESCRIPTORS)?;
            number += 1;
        }
        // SAFETY: no pointers; only flags are changed, which take effect at the exec.
        unsafe {
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            if libc::syscall(libc::SYS_close_range, number, libc::c_uint::MAX, flags) == 0 {
                return Ok(());
            }
            // A kernel before 5.11, or a sandbox without this call. Descriptors are below the limit that the
            // runner had, which is no longer known here, but is seldom higher than this.
            for descriptor in number..HIGHEST_DESCRIPTOR {
                libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Ok(())
    }

    /// Resets all signals to their defaults and unblocks them, as after a login.
    fn reset_signals() {
        for signal in 1..=64 {
            // SAFETY: the default action has no handler. For SIGKILL and SIGSTOP the call fails, which is
            // harmless.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // SAFETY: zero is the empty signal set, of the size that the kernel expects.
        unsafe {
            let none = 0_u64;
            let (how, size) = (libc::SIG_SETMASK, size_of::<u64>());
            let old = ptr::null::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, old, size);
        }
    }

    /// Reports a step that may fail.
    fn report_error(&self, step: u8, outcome: c_long) {
        if outcome < 0 {
            self.report(step);
        }
    }

    fn report(&self, step: u8) {
        let [a, b, c, d] = errno().to_ne_bytes();
        let bytes = [step, a, b, c, d];
        // SAFETY: pointer and length are those of the array. The write may fail: then the parent has ended.
        unsafe { libc::write(self.control, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// Waits for a byte from the parent; false if the parent has closed its end.
    fn may_proceed(&self) -> bool {
        let mut byte = 0_u8;
        loop {
            // SAFETY: the buffer has room for one byte.
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

/// Exit status of a child that does not exec; its report has the reason.
const EXIT_STATUS: isize = 127;

const HOST: &std::ffi::CStr = c"sidecar";
const HOST_LENGTH: usize = 7;

/// Far more than the frames above need.
const STACK_BYTES: usize = 256 << 10;

/// Three streams, the listener, and the socket that looks up the users of connections.
const MAX_DESCRIPTORS: usize = 5;

/// Greater than the numbers of all inherited descriptors.
const FIRST_FREE: RawFd = 16;

/// Bound of the loop that replaces `close_range(2)` if the kernel lacks it.
const HIGHEST_DESCRIPTOR: RawFd = 65_536;
