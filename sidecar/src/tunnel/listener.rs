//! The clients' listening socket: bound here, inherited, or created in another network namespace.

#[cfg_attr(not(target_os = "linux"), path = "listener/peer_uid_elsewhere.rs")]
mod peer_uid;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
    path::PathBuf,
};

use runner_protocol::{ErrorCode, config::Listen};
use tokio::net::{TcpListener, TcpStream};

use crate::runtime::{failure::ToFailure, resources::MissingResource};

use peer_uid::AllowedUsers;
pub(crate) use peer_uid::Refusal;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The port is taken, the address is not this host's, or the descriptor is no listening socket.
    #[error("cannot listen on {at}")]
    Refused {
        /// Address and port, or the inherited descriptor.
        at: String,
        #[source]
        cause: io::Error,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Namespace {
        /// `listen.netns`.
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

/// The sockets that [`bind`] returns.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: std::net::TcpListener,
    /// A netlink socket (`sock_diag`) to look up the user of a client; only with `listen.allowed_uids`.
    pub(crate) sock_diag: Option<OwnedFd>,
}

/// The listening socket, and who may connect.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) admission: Admission,
    port: u16,
}

/// Which users may connect; `None`: all.
#[derive(Debug)]
pub(crate) struct Admission(Option<AllowedUsers>);

impl Listener {
    /// `allowed`: the user ids that may connect; `None`: all.
    ///
    /// # Errors
    ///
    /// When the socket cannot be registered, or user ids are given without a netlink socket.
    pub(crate) fn new(bound: Bound, allowed: Option<Vec<u32>>) -> io::Result<Self> {
        let Bound { socket, sock_diag } = bound;
        let port = socket.local_addr()?.port();
        let admission = match (allowed, sock_diag) {
            (None, _) => Admission(None),
            (Some(allowed), Some(sock_diag)) => {
                Admission(Some(AllowedUsers::new(allowed, sock_diag)))
            }
            (Some(_), None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { socket: TcpListener::from_std(socket)?, admission, port })
    }

    /// The port that clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Admission {
    /// Checks whether the user of `client` may connect.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where `listen.allowed_uids` does not have the client's user, or its user is unknown.
    pub(crate) fn check(&self, client: &TcpStream, peer: SocketAddr) -> Result<(), Refusal> {
        match &self.0 {
            None => Ok(()),
            Some(users) => users.check(peer, client.local_addr().map_err(Refusal::Unknown)?),
        }
    }
}

impl ListenError {
    /// What this host lacks, if that is why.
    fn missing_resource(&self) -> Option<MissingResource> {
        let (Self::Refused { cause, .. } | Self::Namespace { cause, .. }) = self;
        MissingResource::of(cause)
    }
}

impl ToFailure for ListenError {
    fn code(&self) -> ErrorCode {
        if let Some(missing) = self.missing_resource() {
            return missing.code();
        }
        match self {
            Self::Refused { .. } => ErrorCode::LocalListen,
            Self::Namespace { .. } => ErrorCode::LocalNamespace,
        }
    }

    fn hint(&self) -> String {
        if let Some(missing) = self.missing_resource() {
            return missing.hint();
        }
        match self {
            Self::Refused { .. } => {
                "set `listen.port` to 0 or to a free port, `listen.address` to one of this host, \
                 or `listen.fd` to a listening socket"
            }
            Self::Namespace { .. } => {
                "check that `listen.netns` exists and that the sidecar may enter it (CAP_SYS_ADMIN), \
                 or pass a listening socket as `listen.fd`"
            }
        }
        .to_owned()
    }
}

/// Creates the listener of the config. All other traffic stays in the process's own namespace.
///
/// # Errors
///
/// [`ListenError`] with the kernel's error.
pub(crate) async fn bind(listen: &Listen) -> Result<Bound, ListenError> {
    let address = SocketAddr::new(listen.address, listen.port);
    let at = match listen.fd {
        Some(descriptor) => format!("descriptor {descriptor}"),
        None => address.to_string(),
    };
    let refused = |cause| ListenError::Refused { at: at.clone(), cause };
    let restricted = listen.allowed_uids.is_some();
    let open = move |fd: Option<i32>| -> io::Result<_> {
        let socket = match fd {
            Some(descriptor) => inherited(descriptor)?,
            None => std::net::TcpListener::bind(address)?,
        };
        socket.set_nonblocking(true)?;
        // Created here, in the network namespace of the listener: it sees the sockets of that namespace only. A
        // launcher passes one as the descriptor after the listener.
        let inherited = fd.and_then(|descriptor| inherited_sock_diag(descriptor + 1));
        let sock_diag = restricted.then(|| inherited.map_or_else(peer_uid::sock_diag, Ok));
        Ok(Bound { socket, sock_diag: sock_diag.transpose()? })
    };
    match &listen.netns {
        Some(path) => in_namespace(path.clone(), move || open(None)).await?.map_err(refused),
        None => open(listen.fd).map_err(refused),
    }
}

/// Takes over a listening socket that the launcher has passed on.
fn inherited(descriptor: i32) -> io::Result<std::net::TcpListener> {
    use nix::sys::socket::{getsockopt, sockopt};

    let listener = adopt(descriptor, |owned| {
        if getsockopt(owned, sockopt::AcceptConn)? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no listening socket"))
    })?;
    let listener = std::net::TcpListener::from(listener);
    listener.local_addr()?;
    Ok(listener)
}

/// Takes over the netlink socket that a launcher passes with a listener in another network namespace: a socket created
/// here would not see that listener's connections. `None` if `descriptor` is no netlink socket.
#[cfg(target_os = "linux")]
fn inherited_sock_diag(descriptor: i32) -> Option<OwnedFd> {
    use nix::sys::socket::{NetlinkAddr, getsockname};

    adopt(descriptor, |owned| {
        // Fails for a socket of another family.
        getsockname::<NetlinkAddr>(owned.as_raw_fd()).map(drop).map_err(io::Error::from)
    })
    .ok()
}

#[cfg(not(target_os = "linux"))]
fn inherited_sock_diag(_: i32) -> Option<OwnedFd> {
    None
}

/// Takes over an inherited descriptor if `check` accepts it; leaves any other descriptor open.
fn adopt(descriptor: i32, check: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    // SAFETY: the config names this descriptor as ours. A closed one makes the next call fail, one that is something
    // else is released below without closing it, and the number is at least 3, so it is no standard stream.
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner yet")]
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let outcome =
        check(&owned).and_then(|()| Ok(fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?));
    match outcome {
        Ok(_) => Ok(owned),
        Err(error) => {
            // Not ours to close.
            let _unowned = owned.into_raw_fd();
            Err(error)
        }
    }
}

/// Runs `open` on a new thread, since a thread that has entered a namespace stays in it.
#[cfg(target_os = "linux")]
async fn in_namespace<T: Send + 'static>(
    path: PathBuf,
    open: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ListenError> {
    use nix::sched::{CloneFlags, setns};

    let namespace = |cause| ListenError::Namespace { path: path.clone(), cause };
    let file = std::fs::File::open(&path).map_err(namespace)?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let enter = move || {
        let entered = setns(&file, CloneFlags::CLONE_NEWNET);
        // The receiver is gone if the start was stopped meanwhile.
        drop(sender.send(entered.map(|()| open())));
    };
    let thread = std::thread::Builder::new().name("namespace".to_owned()).spawn(enter);
    thread.map_err(|error| namespace(MissingResource::thread(&error).into()))?;
    match receiver.await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(errno)) => Err(namespace(errno.into())),
        Err(_) => Err(namespace(io::Error::other("the thread that enters it ended"))),
    }
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unused_async, reason = "the same shape as on Linux")]
async fn in_namespace<T: Send + 'static>(
    path: PathBuf,
    _: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ListenError> {
    let cause =
        io::Error::new(io::ErrorKind::Unsupported, "network namespaces exist on Linux only");
    Err(ListenError::Namespace { path, cause })
}
