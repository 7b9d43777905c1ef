//! The Unix socket between monitor and worker: frames, with descriptors.
//!
//! A frame is a header of four bytes of length (little endian) and one byte with the number of descriptors, then the
//! message. Descriptors travel with the first byte of their frame. Each end limits the length of the frames that it
//! receives and the number of descriptors; the monitor accepts none.

pub(crate) mod message;

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream as Socket,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use zeroize::Zeroizing;

/// A message and its descriptors. The bytes are wiped when dropped.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    /// At most [`MAX_DESCRIPTORS`].
    pub(crate) descriptors: Vec<OwnedFd>,
    /// Notified when the frame is sent.
    pub(crate) sent: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
pub(crate) struct IpcSocket {
    stream: UnixStream,
    longest: usize,
    descriptors: usize,
}

/// The part of the next frame that has arrived.
#[derive(Debug, Default)]
pub(crate) struct ReceiveBuffer {
    header: [u8; HEADER_BYTES],
    bytes: Zeroizing<Vec<u8>>,
    /// Bytes so far, with the header.
    filled: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl IpcSocket {
    /// Returns the monitor's end, and the worker's end to be inherited.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = Socket::pair()?;
        Ok((Self::from_socket(ours, MAX_TO_MONITOR, 0)?, theirs.into()))
    }

    /// Returns the worker's end, which is its stdin.
    ///
    /// # Errors
    ///
    /// When stdin is no connected Unix socket.
    pub(crate) fn inherited() -> io::Result<Self> {
        let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
        socket.peer_addr()?;
        Self::from_socket(socket, MAX_TO_WORKER, MAX_DESCRIPTORS)
    }

    /// Limits received frames: `longest` is in bytes, `descriptors` is the most in one frame.
    pub(crate) fn from_socket(
        socket: Socket,
        longest: usize,
        descriptors: usize,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(socket)?, longest, descriptors })
    }

    /// Sends a frame. Not cancel-safe: a part of it may have been sent.
    ///
    /// # Errors
    ///
    /// When the other end is closed.
    pub(crate) async fn send(&self, frame: &Frame) -> io::Result<()> {
        let Frame { bytes, descriptors, .. } = frame;
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = u8::try_from(descriptors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut header = [count; HEADER_BYTES];
        for (to, from) in header.iter_mut().zip(length.to_le_bytes()) {
            *to = from;
        }
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(OwnedFd::as_fd).collect();
        let mut sent = 0;
        while sent < HEADER_BYTES + bytes.len() {
            let part = || {
                let parts = [
                    IoSlice::new(header.get(sent..).unwrap_or_default()),
                    IoSlice::new(
                        bytes.get(sent.saturating_sub(HEADER_BYTES)..).unwrap_or_default(),
                    ),
                ];
                let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if sent == 0 && !borrowed.is_empty() {
                    ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
                }
                Ok(sendmsg(&self.stream, &parts, &mut ancillary, SendFlags::empty())?)
            };
            sent += self.stream.async_io(Interest::WRITABLE, part).await?;
        }
        Ok(())
    }

    /// Sends queued frames in order. Completes only when the other end is closed or every sender is dropped. Not
    /// cancel-safe, as [`send`](Self::send).
    pub(crate) async fn send_all(&self, queue: &mut mpsc::Receiver<Frame>) -> io::Error {
        while let Some(frame) = queue.recv().await {
            if let Err(error) = self.send(&frame).await {
                return error;
            }
            if let Some(sent) = frame.sent {
                // Fails when the sender does not wait any more.
                let _waiting = sent.send(());
            }
        }
        io::ErrorKind::BrokenPipe.into()
    }

    /// Receives the next frame; `None` when the other end is closed. Cancel-safe: a partial frame stays in `buffer`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the other end closes within a frame, `InvalidData` for a frame beyond the limits.
    pub(crate) async fn receive(&self, buffer: &mut ReceiveBuffer) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = buffer.take(self.longest, self.descriptors)? {
                return Ok(Some(frame));
            }
            let began = buffer.filled > 0;
            let read =
                self.stream.async_io(Interest::READABLE, || buffer.read(&self.stream)).await?;
            if read == 0 {
                return if began { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(None) };
            }
        }
    }
}

impl ReceiveBuffer {
    /// Returns the frame once it is complete.
    fn take(&mut self, longest: usize, descriptors: usize) -> io::Result<Option<Frame>> {
        if self.descriptors.len() > descriptors {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.filled < HEADER_BYTES {
            return Ok(None);
        }
        let [length @ .., count] = self.header;
        let (length, count) = (u32::from_le_bytes(length) as usize, usize::from(count));
        if length > longest || count > descriptors {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.filled == HEADER_BYTES {
            // Allocated at full length, so that growing leaves no piece of a secret behind.
            self.bytes = Zeroizing::new(vec![0; length]);
        }
        if self.filled < HEADER_BYTES + length {
            return Ok(None);
        }
        let descriptors = self.descriptors.drain(..count.min(self.descriptors.len())).collect();
        self.filled = 0;
        Ok(Some(Frame { bytes: std::mem::take(&mut self.bytes), descriptors, sent: None }))
    }

    /// Reads no further than to the end of the header, or of the frame.
    fn read(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let missing = match self.filled.checked_sub(HEADER_BYTES) {
            None => self.header.get_mut(self.filled..),
            Some(filled) => self.bytes.get_mut(filled..),
        };
        let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(missing.unwrap_or_default())];
        let read = recvmsg(stream, &mut parts, &mut ancillary, CLOSED_BY_EXEC)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.filled += read;
        Ok(read)
    }
}

/// Most descriptors in one frame: the clients' listener, the `sock_diag` socket, the health listener.
pub(crate) const MAX_DESCRIPTORS: usize = 3;

/// Longest frame to the worker, in bytes: a config of 1 MiB (its limit), in which JSON escapes may grow.
const MAX_TO_WORKER: usize = 4 << 20;

/// Longest frame to the monitor, in bytes.
const MAX_TO_MONITOR: usize = 64 << 10;

const HEADER_BYTES: usize = 5;

/// Space for one descriptor more than allowed, so that an excess is noticed.
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1));

#[cfg(target_os = "linux")]
const CLOSED_BY_EXEC: RecvFlags = RecvFlags::CMSG_CLOEXEC;

#[cfg(not(target_os = "linux"))]
const CLOSED_BY_EXEC: RecvFlags = RecvFlags::empty();

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::fd::AsRawFd as _,
    };

    use super::*;

    fn pair(longest: usize, descriptors: usize) -> (IpcSocket, IpcSocket) {
        let (one, other) = Socket::pair().unwrap();
        let link = |socket| IpcSocket::from_socket(socket, longest, descriptors).unwrap();
        (link(one), link(other))
    }

    fn frame(bytes: &[u8]) -> Frame {
        Frame { bytes: bytes.to_vec().into(), ..Frame::default() }
    }

    #[tokio::test]
    async fn frames_arrive_whole_with_their_descriptors() {
        let (near, far) = pair(2 << 20, 1);
        let (mut written, read) = Socket::pair().unwrap();
        // More than the socket takes at once.
        let long = vec![7; 1 << 20];
        let sending = async {
            near.send(&frame(b"")).await.unwrap();
            near.send(&Frame { descriptors: vec![read.into()], ..frame(&long) }).await.unwrap();
            near.send(&frame(b"behind")).await.unwrap();
        };
        let mut buffer = ReceiveBuffer::default();
        let receiving = async {
            let mut frames = Vec::new();
            for _ in 0..3 {
                frames.push(far.receive(&mut buffer).await.unwrap().unwrap());
            }
            frames
        };
        let (mut frames, ()) = tokio::join!(receiving, sending);
        assert!(frames[0].bytes.is_empty() && frames[0].descriptors.is_empty());
        assert!(*frames[1].bytes == long);
        assert_eq!((&**frames[2].bytes, frames[2].descriptors.len()), (&b"behind"[..], 0));
        let descriptor = frames[1].descriptors.pop().unwrap();
        let flags = nix::fcntl::fcntl(&descriptor, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, nix::fcntl::FdFlag::FD_CLOEXEC.bits(), "{}", descriptor.as_raw_fd());
        written.write_all(b"x").unwrap();
        let mut byte = [0];
        Socket::from(descriptor).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        drop(near);
        assert!(far.receive(&mut buffer).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn frames_beyond_the_limits_are_refused() {
        let (near, far) = pair(8, 0);
        near.send(&frame(b"nine bytes")).await.unwrap();
        let error = far.receive(&mut ReceiveBuffer::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "too long");

        let (near, far) = pair(8, 0);
        let (descriptor, _) = Socket::pair().unwrap();
        near.send(&Frame { descriptors: vec![descriptor.into()], ..frame(b"x") }).await.unwrap();
        let error = far.receive(&mut ReceiveBuffer::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "a descriptor");

        let (near, far) = pair(8, 0);
        sendmsg(
            &near.stream,
            &[IoSlice::new(&[3, 0, 0, 0, 0, 1])],
            &mut SendAncillaryBuffer::default(),
            SendFlags::empty(),
        )
        .unwrap();
        drop(near);
        let error = far.receive(&mut ReceiveBuffer::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "a half frame");
    }
}
