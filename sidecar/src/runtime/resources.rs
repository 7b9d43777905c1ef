//! What a process needs of its host besides CPU time: threads, descriptors, memory.
//!
//! Libraries below panic where the host gives no thread or no descriptor (the log writer, tokio's signals). So a process
//! checks first whether it gets them, while it can still report the lack.

use std::{fs, io, thread};

use nix::errno::Errno;
use runner_protocol::ErrorCode;
use serde::{Deserialize, Serialize};

use super::failure::ToFailure;

/// A resource that this host does not give.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("this host gives the sidecar no {}: {cause}", .resource.noun())]
pub(crate) struct MissingResource {
    resource: Resource,
    /// From the operating system.
    cause: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
enum Resource {
    Thread,
    Process,
    Descriptor,
    Memory,
}

impl Resource {
    const fn noun(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Process => "second process",
            Self::Descriptor => "descriptor",
            Self::Memory => "memory",
        }
    }
}

impl MissingResource {
    /// The error where a thread cannot be started.
    pub(crate) fn thread(error: &io::Error) -> Self {
        Self { resource: Resource::Thread, cause: error.to_string() }
    }

    /// The resource whose lack is why a process cannot be started; `None` where the error is another one.
    pub(crate) fn of_process(error: &io::Error) -> Option<Self> {
        // EPERM: `clone3`, refused by the seccomp filter of an old container runtime. Of a program that may not be
        // executed the kernel says EACCES.
        let lacks = matches!(errno(error), Some(Errno::EAGAIN | Errno::EPERM));
        let process = || Self { resource: Resource::Process, cause: error.to_string() };
        if lacks { Some(process()) } else { Self::of(error) }
    }

    /// The resource whose lack an error of another call reports; `None` where the error is another one.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()) {
            return Some(inner.clone());
        }
        let resource = match errno(error)? {
            Errno::EMFILE | Errno::ENFILE => Resource::Descriptor,
            Errno::ENOMEM | Errno::ENOBUFS => Resource::Memory,
            _ => return None,
        };
        Some(Self { resource, cause: error.to_string() })
    }
}

impl From<MissingResource> for io::Error {
    fn from(missing: MissingResource) -> Self {
        Self::other(missing)
    }
}

impl ToFailure for MissingResource {
    fn code(&self) -> ErrorCode {
        ErrorCode::LocalResources
    }

    fn hint(&self) -> String {
        match self.resource {
            Resource::Thread | Resource::Process => {
                "raise the limit of processes and threads (`ulimit -u`, `pids.max` of the container, systemd's \
                 `TasksMax`); in a container, update its runtime if its seccomp filter refuses `clone3`"
            }
            Resource::Descriptor => "raise the limit of open files (`ulimit -n`), here and of the whole host",
            Resource::Memory => "give the sidecar more memory (`ulimit -v`, the container's limit)",
        }
        .to_owned()
    }
}

/// Starts a thread, which ends at once, and opens the descriptors that a process needs at its start, which are closed
/// again. Blocks for a fraction of a millisecond.
///
/// # Errors
///
/// [`MissingResource`].
pub(crate) fn check() -> Result<(), MissingResource> {
    let thread =
        thread::Builder::new().spawn(|| ()).map_err(|error| MissingResource::thread(&error))?;
    // It cannot panic.
    drop(thread.join());
    wait_for_release();
    let mut descriptors = Vec::with_capacity(NEEDED_DESCRIPTORS);
    for _ in 0..NEEDED_DESCRIPTORS {
        match nix::unistd::dup(io::stderr()) {
            Ok(descriptor) => descriptors.push(descriptor),
            // Without a stderr there is nothing to copy.
            Err(Errno::EBADF) => break,
            Err(errno) => {
                let cause = io::Error::from(errno).to_string();
                return Err(MissingResource { resource: Resource::Descriptor, cause });
            }
        }
    }
    Ok(())
}

/// Waits, for an instant, until the kernel does not count a joined thread any more: the next one might be refused.
fn wait_for_release() {
    for _ in 0..RELEASE_CHECKS {
        // Without /proc it is not waited for.
        if fs::read_dir(THREADS).map_or(1, Iterator::count) == 1 {
            return;
        }
        thread::yield_now();
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Has an entry for each thread of this process; on Linux.
const THREADS: &str = "/proc/self/task";

/// About 10 ms in all; a joined thread is gone within microseconds.
const RELEASE_CHECKS: u32 = 1000;

/// Descriptors of a process until it is ready, with some to spare: the runtime's, listeners, IPC and a few connections.
const NEEDED_DESCRIPTORS: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_is_told_from_other_errors() {
        let lack =
            |errno: Errno| MissingResource::of(&errno.into()).map(|missing| missing.to_string());
        let text = "this host gives the sidecar no descriptor: Too many open files (os error 24)";
        assert_eq!(lack(Errno::EMFILE).as_deref(), Some(text));
        assert!(lack(Errno::ENOMEM).is_some_and(|text| text.contains("no memory")));
        assert_eq!(lack(Errno::ECONNREFUSED), None);
        assert_eq!(lack(Errno::EAGAIN), None, "a socket that is not ready");
        let process = |errno: Errno| MissingResource::of_process(&errno.into());
        assert!(process(Errno::EPERM).is_some_and(|missing| missing.hint().contains("`clone3`")));
        assert!(process(Errno::EAGAIN).is_some() && process(Errno::ENOENT).is_none());
        let wrapped = io::Error::from(MissingResource::thread(&Errno::EAGAIN.into()));
        assert!(
            MissingResource::of(&wrapped)
                .is_some_and(|missing| missing.to_string().contains("thread"))
        );
    }

    #[test]
    fn test_process_has_what_it_needs() {
        assert_eq!(check(), Ok(()));
    }
}
