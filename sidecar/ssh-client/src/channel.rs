//! One channel (RFC 4254 section 5): its state, windows and buffers.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use crate::{error::Error, receive_window::ReceiveWindow};

/// Identifies a channel. Not used again by the same [`Client`](crate::Client).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChannelId(pub(crate) u32);

impl fmt::Display for ChannelId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Why a server refused to open a channel (RFC 4254 section 5.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpenFailure {
    /// Its configuration forbids it: `AllowTcpForwarding`, `PermitOpen` or the key's options.
    AdministrativelyProhibited,
    /// The server could not connect to the target.
    ConnectFailed,
    /// The server does not know this type of channel.
    UnknownChannelType,
    /// The server lacks resources.
    ResourceShortage,
    /// Another reason code.
    Other(u32),
}

impl OpenFailure {
    pub(crate) fn from_wire(code: u32) -> Self {
        match code {
            1 => Self::AdministrativelyProhibited,
            2 => Self::ConnectFailed,
            3 => Self::UnknownChannelType,
            4 => Self::ResourceShortage,
            other => Self::Other(other),
        }
    }
}

/// State of a channel. `remote` is the server's channel number.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The payload of `CHANNEL_OPEN` was not sent yet.
    Unsent(Vec<u8>),
    /// Waiting for the server's answer; `abandoned` if the consumer closed the channel meanwhile.
    Opening {
        abandoned: bool,
    },
    Open {
        remote: u32,
    },
    /// The consumer closed the channel; CLOSE must be sent, and the server's has not arrived.
    CloseQueued {
        remote: u32,
    },
    /// The server's CLOSE has arrived; ours must be sent.
    CloseReceived {
        remote: u32,
    },
    /// CLOSE was sent; waiting for the server's.
    CloseSent,
    /// CLOSE was sent and received. Unread data is kept until it is read.
    Closed,
}

/// One channel.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) phase: Phase,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    /// In the queue of channels that have a `CHANNEL_OPEN` or a window adjustment to send.
    pub(crate) is_urgent: bool,
    /// In the queue of channels that have data, an EOF or a CLOSE to send.
    pub(crate) is_ready: bool,
}

impl Channel {
    pub(crate) fn new(
        request: Vec<u8>,
        window: ReceiveWindow,
        max_packet: u32,
        queue: usize,
    ) -> Self {
        Self {
            phase: Phase::Unsent(request),
            incoming: Incoming::new(window, max_packet),
            outgoing: Outgoing::new(queue),
            is_urgent: false,
            is_ready: false,
        }
    }

    /// The server's channel number, while messages may be sent on the channel.
    pub(crate) fn remote(&self) -> Option<u32> {
        match self.phase {
            Phase::Open { remote }
            | Phase::CloseQueued { remote }
            | Phase::CloseReceived { remote } => Some(remote),
            _ => None,
        }
    }

    /// Whether it carries bulk data now, in either direction.
    pub(crate) fn is_in_bulk(&self, now: Instant) -> bool {
        self.remote().is_some()
            && (self.incoming.window.is_in_bulk(now) || self.outgoing.is_in_bulk())
    }

    /// Whether data, EOF or CLOSE can be sent now.
    pub(crate) fn has_something_to_send(&self) -> bool {
        match self.phase {
            Phase::Open { .. } => {
                self.outgoing.sendable() > 0
                    || self.outgoing.end == End::Wanted && self.outgoing.is_drained()
            }
            Phase::CloseQueued { .. } | Phase::CloseReceived { .. } => true,
            _ => false,
        }
    }
}

/// The receiving side.
#[derive(Debug)]
pub(crate) struct Incoming {
    window: ReceiveWindow,
    max_packet: u32,
    /// Bytes that the server may still send.
    remaining: u32,
    /// Bytes that have arrived and were not consumed.
    unconsumed: u32,
    /// Bytes consumed since credit was last given.
    consumed: u32,
    /// Stored data: whole chunks, then the one that is being filled.
    full: VecDeque<Bytes>,
    tail: BytesMut,
    /// The server's EOF has arrived.
    pub(crate) ended: bool,
    /// `Event::Readable` was emitted since the consumer last emptied the buffer.
    pub(crate) announced: bool,
    /// `Event::Eof` was emitted.
    pub(crate) end_announced: bool,
}

impl Incoming {
    fn new(window: ReceiveWindow, max_packet: u32) -> Self {
        Self {
            max_packet,
            remaining: window.size(),
            window,
            unconsumed: 0,
            consumed: 0,
            full: VecDeque::new(),
            tail: BytesMut::new(),
            ended: false,
            announced: false,
            end_announced: false,
        }
    }

    /// Checks that the server may send `length` bytes, and counts them.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if not.
    pub(crate) fn admit(&mut self, length: usize) -> Result<(), Error> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if self.ended {
            return Err(Error::protocol("data after the channel's EOF"));
        }
        if length > self.max_packet {
            let limit = self.max_packet;
            return Err(Error::protocol(format!(
                "{length} bytes of data in one packet, {limit} are allowed"
            )));
        }
        self.remaining = self.remaining.checked_sub(length).ok_or_else(|| {
            Error::protocol(format!("{length} bytes of data in a window of {}", self.remaining))
        })?;
        self.unconsumed += length;
        Ok(())
    }

    /// Stores data that was [admitted](Self::admit).
    ///
    /// Copies it: if the packet's memory was kept instead, a channel with unread data would keep whole input
    /// buffers alive, and its window would not bound its memory.
    pub(crate) fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let room = self.tail.capacity() - self.tail.len();
            if room == 0 {
                if !self.tail.is_empty() {
                    self.full.push_back(self.tail.split().freeze());
                }
                self.tail.reserve(data.len().max(CHUNK));
                continue;
            }
            let (now, later) = data.split_at(room.min(data.len()));
            self.tail.extend_from_slice(now);
            data = later;
        }
    }

    /// Removes stored data, `None` if there is none.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let tail =
            |tail: &mut BytesMut| Some(tail.split().freeze()).filter(|data| !data.is_empty());
        self.full.pop_front().or_else(|| tail(&mut self.tail))
    }

    /// Copies stored data, at most `limit` bytes, and leaves it there.
    pub(crate) fn peek(&self, limit: usize) -> Vec<u8> {
        let chunks = self.full.iter().map(|chunk| &**chunk).chain([&*self.tail]);
        chunks.flatten().take(limit).copied().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.full.is_empty() && self.tail.is_empty()
    }

    /// Drops the stored data.
    pub(crate) fn discard(&mut self) {
        self.full.clear();
        self.tail = BytesMut::new();
    }

    /// Notes that the consumer has consumed `bytes`, at most all that has arrived.
    pub(crate) fn consumed(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.unconsumed);
        self.unconsumed -= bytes;
        self.consumed += bytes;
    }

    /// Adapts the size of the window to data that has arrived.
    pub(crate) fn observe(&mut self, length: usize, now: Instant, round_trip: Option<Duration>) {
        self.window.on_data(u32::try_from(length).unwrap_or(u32::MAX), now, round_trip);
    }

    /// Whether a window adjustment should be sent: not for every byte, but before the server must wait.
    pub(crate) fn adjustment_due(&self) -> bool {
        let credit = self.credit();
        let nearly_shut = self.remaining < self.max_packet && credit >= self.max_packet;
        credit > 0 && !self.ended && (credit >= self.window.min_credit() || nearly_shut)
    }

    /// Gives the credit that is due and returns it, in bytes.
    pub(crate) fn adjust(&mut self) -> u32 {
        let credit = self.credit();
        self.remaining += credit;
        self.consumed = 0;
        credit
    }

    /// Credit in bytes: what was consumed, plus the growth of the window. If the window has shrunk, at least
    /// half of what was consumed: without any credit for a while the server would not send evenly.
    fn credit(&self) -> u32 {
        let room =
            self.window.size().saturating_sub(self.remaining).saturating_sub(self.unconsumed);
        room.max(self.consumed / 2)
    }
}

/// The sending side.
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: BytesMut,
    limit: usize,
    /// Bytes that the server still allows.
    window: u32,
    max_packet: u32,
    pub(crate) end: End,
    /// The queue was full for the consumer, so `Event::Writable` is due once it has space.
    blocked: bool,
}

/// State of the end of our data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// More data may be queued.
    Open,
    /// EOF must be sent after the queued data.
    Wanted,
    /// EOF was sent, or no more data can be.
    Sent,
}

impl Outgoing {
    fn new(limit: usize) -> Self {
        Self {
            queue: BytesMut::new(),
            limit,
            window: 0,
            max_packet: 0,
            end: End::Open,
            blocked: false,
        }
    }

    /// Applies the server's `CHANNEL_OPEN_CONFIRMATION`.
    pub(crate) fn confirmed(&mut self, window: u32, max_packet: u32) -> Result<(), Error> {
        if max_packet == 0 {
            return Err(Error::protocol("channel with a maximum packet size of 0"));
        }
        (self.window, self.max_packet) = (window, max_packet);
        Ok(())
    }

    /// Applies the server's window adjustment.
    pub(crate) fn adjusted(&mut self, bytes: u32) -> Result<(), Error> {
        let window = self.window.checked_add(bytes);
        self.window = window.ok_or_else(|| Error::protocol("window grows beyond 2^32 - 1"))?;
        Ok(())
    }

    /// Space in the queue, in bytes.
    pub(crate) fn room(&self) -> usize {
        if self.end == End::Open { self.limit.saturating_sub(self.queue.len()) } else { 0 }
    }

    /// Queues as much of `data` as there is space for; returns how much, in bytes.
    pub(crate) fn push(&mut self, data: &[u8]) -> usize {
        let taken = self.room().min(data.len());
        self.queue.extend_from_slice(data.get(..taken).unwrap_or_default());
        self.blocked |= taken < data.len() || self.room() == 0;
        taken
    }

    /// Drops the queued data and accepts no more.
    pub(crate) fn discard(&mut self) {
        self.queue = BytesMut::new();
        self.end = End::Sent;
        self.blocked = false;
    }

    /// Number of bytes that the next packet can carry.
    pub(crate) fn sendable(&self) -> usize {
        let allowed = self.window.min(self.max_packet).min(MAX_DATA);
        self.queue.len().min(usize::try_from(allowed).unwrap_or(usize::MAX))
    }

    /// The bytes for the next packet; [`advance`](Self::advance) removes them.
    pub(crate) fn front(&self) -> &[u8] {
        self.queue.get(..self.sendable()).unwrap_or_default()
    }

    pub(crate) fn advance(&mut self, bytes: usize) {
        bytes::Buf::advance(&mut self.queue, bytes);
        self.window = self.window.saturating_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.queue.is_empty() && self.queue.capacity() > MAX_IDLE {
            self.queue = BytesMut::new();
        }
    }

    /// Whether more is queued than a packet carries, and the server's window is open.
    fn is_in_bulk(&self) -> bool {
        self.queue.len() > self.sendable() && self.window > 0
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns `true` once when half of the queue is free again after it was full for the consumer.
    pub(crate) fn take_writable(&mut self) -> bool {
        let writable =
            self.blocked && self.end == End::Open && self.room() >= self.limit.div_ceil(2);
        self.blocked &= !writable;
        writable
    }
}

/// Least allocation for incoming data, in bytes.
const CHUNK: usize = 16 * 1024;

/// Most data in an outgoing packet, in bytes. A limit of ours: on a slow path larger packets would delay other
/// channels.
const MAX_DATA: u32 = 16 * 1024;

/// Most memory that an empty queue keeps, in bytes.
const MAX_IDLE: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_comes_back_for_what_was_consumed_only() {
        let mut incoming = Incoming::new(ReceiveWindow::new(1000), 400);
        incoming.admit(400).unwrap();
        incoming.push(&[1; 400]);
        assert!(!incoming.adjustment_due(), "nothing was consumed");
        incoming.consumed(300);
        assert!(!incoming.adjustment_due(), "less than half of the window");
        incoming.admit(400).unwrap();
        incoming.consumed(100);
        assert!(incoming.adjustment_due(), "the window is nearly shut");
        assert_eq!(incoming.adjust(), 400);
        assert_eq!(incoming.remaining, 600);
        incoming.consumed(usize::MAX);
        assert_eq!(incoming.adjust(), 400, "never more than has arrived");
        assert_eq!(incoming.remaining, 1000);
    }

    #[test]
    fn data_beyond_window_packet_or_end_is_refused() {
        let refused = |incoming: &mut Incoming, length| incoming.admit(length).is_err();
        let mut incoming = Incoming::new(ReceiveWindow::new(1000), 600);
        assert!(refused(&mut incoming, 601), "packet");
        incoming.admit(600).unwrap();
        assert!(refused(&mut incoming, 401), "window");
        incoming.admit(400).unwrap();
        incoming.ended = true;
        assert!(refused(&mut incoming, 0), "end");
    }

    #[test]
    fn stored_data_comes_out_in_order_and_takes_no_more_memory_than_itself() {
        let mut incoming = Incoming::new(ReceiveWindow::new(1 << 20), 1 << 15);
        let mut sent = Vec::new();
        for size in [1, 3, 20_000, 7, 32_768, 16_384, 1] {
            let data: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
            incoming.push(&data);
            sent.extend_from_slice(&data);
        }
        let held: usize = incoming.full.iter().map(Bytes::len).sum();
        assert!(held + incoming.tail.capacity() <= sent.len() + 32_768 + CHUNK);
        let mut got = Vec::new();
        while let Some(data) = incoming.pop() {
            got.extend_from_slice(&data);
        }
        assert_eq!(got, sent);
        assert!(incoming.is_empty());
    }

    #[test]
    fn more_than_a_packet_in_the_queue_is_bulk_unless_the_window_is_shut() {
        let mut outgoing = Outgoing::new(1_000);
        outgoing.push(&[1; 200]);
        assert!(!outgoing.is_in_bulk(), "not open yet");
        outgoing.confirmed(150, 100).unwrap();
        assert!(outgoing.is_in_bulk());
        outgoing.advance(100);
        assert!(outgoing.is_in_bulk(), "50 bytes are allowed");
        outgoing.advance(50);
        assert!(!outgoing.is_in_bulk());
    }

    #[test]
    fn sending_respects_queue_window_and_packet() {
        let mut outgoing = Outgoing::new(100);
        assert_eq!(outgoing.push(&[1; 150]), 100, "queue");
        assert_eq!(outgoing.sendable(), 0, "not open yet");
        outgoing.confirmed(70, 40).unwrap();
        assert_eq!(outgoing.front().len(), 40, "packet");
        outgoing.advance(40);
        assert_eq!(outgoing.front().len(), 30, "window");
        assert!(!outgoing.take_writable(), "less than half of the queue");
        outgoing.advance(30);
        assert!(outgoing.take_writable());
        assert!(!outgoing.take_writable(), "once");
        assert!(outgoing.adjusted(u32::MAX).is_ok());
        assert!(outgoing.adjusted(1).is_err(), "overflow");
    }
}
