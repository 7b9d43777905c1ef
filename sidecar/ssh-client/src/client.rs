//! The client: joins the layers into one state machine.

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

/// An SSH client. The [crate]'s documentation gives the order of calls.
#[derive(Debug)]
pub struct Client {
    transport: Transport,
    auth: Auth,
    connection: Connection,
    keepalive: Option<Keepalive>,
    keepalives: u64,
    negotiated: Option<Negotiated>,
    events: VecDeque<Event>,
    state: State,
}

/// Counters since the start of the connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Bytes received from the network, in whole packets.
    pub wire_received: u64,
    /// Bytes sent to the network, in packets.
    pub wire_sent: u64,
    /// Packets received.
    pub packets_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Bytes of channel data received.
    pub data_received: u64,
    /// Bytes of channel data sent.
    pub data_sent: u64,
    /// Channels that are open or being opened or closed.
    pub channels: usize,
    /// Key exchanges after the first one.
    pub rekeys: u64,
    /// Keepalive requests sent.
    pub keepalives: u64,
}

impl Client {
    /// Makes a client that waits for the server's identification.
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
            state: State::Running,
        }
    }

    /// Handles input, in pieces of any size. All whole packets in it are handled before this returns. After
    /// [`disconnect`](Self::disconnect) input is ignored.
    ///
    /// # Errors
    ///
    /// The error that ended the connection; later calls return the same one.
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

    /// Handles the deadlines that have passed at `now`.
    ///
    /// # Errors
    ///
    /// [`Error::KeepaliveTimeout`], or the error that ended the connection before.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if self.check()? {
            return Ok(());
        }
        self.handle_deadlines(now).map_err(|error| self.fail(error))
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, `None` if no deadline is set.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if matches!(self.state, State::Ended { .. }) {
            return None;
        }
        let keepalive = self.keepalive.as_ref().map(Keepalive::poll_timeout);
        [keepalive, self.transport.poll_timeout(), self.auth.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Appends whole packets to `out` until at least `limit` bytes were appended or nothing more is to be sent;
    /// returns whether anything was appended.
    ///
    /// Packets are made when this is called, so with a small `limit` urgent ones overtake data.
    ///
    /// # Errors
    ///
    /// [`Error::Signing`] if the private key cannot sign, [`Error::Crypto`] if encryption or compression fails.
    /// After any error, later calls append the DISCONNECT message, if one is due, and then nothing more.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        out: &mut BytesMut,
        limit: usize,
    ) -> Result<bool, Error> {
        let start = out.len();
        while out.len() - start < limit {
            if let State::Ended { disconnect, .. } = &mut self.state {
                if let Some(disconnect) = disconnect.take() {
                    self.transport.writer.write(out, &disconnect, &[])?;
                }
                break;
            }
            match self.write_packet(now, out) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(self.fail(error)),
            }
        }
        let has_sent = out.len() > start;
        if let Some(keepalive) = &mut self.keepalive
            && has_sent
            && self.auth.is_done()
        {
            keepalive.on_sent(now);
        }
        Ok(has_sent)
    }

    /// Removes the next event, `None` if there is none.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Opens a channel of type `direct-tcpip` (RFC 4254 section 7.2): the server connects to `host` and `port` on
    /// behalf of `originator`. May be called before the login, which the request then waits for. Data may be
    /// [written](Self::write) at once; it is sent when the channel is open.
    ///
    /// # Errors
    ///
    /// [`Error::ChannelsExhausted`], after which the connection continues; [`Error::Ended`] or the error that
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

    /// Removes data that has arrived on a channel, `None` if there is none. It counts against the channel's window
    /// until it is [consumed](Self::consumed).
    #[must_use]
    pub fn read(&mut self, id: ChannelId) -> Option<Bytes> {
        self.connection.read(id, &mut self.events)
    }

    /// Copies data that has arrived on a channel and was not read, at most `limit` bytes, without removing it; `None`
    /// unless both directions are open. The server's EOF and CLOSE count as soon as they have arrived, whereas
    /// [`Event::Eof`] and [`Event::Closed`] wait until the data before them is read.
    #[must_use]
    pub fn peek(&self, id: ChannelId, limit: usize) -> Option<Vec<u8>> {
        self.connection.peek(id, limit)
    }

    /// Reports that `bytes` of the data that was read have been passed on; only now does the server get
    /// window credit for them.
    pub fn consumed(&mut self, id: ChannelId, bytes: usize) {
        self.connection.consumed(id, bytes);
    }

    /// Queues data for a channel and returns how many bytes were queued; the rest may be written again after
    /// [`Event::Writable`]. Returns 0 after [`finish`](Self::finish) or [`close`](Self::close), and once the
    /// server has closed the channel.
    #[must_use]
    pub fn write(&mut self, id: ChannelId, data: &[u8]) -> usize {
        self.connection.write(id, data)
    }

    /// How many bytes [`write`](Self::write) would queue.
    #[must_use]
    pub fn writable(&self, id: ChannelId) -> usize {
        self.connection.writable(id)
    }

    /// Sends EOF after the queued data of a channel. The server may continue to send.
    pub fn finish(&mut self, id: ChannelId) {
        self.connection.finish(id);
    }

    /// Closes a channel and drops the queued data of both directions. [`Event::Closed`] follows.
    pub fn close(&mut self, id: ChannelId) {
        self.connection.close(id, &mut self.events);
    }

    /// Ends the connection: [`poll_transmit`](Self::poll_transmit) gives the DISCONNECT message and then
    /// nothing more.
    pub fn disconnect(&mut self) {
        if matches!(self.state, State::Running) {
            let disconnect =
                self.disconnect_payload(reason::BY_APPLICATION, "disconnected by user");
            self.state = State::Ended { disconnect, error: None };
        }
    }

    /// Since when a keepalive request is unanswered and nothing else was received; `None` if none is.
    #[must_use]
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.keepalive.as_ref()?.unanswered_since()
    }

    /// Restarts the keepalive interval because the path below carries nothing at present, so the server's
    /// silence does not mean that it is gone. Call it when [`Client::poll_timeout`] is due, before
    /// [`Client::handle_timeout`].
    pub fn excuse_silence(&mut self, now: Instant) {
        if let Some(keepalive) = &mut self.keepalive {
            keepalive.excuse(now);
        }
    }

    /// Sets the longest round trip of the path below without its own queues; `None`, the default, while it is
    /// unknown. Call it before input is handled: a channel's window follows from it and from the channel's
    /// rate.
    pub fn set_round_trip(&mut self, round_trip: Option<Duration>) {
        self.connection.set_round_trip(round_trip);
    }

    /// What the server has sent ahead of its identification, while that is awaited: its words on one line, escaped
    /// and cut to 200 characters. A server that refuses to talk may say why, and then hang up.
    #[must_use]
    pub fn preamble(&self) -> Option<String> {
        self.transport.preamble()
    }

    /// Number of channels that carry bulk data now, in either direction: these share the path's rate.
    #[must_use]
    pub fn channels_in_bulk(&self, now: Instant) -> usize {
        self.connection.in_bulk(now)
    }

    /// Counters since the start of the connection.
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

    /// Enters the state after the login, without encryption.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn skip_login(&mut self, now: Instant) {
        self.transport.skip_exchange(now);
        self.auth.skip();
    }

    fn handle_packets(&mut self, now: Instant) -> Result<(), Error> {
        let answer = |auth: &Auth, error| match error {
            Error::Disconnected { reason, text } => auth.on_disconnected(reason, text),
            error => error,
        };
        while let Some(incoming) =
            self.transport.next(now).map_err(|error| answer(&self.auth, error))?
        {
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
            // RFC 4250 section 4.1.1: transport and authentication below 80, connection from 80 on.
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
            // RFC 4253 section 11.4: unknown messages are answered with UNIMPLEMENTED.
            101.. if self.auth.is_done() => {
                let mut reply = vec![message::UNIMPLEMENTED];
                reply.extend(self.transport.reader.last_sequence().to_be_bytes());
                self.connection.reply(reply)
            }
            _ => Err(Error::protocol(format!("message {number} is not allowed at this time"))),
        }
    }

    fn handle_deadlines(&mut self, now: Instant) -> Result<(), Error> {
        self.auth.handle_timeout(now);
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.handle_timeout(now)?
            && self.auth.is_done()
            && self.transport.may_send()
        {
            // Before the login and during a key exchange no request can be sent, but the server owes a
            // message anyway: then the interval counts as an unanswered request without one.
            let mut request = vec![message::GLOBAL_REQUEST];
            request.put_string(b"keepalive@openssh.com");
            request.put_bool(true);
            self.connection.reply(request)?;
            self.keepalives += 1;
        }
        self.transport.rekey_if_due(now)
    }

    /// Writes at most one packet; returns whether it wrote one.
    fn write_packet(&mut self, now: Instant, out: &mut BytesMut) -> Result<bool, Error> {
        if self.transport.poll_transmit(out)? {
            return Ok(true);
        }
        if !self.transport.may_send() {
            return Ok(false);
        }
        if !self.auth.is_done() {
            // Nothing else is sent between the authentication request and its answer: the server could not
            // know whether it was sent before compression started or after.
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

    /// Whether the connection was ended by [`disconnect`](Self::disconnect).
    ///
    /// # Errors
    ///
    /// The error that ended the connection.
    fn check(&self) -> Result<bool, Error> {
        match &self.state {
            State::Running => Ok(false),
            State::Ended { error: None, .. } => Ok(true),
            State::Ended { error: Some(error), .. } => Err(error.clone()),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        let disconnect = error
            .disconnect_reason()
            .and_then(|reason| self.disconnect_payload(reason, "see the client's log"));
        self.state = State::Ended { disconnect, error: Some(error.clone()) };
        error
    }

    /// The payload of DISCONNECT (RFC 4253 section 11.1); `None` before the client's identification was sent.
    fn disconnect_payload(&self, reason: u32, text: &str) -> Option<Vec<u8>> {
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

#[derive(Debug)]
enum State {
    Running,
    /// Ended by an error, or by the caller. `disconnect` is the payload that must still be sent.
    Ended {
        disconnect: Option<Vec<u8>>,
        error: Option<Error>,
    },
}
