//! The user of a client's socket, from the kernel by `sock_diag(7)`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// The user ids that may connect.
#[derive(Debug)]
pub(super) struct AllowedUsers {
    allowed: Vec<u32>,
    /// Sees the sockets of the network namespace in which it was created.
    sock_diag: OwnedFd,
}

/// Why a client is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("user {0} is not among `listen.allowed_uids`")]
    User(u32),
    /// The kernel has no such socket, for example because it is closed already.
    #[error("its user is unknown: {0}")]
    Unknown(io::Error),
}

/// Creates a netlink socket for the network namespace of the calling thread.
pub(super) fn sock_diag() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkSockDiag;
    Ok(socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?)
}

impl AllowedUsers {
    pub(super) fn new(allowed: Vec<u32>, sock_diag: OwnedFd) -> Self {
        Self { allowed, sock_diag }
    }

    /// Checks the owner of the socket at `peer`, which is connected to `own`.
    pub(super) fn check(&self, peer: SocketAddr, own: SocketAddr) -> Result<(), Refusal> {
        let user = self.user(peer, own).map_err(Refusal::Unknown)?;
        if self.allowed.contains(&user) { Ok(()) } else { Err(Refusal::User(user)) }
    }

    fn user(&self, peer: SocketAddr, own: SocketAddr) -> io::Result<u32> {
        let descriptor = self.sock_diag.as_raw_fd();
        let kernel = NetlinkAddr::new(0, 0);
        sendto(descriptor, &request(peer, own), &kernel, MsgFlags::empty())?;
        // The kernel answers within the sending call: this does not wait.
        let mut answer = [0; ANSWER_BYTES];
        let length = recv(descriptor, &mut answer, MsgFlags::empty())?;
        user_of(answer.get(..length).unwrap_or_default())
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` of `linux/inet_diag.h`, for exactly one socket.
fn request(peer: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(&REQUEST_BYTES.to_ne_bytes());
    message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number and port: one request at a time
    let family = if peer.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.extend_from_slice(&[family as u8, IPPROTO_TCP, 0, 0]);
    message.extend_from_slice(&u32::MAX.to_ne_bytes()); // any state
    message.extend_from_slice(&peer.port().to_be_bytes());
    message.extend_from_slice(&own.port().to_be_bytes());
    message.extend_from_slice(&padded(peer.ip()));
    message.extend_from_slice(&padded(own.ip()));
    message.extend_from_slice(&0_u32.to_ne_bytes()); // any interface
    message.extend_from_slice(&[0xff; 8]); // INET_DIAG_NOCOOKIE
    message
}

fn padded(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(address) => {
            let mut padded = [0; 16];
            let (start, _) = padded.split_at_mut(4);
            start.copy_from_slice(&address.octets());
            padded
        }
    }
}

/// Reads `idiag_uid` of `struct inet_diag_msg`, or the error that came in its place.
fn user_of(answer: &[u8]) -> io::Result<u32> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let number = |at: usize| {
        answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
    };
    match kind.ok_or_else(short)? {
        SOCK_DIAG_BY_FAMILY => number(HEADER_BYTES + UID_OFFSET).ok_or_else(short),
        NLMSG_ERROR => {
            let errno = number(HEADER_BYTES).ok_or_else(short)?.cast_signed().wrapping_neg();
            Err(io::Error::from_raw_os_error(errno))
        }
        other => Err(io::Error::other(format!("netlink message of type {other}"))),
    }
}

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST_BYTES: u32 = 16 + 56;

/// Offset of `idiag_uid` in `struct inet_diag_msg`: after four bytes, the socket's id (48) and three numbers (12).
const UID_OFFSET: usize = 4 + 48 + 12;

/// More than one `struct inet_diag_msg` with the attributes that the kernel may add, in bytes.
const ANSWER_BYTES: usize = 1024;

/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// `linux/netlink.h`.
const NLM_F_REQUEST: u16 = 1;

/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;

/// RFC 9293.
const IPPROTO_TCP: u8 = 6;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn user_of_a_connection_is_found_over_both_families() {
        let me =
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("/proc"));
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            let own = accepted.local_addr().unwrap();
            assert!(
                AllowedUsers::new(vec![me], sock_diag().unwrap()).check(peer, own).is_ok(),
                "{address}"
            );
            let refusal = AllowedUsers::new(vec![me + 1], sock_diag().unwrap());
            let refusal = refusal.check(peer, own).unwrap_err();
            assert!(matches!(refusal, Refusal::User(user) if user == me), "{address}: {refusal}");
            drop(client);
        }
    }

    #[test]
    fn a_connection_that_does_not_exist_has_no_user() {
        let peers = AllowedUsers::new(vec![0], sock_diag().unwrap());
        let nowhere = |port| SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        assert!(matches!(peers.check(nowhere(1), nowhere(2)), Err(Refusal::Unknown(_))));
    }
}
