//! The listening socket: bound here, inherited, or made inside another network namespace.

use std::{io, net::SocketAddr, path::PathBuf};

use runner_protocol::request::Listen;
use tokio::net::TcpListener;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port is taken, the address is not this host's, or the descriptor is no listening socket.
    #[error("cannot listen on {at}")]
    Refused {
        /// Address and port, or the inherited descriptor.
        at: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// `listen.netns`.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

/// Makes the listener that the document asks for; all other traffic stays in the own namespace.
///
/// # Errors
///
/// [`ListenError`] with what the kernel said.
pub async fn bind(listen: &Listen) -> Result<TcpListener, ListenError> {
    if let Some(descriptor) = listen.fd {
        let refused =
            |cause| ListenError::Refused { at: format!("descriptor {descriptor}"), cause };
        let listener = inherited(descriptor).map_err(refused)?;
        return TcpListener::from_std(listener).map_err(refused);
    }
    let address = SocketAddr::new(listen.address, listen.port);
    let refused = |cause| ListenError::Refused { at: address.to_string(), cause };
    let Some(path) = &listen.netns else {
        return TcpListener::bind(address).await.map_err(refused);
    };
    let listener = in_namespace(path.clone(), address).await?;
    TcpListener::from_std(listener).map_err(refused)
}

/// Takes over a listening socket that the launcher left open.
fn inherited(descriptor: i32) -> io::Result<std::net::TcpListener> {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        sys::socket::{getsockopt, sockopt},
    };
    // SAFETY: the launcher says that this descriptor is ours; a closed one is found by the next call, and
    // the number is at least 3, so it is none of the standard streams.
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner yet")]
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let listening = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .and_then(|_| getsockopt(&owned, sockopt::AcceptConn));
    match listening {
        Ok(true) => (),
        outcome => {
            // A number that is not ours to close must not be closed: forget the owner, not the error.
            let _unowned = std::os::fd::IntoRawFd::into_raw_fd(owned);
            let kind = io::ErrorKind::InvalidInput;
            return Err(match outcome {
                Ok(_) => io::Error::new(kind, "it is no listening socket"),
                Err(errno) => errno.into(),
            });
        }
    }
    let listener = std::net::TcpListener::from(owned);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Binds on a thread of its own, since a thread that has entered a namespace stays in it.
#[cfg(target_os = "linux")]
async fn in_namespace(
    path: PathBuf,
    address: SocketAddr,
) -> Result<std::net::TcpListener, ListenError> {
    use nix::sched::{CloneFlags, setns};

    let (sender, receiver) = tokio::sync::oneshot::channel();
    let lost = ListenError::Namespace {
        path: path.clone(),
        cause: io::Error::other("the thread that enters it ended"),
    };
    let bind = move || {
        let namespace = |cause| ListenError::Namespace { path: path.clone(), cause };
        let file = std::fs::File::open(&path).map_err(namespace)?;
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| namespace(errno.into()))?;
        let refused = |cause| ListenError::Refused { at: address.to_string(), cause };
        let listener = std::net::TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        Ok(listener)
    };
    let thread = std::thread::Builder::new().name("namespace".to_owned());
    let spawned = thread.spawn(move || drop(sender.send(bind())));
    match spawned {
        Ok(_) => receiver.await.unwrap_or(Err(lost)),
        Err(cause) => Err(ListenError::Refused { at: address.to_string(), cause }),
    }
}

#[cfg(not(target_os = "linux"))]
async fn in_namespace(path: PathBuf, _: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    let cause =
        io::Error::new(io::ErrorKind::Unsupported, "network namespaces exist on Linux only");
    Err(ListenError::Namespace { path, cause })
}
