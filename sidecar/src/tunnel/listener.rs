//! The listening socket: bound here, inherited, or made inside another network namespace.

#[cfg_attr(not(target_os = "linux"), path = "listener/peer_uid_elsewhere.rs")]
mod peer_uid;

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
    path::PathBuf,
};

use runner_protocol::request::Listen;
use tokio::net::{TcpListener, TcpStream};

use peer_uid::Peers;
pub use peer_uid::Refusal;

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

/// What [`bind`] has made, before it is served.
#[derive(Debug)]
pub struct Bound {
    /// Where clients arrive.
    pub socket: std::net::TcpListener,
    /// Tells who has connected; only where somebody wants to know.
    pub diagnosis: Option<OwnedFd>,
}

/// The listening socket, with what decides who may connect.
#[derive(Debug)]
pub struct Listener {
    /// Where clients arrive.
    pub socket: TcpListener,
    port: u16,
    peers: Option<Peers>,
}

impl Listener {
    /// Serves `bound`; `allowed`: the users that may connect, where not all may.
    ///
    /// # Errors
    ///
    /// When it cannot be watched.
    pub fn new(bound: Bound, allowed: Option<Vec<u32>>) -> io::Result<Self> {
        let Bound { socket, diagnosis } = bound;
        let port = socket.local_addr()?.port();
        let peers = match (allowed, diagnosis) {
            (None, _) => None,
            (Some(allowed), Some(diagnosis)) => Some(Peers::new(allowed, diagnosis)),
            (Some(_), None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self { socket: TcpListener::from_std(socket)?, port, peers })
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets `client` in or says why not.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where `listen.allowed_uids` does not name the client's user, or the user cannot be told.
    pub fn admit(&self, client: &TcpStream, peer: SocketAddr) -> Result<(), Refusal> {
        match &self.peers {
            None => Ok(()),
            Some(peers) => peers.admit(peer, client.local_addr().map_err(Refusal::Unknown)?),
        }
    }
}

/// Makes the listener that the document asks for; all other traffic stays in the own namespace.
///
/// # Errors
///
/// [`ListenError`] with what the kernel said.
pub async fn bind(listen: &Listen) -> Result<Bound, ListenError> {
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
        // Made where the listener was made: both see the sockets of that network namespace.
        let inherited = fd.and_then(|descriptor| inherited_diagnosis(descriptor + 1));
        let diagnosis = restricted.then(|| inherited.map_or_else(peer_uid::diagnosis, Ok));
        Ok(Bound { socket, diagnosis: diagnosis.transpose()? })
    };
    match &listen.netns {
        Some(path) => in_namespace(path.clone(), move || open(None)).await?.map_err(refused),
        None => open(listen.fd).map_err(refused),
    }
}

/// Takes over a listening socket that the launcher left open.
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

/// Takes over the netlink socket that a launcher leaves open behind a listener in another network namespace,
/// whose connections no socket made here would see.
#[cfg(target_os = "linux")]
fn inherited_diagnosis(descriptor: i32) -> Option<OwnedFd> {
    use nix::sys::socket::{NetlinkAddr, getsockname};

    adopt(descriptor, |owned| {
        // Of another family there is no such address.
        getsockname::<NetlinkAddr>(owned.as_raw_fd()).map(drop).map_err(io::Error::from)
    })
    .ok()
}

#[cfg(not(target_os = "linux"))]
fn inherited_diagnosis(_: i32) -> Option<OwnedFd> {
    None
}

/// Takes over an inherited descriptor that is what `is_it` wants, and leaves any other alone.
fn adopt(descriptor: i32, is_it: impl Fn(&OwnedFd) -> io::Result<()>) -> io::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    // SAFETY: the launcher says that this descriptor is ours; a closed one is found by the next call, one
    // that is something else is given back, and the number is at least 3, so it is none of the standard
    // streams.
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner yet")]
    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let outcome =
        is_it(&owned).and_then(|()| Ok(fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?));
    match outcome {
        Ok(_) => Ok(owned),
        Err(error) => {
            // A number that is not ours to close must not be closed: forget the owner, not the error.
            let _unowned = owned.into_raw_fd();
            Err(error)
        }
    }
}

/// Runs `open` on a thread of its own, since a thread that has entered a namespace stays in it.
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
        // Nobody waits any more when the start was stopped meanwhile.
        drop(sender.send(entered.map(|()| open())));
    };
    std::thread::Builder::new().name("namespace".to_owned()).spawn(enter).map_err(namespace)?;
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
