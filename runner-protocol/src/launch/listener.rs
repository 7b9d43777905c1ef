//! `listen.netns`, carried out by the launcher, so that the sidecar needs no right to enter a namespace.

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

use super::LaunchError;
use crate::{
    Config,
    config::Listen,
    value::{self, Entries},
};

/// What a sidecar inherits in place of `listen.netns`.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// The listener, and with `listen.allowed_uids` a socket that tells who has connected to it.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The document that says so; `None`: as it is.
    pub(super) document: Option<Zeroizing<String>>,
}

/// Makes the listener in the namespace that the document names, if it names one.
///
/// A document that is wrong is left for the sidecar to refuse, which says why. Cancel-safe.
///
/// # Errors
///
/// [`LaunchError::Network`] and [`LaunchError::Listen`].
pub(super) async fn inherit(document: &str, first: i32) -> Result<Inherited, LaunchError> {
    let Ok(Config { listen, .. }) = Config::from_json(document) else {
        return Ok(Inherited::default());
    };
    let Some(path) = listen.netns.clone() else { return Ok(Inherited::default()) };
    let document = Some(rewritten(document, &listen, first));
    let (answer, answered) = oneshot::channel();
    // A thread that has entered a namespace stays in it; so this one ends.
    let maker = thread::Builder::new().name("listener".to_owned());
    maker.spawn(move || drop(answer.send(made(path, &listen))))?;
    let made = answered.await.map_err(|_| io::Error::other("the listener's thread has ended"))?;
    Ok(Inherited { descriptors: made?, document })
}

fn made(path: PathBuf, listen: &Listen) -> Result<Vec<OwnedFd>, LaunchError> {
    let entered =
        File::open(&path).and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?));
    entered.map_err(|cause| LaunchError::Network { path, cause })?;
    let at = SocketAddr::new(listen.address, listen.port);
    let refused = |cause| LaunchError::Listen { at, cause };
    let mut made = vec![TcpListener::bind(at).map_err(refused)?.into()];
    if listen.allowed_uids.is_some() {
        // It sees the connections of this namespace, and names users as this process knows them.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkSockDiag;
        let asked = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol);
        made.push(asked.map_err(|error| refused(error.into()))?);
    }
    Ok(made)
}

/// The document with another `listen`; everything else stays byte for byte.
fn rewritten(document: &str, listen: &Listen, fd: i32) -> Zeroizing<String> {
    let allowed = listen.allowed_uids.as_ref().map(|users| format!(r#","allowed_uids":{users:?}"#));
    let replacement = format!(r#"{{"fd":{fd}{}}}"#, allowed.unwrap_or_default());
    let entries: Entries<'_> = value::entries(document).unwrap_or_default();
    let old = entries.iter().find(|(name, _)| name == "listen").map_or("", |(_, raw)| raw.get());
    let start = old.as_ptr().addr().saturating_sub(document.as_ptr().addr());
    let (before, rest) = document.split_at_checked(start).unwrap_or((document, ""));
    let after = rest.get(old.len()..).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(document.len() + replacement.len()));
    for piece in [before, &replacement, after] {
        text.push_str(piece);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listen_is_rewritten() {
        let document = concat!(
            r#"{ "name": "a", "aws": {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "s"},"#,
            r#" "listen" : {"netns": "/run/netns/é", "port": 1024, "allowed_uids": [1, 2]} ,"#,
            r#" "bastion": {"instance_id": "i-0123456789abcdef0", "ssh_private_key": "k"},"#,
            r#" "target": {"host": "listen", "port": 1} }"#,
        );
        let listen = Config::from_json(document).unwrap().listen;
        let text = rewritten(document, &listen, 3);
        let (before, rest) = document.split_once("{\"netns\"").unwrap();
        let after = rest.split_once('}').unwrap().1;
        assert_eq!(*text, format!(r#"{before}{{"fd":3,"allowed_uids":[1, 2]}}{after}"#));
        let listen = Config::from_json(&text).unwrap().listen;
        assert_eq!((listen.fd, listen.netns), (Some(3), None));
        assert_eq!(listen.allowed_uids, Some(vec![1, 2]));
    }
}
