//! The worker's system calls: an allow-list, with the purpose of each group.
//!
//! All others fail with `EPERM`, so that a C library that tries a newer call first can fall back; calls that only an
//! attacker would make end the process. No call on the list opens, connects, starts or names anything: the worker uses
//! the descriptors that it has, and those that the monitor sends it.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// System calls that serve one purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    #[cfg_attr(not(test), expect(dead_code, reason = "a test holds SECURITY.md to it"))]
    pub(crate) purpose: &'static str,
    /// Each by its name and its number on this processor.
    pub(crate) calls: &'static [(&'static str, libc::c_long)],
}

macro_rules! calls {
    ($($number:ident),* $(,)?) => { &[$((stringify!($number), libc::$number)),*] };
}

/// The allowed calls. Some are allowed with certain arguments only, see `checked`.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        purpose: "bytes to and from what is open",
        calls: calls![
            SYS_read,
            SYS_readv,
            SYS_recvfrom,
            SYS_recvmsg,
            SYS_write,
            SYS_writev,
            SYS_sendto,
            SYS_sendmsg,
            SYS_shutdown,
            SYS_close,
        ],
    },
    Group {
        purpose: "clients at the listener, and settings of their sockets",
        calls: calls![
            SYS_accept4,
            SYS_getsockname,
            SYS_getpeername,
            SYS_getsockopt,
            SYS_setsockopt,
            SYS_fcntl,
            SYS_ioctl,
        ],
    },
    Group {
        purpose: "waiting",
        calls: calls![
            SYS_epoll_ctl,
            SYS_epoll_pwait,
            SYS_ppoll,
            SYS_futex,
            SYS_sched_yield,
            SYS_nanosleep,
            SYS_clock_nanosleep,
            SYS_restart_syscall,
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Group { purpose: "waiting, in older forms", calls: calls![SYS_epoll_wait, SYS_poll] },
    Group {
        purpose: "memory, never executable",
        calls: calls![SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_brk, SYS_madvise],
    },
    Group { purpose: "keys kept from swap", calls: calls![SYS_mlock] },
    Group {
        purpose: "time and randomness",
        calls: calls![SYS_clock_gettime, SYS_gettimeofday, SYS_getrandom],
    },
    Group {
        // A thread that was started just before the filter may still be initialising.
        purpose: "what a C library does where a thread begins",
        calls: calls![SYS_rseq, SYS_set_robust_list, SYS_sched_getaffinity, SYS_prctl],
    },
    Group {
        purpose: "signals of its own, and its end",
        calls: calls![
            SYS_rt_sigaction,
            SYS_rt_sigprocmask,
            SYS_rt_sigreturn,
            SYS_sigaltstack,
            SYS_tgkill,
            SYS_getpid,
            SYS_gettid,
            SYS_exit,
            SYS_exit_group,
        ],
    },
];

/// Calls that no code of the worker makes: such a call means that the worker was taken over.
pub(crate) const FATAL: &[(&str, libc::c_long)] = calls![
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_bpf,
    SYS_kexec_load,
    SYS_init_module,
    SYS_finit_module,
    SYS_mount,
    SYS_unshare,
    SYS_setns,
    SYS_io_uring_setup,
    SYS_userfaultfd,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_perf_event_open,
];

/// Restricts all threads of this process for good.
///
/// # Errors
///
/// Why the host refuses it, as a text for a message.
pub(crate) fn apply() -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let allow = program(allowed()?, REFUSE, SeccompAction::Allow, arch)?;
    let fatal = FATAL.iter().map(|(_, number)| (*number, Vec::new())).collect();
    let fatal = program(fatal, SeccompAction::Allow, SeccompAction::KillProcess, arch)?;
    // This one first: the other one forbids to add a filter. The kernel applies the stricter action of both.
    apply_filter_all_threads(&fatal).map_err(|error| error.to_string())?;
    apply_filter_all_threads(&allow).map_err(|error| error.to_string())
}

/// The calls that are allowed with certain arguments only.
fn checked() -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let never = |argument, bits: libc::c_int| {
        rule(argument, SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned())), 0)
    };
    let equal = |argument, value: u64| rule(argument, SeccompCmpOp::Eq, value);
    let number = |value: libc::c_int| u64::from(value.cast_unsigned());
    let option = |level, name| {
        SeccompRule::new(vec![
            condition(1, SeccompCmpOp::Eq, number(level))?,
            condition(2, SeccompCmpOp::Eq, number(name))?,
        ])
    };
    Ok(BTreeMap::from([
        (libc::SYS_mmap, vec![never(2, libc::PROT_EXEC)?]),
        (libc::SYS_mprotect, vec![never(2, libc::PROT_EXEC)?]),
        // This flag connects an unconnected socket, such as a listener that was shut down; Landlock does not check it.
        (libc::SYS_sendto, vec![never(3, libc::MSG_FASTOPEN)?]),
        (libc::SYS_sendmsg, vec![never(2, libc::MSG_FASTOPEN)?]),
        // `TCP_NODELAY` for small packets, `SO_LINGER` to reset connections that were cut.
        (
            libc::SYS_setsockopt,
            vec![
                option(libc::IPPROTO_TCP, libc::TCP_NODELAY)?,
                option(libc::SOL_SOCKET, libc::SO_LINGER)?,
            ],
        ),
        // `FIONBIO` makes a listener's descriptors non-blocking; `isatty` uses `TCGETS`.
        (libc::SYS_ioctl, vec![equal(1, FIONBIO)?, equal(1, TCGETS)?]),
        (
            libc::SYS_fcntl,
            [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC]
                .into_iter()
                .map(|command| equal(1, number(command)))
                .collect::<Result<_, _>>()?,
        ),
        // A thread's name.
        (libc::SYS_prctl, vec![equal(0, number(libc::PR_SET_NAME))?]),
        // To itself, for an abort.
        (libc::SYS_tgkill, vec![equal(0, u64::from(std::process::id()))?]),
    ]))
}

fn rule(
    argument: u8,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, comparison, value)?])
}

fn condition(
    argument: u8,
    comparison: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)
}

fn allowed() -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, String> {
    let mut rules = BTreeMap::new();
    for (_, number) in GROUPS.iter().flat_map(|group| group.calls) {
        rules.insert(*number, Vec::new());
    }
    rules.extend(checked().map_err(|error| error.to_string())?);
    Ok(rules)
}

fn program(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, String> {
    SeccompFilter::new(rules, otherwise, on_match, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

/// The action for calls that are not on the list.
const REFUSE: SeccompAction = SeccompAction::Errno(libc::EPERM.cast_unsigned());

/// `asm-generic/ioctls.h`; C libraries give it different types.
const FIONBIO: u64 = 0x5421;

/// `asm-generic/ioctls.h`.
const TCGETS: u64 = 0x5401;

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::ErrorKind::PermissionDenied,
        net::{TcpListener, TcpStream},
        os::unix::process::ExitStatusExt as _,
        process::Command,
    };

    use rustix::{io::Errno, net};

    use super::*;

    /// Runs the ignored test `name` in a process of its own, since what it does cannot be undone.
    fn alone(name: &str) -> std::process::Output {
        let name = format!("worker::sandbox::seccomp::tests::{name}");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &name, "--ignored", "--test-threads=1"]).output().unwrap()
    }

    #[test]
    fn what_is_not_on_the_list_is_refused() {
        let output = alone("refused");
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
    }

    #[test]
    #[ignore = "started by the test above, in a process of its own"]
    fn refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let waiting = TcpStream::connect(address).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(super::super::drop_privileges(), []);
        apply().unwrap();
        let kind = |outcome: std::io::Error| outcome.kind();
        assert_eq!(File::open("/dev/null").map_err(kind).err(), Some(PermissionDenied), "open");
        assert_eq!(TcpStream::connect(address).map_err(kind).err(), Some(PermissionDenied));
        assert_eq!(TcpListener::bind("127.0.0.1:0").map_err(kind).err(), Some(PermissionDenied));
        let thread = std::thread::Builder::new().spawn(|| ());
        assert_eq!(thread.map(drop).map_err(kind).err(), Some(PermissionDenied), "clone");
        let signalled = nix::sys::signal::kill(nix::unistd::getppid(), None);
        assert_eq!(signalled, Err(nix::errno::Errno::EPERM), "kill");
        // Open descriptors still work.
        let (client, _) = listener.accept().unwrap();
        client.set_nodelay(true).unwrap();
        client.set_ttl(1).map_err(kind).expect_err("an option that is not needed");
        drop((client, waiting));
        // Otherwise a listener that is shut down could be connected to any address.
        net::shutdown(&listener, net::Shutdown::Both).unwrap();
        let elsewhere = other.local_addr().unwrap();
        let connecting = net::SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
        let sent = net::sendto(&listener, b"x", connecting, &elsewhere);
        assert_eq!(sent, Err(Errno::PERM), "sendto that connects");
        let mut nothing = net::SendAncillaryBuffer::default();
        let text = [std::io::IoSlice::new(b"x")];
        let sent = net::sendmsg_addr(&listener, &elsewhere, &text, &mut nothing, connecting);
        assert_eq!(sent, Err(Errno::PERM), "sendmsg that connects");
    }

    #[test]
    fn starting_a_program_ends_the_process() {
        let output = alone("fatal");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
    }

    #[test]
    #[ignore = "started by the test above, in a process of its own"]
    fn fatal() {
        use std::os::unix::process::CommandExt as _;

        apply().unwrap();
        let error = Command::new("/bin/true").exec();
        panic!("it goes on: {error}");
    }

    #[test]
    fn security_md_lists_every_call_with_its_purpose() {
        let text = include_str!("../../../../SECURITY.md");
        for group in GROUPS {
            let names = group.calls.iter().map(|(name, _)| name.trim_start_matches("SYS_"));
            let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
            let row = format!("| {} | {} |", group.purpose, names.join(", "));
            assert!(text.contains(&row), "SECURITY.md lacks the row\n{row}");
        }
        let names = FATAL.iter().map(|(name, _)| name.trim_start_matches("SYS_"));
        let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        assert!(text.contains(&names.join(", ")), "SECURITY.md lacks\n{}", names.join(", "));
    }
}
