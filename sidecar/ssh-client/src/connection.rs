//! The connection layer (RFC 4254): the channels, and the order in which they send.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    channel::{Channel, ChannelId, End, OpenFailure, Phase},
    config::Config,
    error::Error,
    event::Event,
    packet::PacketWriter,
    receive_window::ReceiveWindow,
    wire::{Put, Reader, message, quoted},
};

/// The channels of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// By our channel number.
    channels: BTreeMap<u32, Channel>,
    next_id: u32,
    /// Channels with a `CHANNEL_OPEN` or a window adjustment to send. These are sent before all data, so that
    /// no channel's credit waits behind the data of others.
    urgent: VecDeque<u32>,
    /// Channels with data, EOF or CLOSE to send, one packet each in turn (round-robin).
    ready: VecDeque<u32>,
    /// Answers to requests of the server, which are sent first.
    replies: VecDeque<Vec<u8>>,
    /// Largest receive window, in bytes.
    window: u32,
    round_trip: Option<Duration>,
    max_packet: u32,
    send_queue_bytes: usize,
    max_channels: usize,
    /// Bytes of channel data.
    received: u64,
    sent: u64,
}

impl Connection {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            channels: BTreeMap::new(),
            next_id: 0,
            urgent: VecDeque::new(),
            ready: VecDeque::new(),
            replies: VecDeque::new(),
            window: config.window.max(1),
            round_trip: None,
            max_packet: config.max_packet.clamp(1, MAX_PACKET),
            send_queue_bytes: config.send_queue_bytes.max(1),
            max_channels: config.max_channels,
            received: 0,
            sent: 0,
        }
    }

    pub(crate) fn open_direct_tcpip(
        &mut self,
        host: &str,
        port: u16,
        originator: SocketAddr,
    ) -> Result<ChannelId, Error> {
        if self.channels.len() >= self.max_channels {
            return Err(Error::ChannelsExhausted { limit: self.max_channels });
        }
        // Numbers are not reused until all 2^32 were used, so that a late call for an old channel does not reach a
        // new one.
        while self.channels.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);

        let window = ReceiveWindow::new(self.window);
        let mut request = vec![message::CHANNEL_OPEN];
        request.put_string(b"direct-tcpip");
        request.put_u32(id);
        request.put_u32(window.size());
        request.put_u32(self.max_packet);
        request.put_string(host.as_bytes());
        request.put_u32(u32::from(port));
        request.put_string(originator.ip().to_string().as_bytes());
        request.put_u32(u32::from(originator.port()));
        let channel = Channel::new(request, window, self.max_packet, self.send_queue_bytes);
        self.channels.insert(id, channel);
        self.schedule(id);
        Ok(ChannelId(id))
    }

    pub(crate) fn set_round_trip(&mut self, round_trip: Option<Duration>) {
        self.round_trip = round_trip;
    }

    pub(crate) fn read(&mut self, id: ChannelId, events: &mut VecDeque<Event>) -> Option<Bytes> {
        let channel = self.channels.get_mut(&id.0)?;
        let data = channel.incoming.pop();
        self.settle(id.0, events);
        data
    }

    pub(crate) fn peek(&self, id: ChannelId, limit: usize) -> Option<Vec<u8>> {
        let channel = self.channels.get(&id.0)?;
        let is_open = matches!(channel.phase, Phase::Open { .. }) && !channel.incoming.ended;
        is_open.then(|| channel.incoming.peek(limit))
    }

    pub(crate) fn consumed(&mut self, id: ChannelId, bytes: usize) {
        if let Some(channel) = self.channels.get_mut(&id.0) {
            channel.incoming.consumed(bytes);
            self.schedule(id.0);
        }
    }

    pub(crate) fn write(&mut self, id: ChannelId, data: &[u8]) -> usize {
        let Some(channel) = self.channels.get_mut(&id.0) else { return 0 };
        let taken = channel.outgoing.push(data);
        self.schedule(id.0);
        taken
    }

    pub(crate) fn writable(&self, id: ChannelId) -> usize {
        self.channels.get(&id.0).map_or(0, |channel| channel.outgoing.room())
    }

    pub(crate) fn finish(&mut self, id: ChannelId) {
        if let Some(channel) = self.channels.get_mut(&id.0)
            && channel.outgoing.end == End::Open
        {
            channel.outgoing.end = End::Wanted;
            self.schedule(id.0);
        }
    }

    pub(crate) fn close(&mut self, id: ChannelId, events: &mut VecDeque<Event>) {
        let Some(channel) = self.channels.get_mut(&id.0) else { return };
        channel.incoming.discard();
        channel.outgoing.discard();
        match &mut channel.phase {
            Phase::Unsent(_) => channel.phase = Phase::Closed,
            Phase::Opening { abandoned } => *abandoned = true,
            Phase::Open { remote } => channel.phase = Phase::CloseQueued { remote: *remote },
            Phase::CloseQueued { .. }
            | Phase::CloseReceived { .. }
            | Phase::CloseSent
            | Phase::Closed => {}
        }
        self.schedule(id.0);
        self.settle(id.0, events);
    }

    /// Handles a message of this layer.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if the message violates RFC 4254.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Error> {
        let number = payload.first().copied().unwrap_or_default();
        match number {
            message::GLOBAL_REQUEST => self.on_global_request(payload),
            // Answers to our keepalive requests: their arrival was noted with the input.
            message::REQUEST_SUCCESS | message::REQUEST_FAILURE => Ok(()),
            message::CHANNEL_OPEN => self.on_open(payload),
            message::CHANNEL_OPEN_CONFIRMATION => self.on_confirmation(payload, events),
            message::CHANNEL_OPEN_FAILURE => self.on_failure(payload, events),
            message::CHANNEL_WINDOW_ADJUST => self.on_window_adjust(payload),
            message::CHANNEL_DATA | message::CHANNEL_EXTENDED_DATA => {
                self.on_data(now, payload, events)
            }
            message::CHANNEL_EOF => self.on_eof(payload, events),
            message::CHANNEL_CLOSE => self.on_close(payload, events),
            message::CHANNEL_REQUEST => self.on_request(payload),
            _ => Err(Error::protocol(format!("unexpected message {number}"))),
        }
    }

    /// Queues an answer to the server.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if more than [`MAX_REPLIES`] answers wait to be sent.
    pub(crate) fn reply(&mut self, payload: Vec<u8>) -> Result<(), Error> {
        if self.replies.len() >= MAX_REPLIES {
            return Err(Error::protocol("too many requests while answers are not read"));
        }
        self.replies.push_back(payload);
        Ok(())
    }

    /// Writes at most one packet; returns whether it wrote one.
    pub(crate) fn poll_transmit(
        &mut self,
        writer: &mut PacketWriter,
        out: &mut BytesMut,
        events: &mut VecDeque<Event>,
    ) -> Result<bool, Error> {
        if let Some(reply) = self.replies.pop_front() {
            writer.write(out, &reply, &[])?;
            return Ok(true);
        }
        while let Some(id) = self.urgent.pop_front() {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.is_urgent = false;
            if let Phase::Unsent(request) = &mut channel.phase {
                let request = std::mem::take(request);
                channel.phase = Phase::Opening { abandoned: false };
                writer.write(out, &request, &[])?;
                return Ok(true);
            }
            if let Phase::Open { remote } = channel.phase
                && channel.incoming.adjustment_due()
            {
                let mut payload = head(message::CHANNEL_WINDOW_ADJUST, remote);
                payload.put_u32(channel.incoming.adjust());
                writer.write(out, &payload, &[])?;
                return Ok(true);
            }
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            channel.is_ready = false;
            if !channel.has_something_to_send() {
                continue;
            }
            match channel.phase {
                Phase::Open { remote } => {
                    let data = channel.outgoing.front();
                    if data.is_empty() {
                        channel.outgoing.end = End::Sent;
                        writer.write(out, &head(message::CHANNEL_EOF, remote), &[])?;
                    } else {
                        let length = data.len();
                        let mut payload = head(message::CHANNEL_DATA, remote);
                        payload.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                        writer.write(out, &payload, data)?;
                        channel.outgoing.advance(length);
                        self.sent += u64::try_from(length).unwrap_or(u64::MAX);
                        if channel.outgoing.take_writable() {
                            events.push_back(Event::Writable(ChannelId(id)));
                        }
                    }
                }
                Phase::CloseQueued { remote } => {
                    channel.phase = Phase::CloseSent;
                    writer.write(out, &head(message::CHANNEL_CLOSE, remote), &[])?;
                }
                Phase::CloseReceived { remote } => {
                    channel.phase = Phase::Closed;
                    writer.write(out, &head(message::CHANNEL_CLOSE, remote), &[])?;
                    self.settle(id, events);
                }
                Phase::Unsent(_) | Phase::Opening { .. } | Phase::CloseSent | Phase::Closed => {}
            }
            self.schedule(id);
            return Ok(true);
        }
        Ok(false)
    }

    /// Bytes of channel data, received and sent.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.received, self.sent)
    }

    /// Number of channels that carry bulk data now.
    pub(crate) fn in_bulk(&self, now: Instant) -> usize {
        self.channels.values().filter(|channel| channel.is_in_bulk(now)).count()
    }

    /// Number of channels that are not freed yet.
    pub(crate) fn len(&self) -> usize {
        self.channels.len()
    }

    fn on_global_request(&mut self, payload: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(payload, "GLOBAL_REQUEST");
        reader.u8()?;
        reader.string()?;
        // No global request is supported; for sshd's keepalive a failure is as good an answer as a success.
        // `hostkeys-00@openssh.com` wants no answer.
        if reader.bool()? {
            return self.reply(vec![message::REQUEST_FAILURE]);
        }
        // sshd's next packet, which may be the awaited one, waits until TCP has acknowledged this one (Nagle's
        // algorithm), which is delayed by 40 ms unless data is sent the other way.
        let is_opening = |channel: &Channel| matches!(channel.phase, Phase::Opening { .. });
        if self.replies.is_empty() && self.channels.values().any(is_opening) {
            self.replies.push_back(vec![message::IGNORE, 0, 0, 0, 0]);
        }
        Ok(())
    }

    /// Refuses a channel that the server wants to open: this client requests no remote forwarding.
    fn on_open(&mut self, payload: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(payload, "CHANNEL_OPEN");
        reader.u8()?;
        reader.string()?;
        let mut reply = head(message::CHANNEL_OPEN_FAILURE, reader.u32()?);
        reply.put_u32(ADMINISTRATIVELY_PROHIBITED);
        reply.put_string(b"this client accepts no channels");
        reply.put_string(b"");
        self.reply(reply)
    }

    fn on_confirmation(
        &mut self,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Error> {
        let (id, channel, mut reader) = self.addressed(payload, "CHANNEL_OPEN_CONFIRMATION")?;
        let Phase::Opening { abandoned } = channel.phase else {
            return Err(Error::protocol("confirmation for a channel that is not being opened"));
        };
        let remote = reader.u32()?;
        channel.outgoing.confirmed(reader.u32()?, reader.u32()?)?;
        if abandoned {
            channel.phase = Phase::CloseQueued { remote };
        } else {
            channel.phase = Phase::Open { remote };
            events.push_back(Event::ChannelOpened(ChannelId(id)));
        }
        self.schedule(id);
        Ok(())
    }

    fn on_failure(&mut self, payload: &[u8], events: &mut VecDeque<Event>) -> Result<(), Error> {
        let (id, channel, mut reader) = self.addressed(payload, "CHANNEL_OPEN_FAILURE")?;
        let Phase::Opening { abandoned } = channel.phase else {
            return Err(Error::protocol("refusal of a channel that is not being opened"));
        };
        let reason = OpenFailure::from_wire(reader.u32()?);
        let description = quoted(reader.string()?);
        self.channels.remove(&id);
        let id = ChannelId(id);
        events.push_back(if abandoned {
            Event::Closed(id)
        } else {
            Event::ChannelRefused { id, reason, description }
        });
        Ok(())
    }

    fn on_window_adjust(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (id, channel, mut reader) = self.established(payload, "CHANNEL_WINDOW_ADJUST")?;
        channel.outgoing.adjusted(reader.u32()?)?;
        self.schedule(id);
        Ok(())
    }

    fn on_data(
        &mut self,
        now: Instant,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Error> {
        let round_trip = self.round_trip;
        let (id, channel, mut reader) = self.established(payload, "CHANNEL_DATA")?;
        let extended = payload.first() == Some(&message::CHANNEL_EXTENDED_DATA);
        if extended {
            reader.u32()?;
        }
        let data = reader.string()?;
        channel.incoming.admit(data.len())?;
        channel.incoming.observe(data.len(), now, round_trip);
        if extended || matches!(channel.phase, Phase::CloseQueued { .. } | Phase::CloseSent) {
            // Discarded: a forwarded connection has no second stream, and a consumer that has closed reads no
            // more.
            channel.incoming.consumed(data.len());
        } else if !data.is_empty() {
            channel.incoming.push(data);
            if !std::mem::replace(&mut channel.incoming.announced, true) {
                events.push_back(Event::Readable(ChannelId(id)));
            }
        }
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.received += length;
        self.schedule(id);
        Ok(())
    }

    fn on_eof(&mut self, payload: &[u8], events: &mut VecDeque<Event>) -> Result<(), Error> {
        let (id, channel, _) = self.established(payload, "CHANNEL_EOF")?;
        channel.incoming.ended = true;
        self.settle(id, events);
        Ok(())
    }

    fn on_close(&mut self, payload: &[u8], events: &mut VecDeque<Event>) -> Result<(), Error> {
        let (id, channel, _) = self.established(payload, "CHANNEL_CLOSE")?;
        channel.phase = match channel.phase {
            Phase::Open { remote } => {
                channel.outgoing.discard();
                Phase::CloseReceived { remote }
            }
            Phase::CloseQueued { remote } => Phase::CloseReceived { remote },
            _ => Phase::Closed,
        };
        self.schedule(id);
        self.settle(id, events);
        Ok(())
    }

    fn on_request(&mut self, payload: &[u8]) -> Result<(), Error> {
        let (_, channel, mut reader) = self.established(payload, "CHANNEL_REQUEST")?;
        reader.string()?;
        let wants_reply = reader.bool()?;
        match channel.remote() {
            Some(remote) if wants_reply => self.reply(head(message::CHANNEL_FAILURE, remote)),
            _ => Ok(()),
        }
    }

    /// Finds the channel that a message is for.
    fn addressed<'a>(
        &mut self,
        payload: &'a [u8],
        message: &'static str,
    ) -> Result<(u32, &mut Channel, Reader<'a>), Error> {
        let mut reader = Reader::new(payload, message);
        reader.u8()?;
        let id = reader.u32()?;
        match self.channels.get_mut(&id) {
            Some(channel) => Ok((id, channel, reader)),
            None => Err(Error::protocol(format!("{message} for channel {id}, which is not open"))),
        }
    }

    /// Finds the channel that a message is for, which must be open in the server's direction.
    fn established<'a>(
        &mut self,
        payload: &'a [u8],
        message: &'static str,
    ) -> Result<(u32, &mut Channel, Reader<'a>), Error> {
        let (id, channel, reader) = self.addressed(payload, message)?;
        match channel.phase {
            Phase::Open { .. } | Phase::CloseQueued { .. } | Phase::CloseSent => {
                Ok((id, channel, reader))
            }
            _ => Err(Error::protocol(format!("{message} for channel {id}, which is not open"))),
        }
    }

    /// Puts a channel into the send queues that it belongs to.
    fn schedule(&mut self, id: u32) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let urgent = match channel.phase {
            Phase::Unsent(_) => true,
            Phase::Open { .. } => channel.incoming.adjustment_due(),
            _ => false,
        };
        if urgent && !channel.is_urgent {
            channel.is_urgent = true;
            self.urgent.push_back(id);
        }
        if channel.has_something_to_send() && !channel.is_ready {
            channel.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Emits the events for EOF and close once all data before them was read, and frees a channel that is
    /// closed on both sides.
    fn settle(&mut self, id: u32, events: &mut VecDeque<Event>) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if !channel.incoming.is_empty() {
            return;
        }
        channel.incoming.announced = false;
        let abandoned = matches!(channel.phase, Phase::CloseQueued { .. } | Phase::CloseSent);
        if channel.incoming.ended
            && !abandoned
            && !std::mem::replace(&mut channel.incoming.end_announced, true)
        {
            events.push_back(Event::Eof(ChannelId(id)));
        }
        if matches!(channel.phase, Phase::Closed) {
            self.channels.remove(&id);
            events.push_back(Event::Closed(ChannelId(id)));
        }
    }
}

/// Starts a message to the server's channel `remote`.
fn head(number: u8, remote: u32) -> Vec<u8> {
    let mut payload = Vec::with_capacity(16);
    payload.put_u8(number);
    payload.put_u32(remote);
    payload
}

/// Most answers that wait to be sent. A limit of ours: sshd sends one request at a time, so only a flood
/// reaches it.
const MAX_REPLIES: usize = 1024;

/// `SSH_OPEN_ADMINISTRATIVELY_PROHIBITED` (RFC 4254 section 5.1).
const ADMINISTRATIVELY_PROHIBITED: u32 = 1;

/// Largest value of [`Config::max_packet`], in bytes: half of the largest packet that is accepted.
const MAX_PACKET: u32 = 128 * 1024;
