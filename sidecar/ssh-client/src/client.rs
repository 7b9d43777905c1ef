//! The state machine that joins the layers.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use crate::{
    auth::{Auth, Progress},
    channel::ChannelId,
    config::Config,
    connection::Connection,
    error::{Error, reason},
    event::Event,
    keepalive::Keepalive,
    negotiation::Negotiated,
    transport::{Incoming, Transport},
    wire::{Put, message},
};

/// An SSH client. See the [crate]'s documentation for the order of calls.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    auth: Auth,
    connection: Connection,
    keepalive: Option<Keepalive>,
    keepalives: u64,
    negotiated: Option<Negotiated>,
    events: VecDeque<Event>,
    end: End,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Bytes received from the network, in whole packets.
    pub wire_received: u64,
    /// Bytes given to the network, in packets.
    pub wire_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Bytes of channel data received.
    pub data_received: u64,
    /// Bytes of channel data sent.
    pub data_sent: u64,
    /// Channels that are not yet gone.
    pub channels: usize,
    /// Key exchanges after the first one.
    pub rekeys: u64,
    /// Keepalive requests sent.
    pub keepalives: u64,
}

impl Client {
    /// Makes a client that waits for the server to speak.
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            transport: Transport::new(&config),
            connection: Connection::new(&config),
            keepalive: config
                .keepalive_interval
                .map(|interval| Keepalive::new(interval, config.keepalive_max, now)),
            keepalives: 0,
            auth: Auth::new(config.user, config.key),
            negotiated: None,
            events: VecDeque::new(),
            end: End::Running,
        }
    }

    /// Handles what has arrived, in pieces of any size. Nothing waits: all whole packets in it are
    /// handled before this returns.
    ///
    /// # Errors
    ///
    /// Whatever ends the connection; the same error comes again from later calls. After
    /// [`disconnect`](Self::disconnect) input is ignored.
    pub fn handle_input(&mut self, now: Instant, data: &[u8]) -> Result<(), Error> {
        if self.check()? {
            return Ok(());
        }
        if let Some(keepalive) = &mut self.keepalive
            && !data.is_empty()
        {
            keepalive.on_received(now);
        }
        self.transport.reader.input.extend_from_slice(data);
        self.handle_packets(now).map_err(|error| self.fail(error))
    }

    /// Does what is due at `now`.
    ///
    /// # Errors
    ///
    /// [`Error::KeepaliveTimeout`], or the error that has ended the connection before.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if self.check()? {
            return Ok(());
        }
        self.handle_deadlines(now).map_err(|error| self.fail(error))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, `None` if nothing is.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.end, End::Over { .. }) {
            return None;
        }
        let keepalive = self.keepalive.as_ref().map(Keepalive::poll_timeout);
        [keepalive, self.transport.poll_timeout(), self.auth.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Appends what is to be sent to `out`, in whole packets until about `limit` bytes are there;
    /// returns whether anything was appended.
    ///
    /// Packets are made as they are asked for, so a small `limit` lets urgent ones overtake.
    ///
    /// # Errors
    ///
    /// [`Error::Signing`] if the private key cannot sign, [`Error::Crypto`] if a primitive fails.
    /// After an error the farewell to the server, if any, is given and then nothing more.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        out: &mut BytesMut,
        limit: usize,
    ) -> Result<bool, Error> {
        let start = out.len();
        while out.len() - start < limit {
            if let End::Over { farewell, .. } = &mut self.end {
                if let Some(farewell) = farewell.take() {
                    self.transport.writer.write(out, &farewell, &[])?;
                }
                break;
            }
            match self.write_packet(now, out) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(out.len() > start)
    }

    /// Takes the next event, `None` if there is none.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Asks for a connection from the server to `host` and `port`, on behalf of `originator`. May
    /// be called at any time; before the login it waits for it. Data may be
    /// [written](Self::write) at once and is sent when the channel is open.
    ///
    /// # Errors
    ///
    /// [`Error::ChannelsExhausted`], which ends nothing else; [`Error::Ended`] or the error that
    /// ended the connection.
    pub fn open_direct_tcpip(
        &mut self,
        host: &str,
        port: u16,
        originator: SocketAddr,
    ) -> Result<ChannelId, Error> {
        if self.check()? {
            return Err(Error::Ended);
        }
        self.connection.open_direct_tcpip(host, port, originator)
    }

    /// Takes data that has arrived on a channel, `None` if there is none. It counts against the
    /// window until it is [consumed](Self::consumed).
    #[must_use]
    pub fn read(&mut self, id: ChannelId) -> Option<Bytes> {
        self.connection.read(id, &mut self.events)
    }

    /// Says that `bytes` of what was read have gone on for good; they make room in the window.
    pub fn consumed(&mut self, id: ChannelId, bytes: usize) {
        self.connection.consumed(id, bytes);
    }

    /// Queues data for a channel and returns how much of it was taken; the rest may be offered
    /// again after [`Event::Writable`]. Nothing is taken after [`finish`](Self::finish) or
    /// [`close`](Self::close), or once the server has closed.
    #[must_use]
    pub fn write(&mut self, id: ChannelId, data: &[u8]) -> usize {
        self.connection.write(id, data)
    }

    /// How much [`write`](Self::write) would take, in bytes.
    #[must_use]
    pub fn writable(&self, id: ChannelId) -> usize {
        self.connection.writable(id)
    }

    /// Ends our side of a channel, behind the data that is queued. The server may go on sending.
    pub fn finish(&mut self, id: ChannelId) {
        self.connection.finish(id);
    }

    /// Closes a channel; what is queued either way is dropped. Ends with [`Event::Closed`].
    pub fn close(&mut self, id: ChannelId) {
        self.connection.close(id, &mut self.events);
    }

    /// Ends the connection: [`poll_transmit`](Self::poll_transmit) gives the farewell and then
    /// nothing more.
    pub fn disconnect(&mut self) {
        if matches!(self.end, End::Running) {
            let farewell = self.farewell(reason::BY_APPLICATION, "disconnected by user");
            self.end = End::Over { farewell, error: None };
        }
    }

    /// Takes note that the path below carries nothing at present, so that the server's silence says nothing
    /// about the server. To be said when [`Client::poll_timeout`] is due, and before it is handled.
    pub fn excuse_silence(&mut self, now: Instant) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.excuse(now);
        }
    }

    /// Says what a round trip on the path below takes at most, its own queues apart, `None` while that is
    /// not known. To be said before input is handled: what the server may send ahead on a channel follows
    /// from it and from the channel's rate.
    pub fn set_round_trip(&mut self, round_trip: Option<Duration>) {
        self.connection.set_round_trip(round_trip);
    }

    /// How many channels carry data in bulk at this time, in either direction: these share the path's rate.
    #[must_use]
    pub fn channels_in_bulk(&self, now: Instant) -> usize {
        self.connection.in_bulk(now)
    }

    /// What has happened so far.
    pub fn statistics(&self) -> Statistics {
        let (received, sent) = (self.transport.reader.total(), self.transport.writer.total());
        let (data_received, data_sent) = self.connection.totals();
        Statistics {
            wire_received: received.bytes,
            wire_sent: sent.bytes,
            packets_received: received.packets,
            packets_sent: sent.packets,
            data_received,
            data_sent,
            channels: self.connection.len(),
            rekeys: self.transport.rekeys(),
            keepalives: self.keepalives,
        }
    }

    /// Behaves as if the login were over, without encryption.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip_login(&mut self, now: Instant) {
        self.transport.skip_exchange(now);
        self.auth.skip();
    }

    fn handle_packets(&mut self, now: Instant) -> Result<(), Error> {
        while let Some(incoming) = self.transport.next(now)? {
            match incoming {
                Incoming::Identified(name) => self.events.push_back(Event::ServerIdentified(name)),
                Incoming::HostKey { fingerprint, pinned } => {
                    self.events.push_back(Event::HostKey { fingerprint, pinned });
                }
                Incoming::Agreed(negotiated) => {
                    self.negotiated = Some(negotiated);
                    self.auth.begin();
                }
                Incoming::Message(payload) => self.handle_message(now, &payload)?,
            }
        }
        self.transport.rekey_if_due(now)
    }

    fn handle_message(&mut self, now: Instant, payload: &[u8]) -> Result<(), Error> {
        let number = payload.first().copied().unwrap_or_default();
        match number {
            message::EXT_INFO => self.auth.on_ext_info(payload),
            // RFC 4250 section 4.1.1: transport and login below 80, connection from 80 on.
            ..80 if !self.auth.is_done() => match self.auth.handle(payload)? {
                Progress::Nothing => Ok(()),
                Progress::Banner(text) => {
                    self.events.push_back(Event::Banner(text));
                    Ok(())
                }
                Progress::Authenticated => {
                    self.transport.on_authenticated();
                    self.events.extend(self.negotiated.map(Event::Authenticated));
                    Ok(())
                }
            },
            message::GLOBAL_REQUEST..=message::CHANNEL_FAILURE if self.auth.is_done() => {
                self.connection.handle(now, payload, &mut self.events)
            }
            // RFC 4253 section 11.4.
            101.. if self.auth.is_done() => {
                let mut reply = vec![message::UNIMPLEMENTED];
                reply.extend(self.transport.reader.last_sequence().to_be_bytes());
                self.connection.reply(reply)
            }
            _ => Err(Error::protocol(format!("message {number} comes at a wrong time"))),
        }
    }

    fn handle_deadlines(&mut self, now: Instant) -> Result<(), Error> {
        self.auth.handle_timeout(now);
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.handle_timeout(now)?
            && self.auth.is_done()
            && self.transport.may_send()
        {
            // Before the login, and while keys are exchanged, the server owes a message anyway,
            // and could not be asked: then only the silence is counted.
            let mut request = vec![message::GLOBAL_REQUEST];
            request.put_string(b"keepalive@openssh.com");
            request.put_bool(true);
            self.connection.reply(request)?;
            self.keepalives += 1;
        }
        self.transport.rekey_if_due(now)
    }

    /// Writes one packet; returns whether there was one to write.
    fn write_packet(&mut self, now: Instant, out: &mut BytesMut) -> Result<bool, Error> {
        if self.transport.poll_transmit(out)? {
            return Ok(true);
        }
        if !self.transport.may_send() {
            return Ok(false);
        }
        if !self.auth.is_done() {
            // Between request and answer nothing else may be sent: where compression starts would
            // depend on which of the two comes first.
            let Some(session_id) = self.transport.session_id() else { return Ok(false) };
            let Some(payload) = self.auth.poll_transmit(now, session_id)? else { return Ok(false) };
            self.transport.writer.write(out, &payload, &[])?;
            return Ok(true);
        }
        let writer = &mut self.transport.writer;
        let written = self.connection.poll_transmit(writer, out, &mut self.events)?;
        self.transport.rekey_if_due(now)?;
        Ok(written)
    }

    /// Whether the connection was ended by us.
    ///
    /// # Errors
    ///
    /// The error that ended it.
    fn check(&self) -> Result<bool, Error> {
        match &self.end {
            End::Running => Ok(false),
            End::Over { error: None, .. } => Ok(true),
            End::Over { error: Some(error), .. } => Err(error.clone()),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        let farewell = error
            .disconnect_reason()
            .and_then(|reason| self.farewell(reason, "see the client's log"));
        self.end = End::Over { farewell, error: Some(error.clone()) };
        error
    }

    fn farewell(&self, reason: u32, text: &str) -> Option<Vec<u8>> {
        if !self.transport.is_identified() {
            return None;
        }
        let mut payload = vec![message::DISCONNECT];
        payload.extend(reason.to_be_bytes());
        payload.put_string(text.as_bytes());
        payload.put_string(b"");
        Some(payload)
    }
}

/// Whether the connection is over.
#[derive(Debug)]
enum End {
    /// It is not.
    Running,
    /// It is; the farewell that is still to be sent, and the error that ended it, if one did.
    Over { farewell: Option<Vec<u8>>, error: Option<Error> },
}
