//! Binds the listener in `listen.netns` from the launcher, so that the sidecar needs no right to enter a
//! namespace.

use std::{
    fs::File,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::error::LaunchError;
use crate::{
    config::{Config, Listen},
    value::{self, Entries},
};

/// What a sidecar inherits instead of entering `listen.netns`.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// The listener, and with `listen.allowed_uids` a socket for looking up the user of each connection.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The config that refers to these descriptors; `None` if it is unchanged.
    pub(super) config: Option<Zeroizing<String>>,
}

/// Binds the listener in the namespace of `listen.netns`, if there is one; `first` is its number in the sidecar.
///
/// A wrong config is passed on as it is: the sidecar refuses it with the reason. Cancel-safe.
///
/// # Errors
///
/// [`LaunchError::Network`] and [`LaunchError::Listen`].
pub(super) async fn inherit(config: &str, first: i32) -> Result<Inherited, LaunchError> {
    let Ok(Config { listen, .. }) = Config::from_json(config) else {
        return Ok(Inherited::default());
    };
    let Some(path) = listen.netns.clone() else { return Ok(Inherited::default()) };
    let config = Some(rewritten(config, &listen, first));
    let (sender, receiver) = oneshot::channel();
    // A thread of its own, which ends afterwards: a thread that has entered a namespace stays in it.
    let thread = thread::Builder::new().name("listener".to_owned());
    thread.spawn(move || drop(sender.send(bind(path, &listen))))?;
    let bound = receiver.await.map_err(|_| io::Error::other("the listener's thread has ended"))?;
    Ok(Inherited { descriptors: bound?, config })
}

fn bind(path: PathBuf, listen: &Listen) -> Result<Vec<OwnedFd>, LaunchError> {
    let entered =
        File::open(&path).and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?));
    entered.map_err(|cause| LaunchError::Network { path, cause })?;
    let at = SocketAddr::new(listen.address, listen.port);
    let failed = |cause| LaunchError::Listen { at, cause };
    let mut descriptors = vec![TcpListener::bind(at).map_err(failed)?.into()];
    if listen.allowed_uids.is_some() {
        // Created here, it sees the connections of this namespace, and reports user ids as this process sees them.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkSockDiag;
        let diagnostics = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol);
        descriptors.push(diagnostics.map_err(|error| failed(error.into()))?);
    }
    Ok(descriptors)
}

/// The config with `listen` replaced by the inherited descriptor; all other bytes stay as they are.
fn rewritten(config: &str, listen: &Listen, fd: i32) -> Zeroizing<String> {
    let allowed = listen.allowed_uids.as_ref().map(|users| format!(r#","allowed_uids":{users:?}"#));
    let replacement = format!(r#"{{"fd":{fd}{}}}"#, allowed.unwrap_or_default());
    let entries: Entries<'_> = value::entries(config).unwrap_or_default();
    let old = entries.iter().find(|(name, _)| name == "listen").map_or("", |(_, raw)| raw.get());
    let start = old.as_ptr().addr().saturating_sub(config.as_ptr().addr());
    let (before, rest) = config.split_at_checked(start).unwrap_or((config, ""));
    let after = rest.get(old.len()..).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(config.len() + replacement.len()));
    for part in [before, &replacement, after] {
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listen_is_rewritten() {
        let config = concat!(
            r#"{ "name": "a", "aws": {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "s"},"#,
            r#" "listen" : {"netns": "/run/netns/é", "port": 1024, "allowed_uids": [1, 2]} ,"#,
            r#" "bastion": {"instance_id": "i-0123456789abcdef0", "ssh_private_key": "k"},"#,
            r#" "target": {"host": "listen", "port": 1} }"#,
        );
        let listen = Config::from_json(config).unwrap().listen;
        let text = rewritten(config, &listen, 3);
        let (before, rest) = config.split_once("{\"netns\"").unwrap();
        let after = rest.split_once('}').unwrap().1;
        assert_eq!(*text, format!(r#"{before}{{"fd":3,"allowed_uids":[1, 2]}}{after}"#));
        let listen = Config::from_json(&text).unwrap().listen;
        assert_eq!((listen.fd, listen.netns), (Some(3), None));
        assert_eq!(listen.allowed_uids, Some(vec![1, 2]));
    }
}
