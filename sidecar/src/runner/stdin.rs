//! Stdin, whose end is the end of the job's lease.
//!
//! Read by readiness: `tokio::io::stdin` parks a thread in `read(2)` that can delay the exit. The descriptor stays in
//! blocking mode, since its open file description may be shared with the parent's shell; `poll(2)` comes before each
//! read instead.

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{SFlag, fstat, stat},
    unistd::{dup, read},
};
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdRegisterError},
};

/// Stdin, read without a thread.
#[derive(Debug)]
pub(crate) struct Stdin {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// A pipe, socket or terminal.
    Pollable(AsyncFd<OwnedFd>),
    /// A regular file or `/dev/null`: epoll refuses it, and it never blocks.
    Immediate(OwnedFd),
}

/// Kinds of stdin by which a process was probably started in another way than intended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum StdinKind {
    /// `/dev/null`, as in a container without `-i`, and where stdin was closed: the standard library opens it then.
    Nothing,
    /// A regular file, which ends with the config.
    File,
    Terminal,
    /// A pipe or socket.
    Stream,
}

impl StdinKind {
    /// Of the process's stdin.
    pub(crate) fn of_process() -> Self {
        Self::of(io::stdin().as_fd())
    }

    fn of(descriptor: BorrowedFd<'_>) -> Self {
        if descriptor.is_terminal() {
            return Self::Terminal;
        }
        let Ok(found) = fstat(descriptor) else { return Self::Nothing };
        let null = stat(NULL).map(|null| null.st_rdev);
        match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFCHR if null == Ok(found.st_rdev) => Self::Nothing,
            _ => Self::Stream,
        }
    }
}

impl Stdin {
    /// Watches the process's stdin.
    ///
    /// # Errors
    ///
    /// When the descriptor is closed or cannot be watched.
    pub(crate) fn open() -> io::Result<Self> {
        Self::from_descriptor(io::stdin().as_fd())
    }

    /// Watches a copy of `descriptor`.
    ///
    /// # Errors
    ///
    /// When it cannot be duplicated or watched.
    pub(crate) fn from_descriptor(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let source = match watch(dup(descriptor)?, Interest::READABLE) {
            Ok(watched) => Source::Pollable(watched),
            Err(refused) => {
                let (descriptor, error) = refused.into_parts();
                if error.kind() != io::ErrorKind::PermissionDenied {
                    return Err(error);
                }
                Source::Immediate(descriptor)
            }
        };
        Ok(Self { source })
    }

    /// Reads what is available; 0 at the end of input. Cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of `read(2)`.
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.source {
            Source::Immediate(descriptor) => Ok(read(descriptor, buffer)?),
            Source::Pollable(watched) => loop {
                let mut ready = watched.readable().await?;
                let descriptor = watched.get_ref();
                if is_readable(descriptor.as_fd())? {
                    return Ok(read(descriptor, buffer)?);
                }
                ready.clear_ready();
            },
        }
    }
}

/// Registers `descriptor` with the runtime. The error returns the descriptor.
pub(super) fn watch(
    descriptor: OwnedFd,
    interest: Interest,
) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it lives, and the `AsyncFd` owns it.
    #[expect(unsafe_code, reason = "tokio cannot see that from the type")]
    unsafe {
        AsyncFd::register_with_interest(descriptor, interest)
    }
}

fn is_readable(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::new(descriptor, PollFlags::POLLIN)];
    Ok(poll(&mut asked, PollTimeout::ZERO)? > 0)
}

const NULL: &str = "/dev/null";

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn what_stdin_is_can_be_told() {
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        let null = File::open(NULL).unwrap();
        let file = tempfile::tempfile().unwrap();
        let terminal = nix::pty::openpty(None, None).unwrap();
        for (descriptor, expected) in [
            (pipe.as_fd(), StdinKind::Stream),
            (null.as_fd(), StdinKind::Nothing),
            (file.as_fd(), StdinKind::File),
            (terminal.slave.as_fd(), StdinKind::Terminal),
        ] {
            assert_eq!(StdinKind::of(descriptor), expected);
        }
    }

    #[tokio::test]
    async fn a_pipe_is_read_as_it_fills_and_ends_when_its_writer_closes() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut stdin = Stdin::from_descriptor(reader.as_fd()).unwrap();
        let mut buffer = [0; 8];
        let mut writer = File::from(writer);
        writer.write_all(b"{}").unwrap();
        assert_eq!(stdin.read(&mut buffer).await.unwrap(), 2);
        let waiting =
            tokio::time::timeout(std::time::Duration::from_millis(20), stdin.read(&mut buffer));
        assert!(waiting.await.is_err(), "nothing to read yet");
        drop(writer);
        assert_eq!(stdin.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_regular_file_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut stdin = Stdin::from_descriptor(file.as_fd()).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(stdin.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(stdin.read(&mut buffer).await.unwrap(), 0);
    }
}
