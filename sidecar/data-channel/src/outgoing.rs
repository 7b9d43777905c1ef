//! The outgoing stream: splits bytes into messages, keeps to the window, and repeats what is not acknowledged
//! (docs/ssm-protocol.md, sections 8.2 and 9.2).

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::{
    congestion::{Congestion, PROVEN_MESSAGE},
    encoder::Encoder,
    in_flight::{InFlight, Sent},
    pacing::Pacing,
    payload::{Flag, PayloadType},
    rtt::{MAXIMUM_TIMEOUT, RoundTrip},
    sequence::SequenceNumber,
    upload_limits::UploadLimits,
};

/// Result of an acknowledgement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Acknowledged {
    /// A message that was in flight.
    Message,
    /// The TerminateSession flag has arrived.
    Termination,
    /// Not in flight: acknowledged before, or never sent.
    Nothing,
}

/// A message to send.
#[derive(Clone, Debug)]
pub(crate) struct Transmit {
    pub(crate) frame: Bytes,
    /// Payload bytes if this is the first sending, `None` for a retransmission.
    pub(crate) first: Option<usize>,
}

/// The outgoing stream, from `write` to the agent's acknowledgement.
#[derive(Debug)]
pub(crate) struct Outgoing {
    limit_bytes: usize,
    /// Accepted bytes that are not in a message yet.
    unsent: BytesMut,
    /// Sent before any new bytes.
    handshake_response: Option<Vec<u8>>,
    termination: Termination,
    /// `None` once the numbers are used up.
    next: Option<SequenceNumber>,
    in_flight: InFlight,
    /// Overdue and missing messages, oldest first, to be sent again.
    resend: VecDeque<SequenceNumber>,
    /// Messages before this one were checked for being missing after their first sending.
    unchecked: SequenceNumber,
    /// Messages sent again, with the moment, that were not checked since.
    sent_again: VecDeque<(SequenceNumber, Instant)>,
    pacing: Pacing,
    congestion: Congestion,
    /// Whether the rate held messages back at the last call of `poll_transmit`.
    rate_limited: bool,
    /// Whether one message may exceed the window, as a probe whether the agent still accepts messages.
    probe: bool,
    rtt: RoundTrip,
    /// Lower bound of the deadlines in flight; the message that had it may be acknowledged.
    earliest_due: Option<Instant>,
    /// Since when the clocks of messages in flight stand still.
    frozen_since: Option<Instant>,
    /// Highest acknowledged number, and the time of the last acknowledgement.
    progress: Option<(SequenceNumber, Instant)>,
}

/// State of the request to end the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Termination {
    None,
    Requested,
    /// The flag is in flight under this number.
    Sent(SequenceNumber),
    Acknowledged,
}

impl Outgoing {
    /// `limits`: what earlier channels have learned.
    pub(crate) fn new(
        message_bytes: usize,
        limit_bytes: usize,
        limits: UploadLimits,
        now: Instant,
    ) -> Self {
        Self {
            limit_bytes,
            unsent: BytesMut::new(),
            handshake_response: None,
            termination: Termination::None,
            next: Some(SequenceNumber::FIRST),
            in_flight: InFlight::new(limit_bytes.saturating_mul(ASIDE_LIMITS)),
            resend: VecDeque::new(),
            unchecked: SequenceNumber::FIRST,
            sent_again: VecDeque::new(),
            pacing: Pacing::default(),
            congestion: Congestion::new(message_bytes, limits, now),
            rate_limited: false,
            probe: false,
            rtt: RoundTrip::new(),
            earliest_due: None,
            frozen_since: None,
            progress: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn skip_to(&mut self, next: SequenceNumber) {
        assert!(self.in_flight.is_empty() && self.unsent.is_empty());
        self.next = Some(next);
    }

    pub(crate) fn respond_to_handshake(&mut self, response: Vec<u8>) {
        self.handshake_response = Some(response);
    }

    pub(crate) fn awaits_handshake_response(&self) -> bool {
        self.handshake_response.is_some()
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(crate) fn writable(&self) -> usize {
        if self.next.is_none() || self.termination != Termination::None {
            return 0;
        }
        let held = self.unsent.len() + self.in_flight.counted_bytes();
        // What waits here delays all channels of the protocol above: little more than the window can use.
        let useful = (QUEUED_WINDOWS * self.congestion.window_bytes()).max(MINIMUM_QUEUE);
        let limit = self.limit_bytes.min(useful);
        let room = limit.saturating_sub(held);
        if self.probe && self.unsent.is_empty() {
            // A probe needs bytes to send.
            let message_bytes = self.congestion.message_bytes();
            let limit = limit.saturating_add(MAXIMUM_PROBES * message_bytes);
            return room.max(limit.saturating_sub(held).min(message_bytes));
        }
        room
    }

    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(self.writable());
        self.unsent.extend_from_slice(data.get(..taken).unwrap_or_default());
        taken
    }

    /// Requests the end of the session: `write` accepts nothing from now on, and bytes for which the window
    /// has no room are dropped, since a full window must not delay the end.
    pub(crate) fn terminate(&mut self) {
        if self.termination == Termination::None {
            self.termination = Termination::Requested;
        }
    }

    /// Returns the next message to send: retransmissions first, then new ones.
    ///
    /// `held` holds everything back but the handshake response, unless the session is to end.
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        held: bool,
        encoder: &mut Encoder,
    ) -> Option<Transmit> {
        self.rate_limited = false;
        let ending = self.termination == Termination::Requested;
        if held && !ending && self.handshake_response.is_none() {
            return None;
        }
        let length = self.congestion.message_bytes().min(self.unsent.len());
        let room = self.has_room(length);
        if length > 0 && !room && mem::take(&mut self.probe) {
            // Before all that is sent again: it may be that nothing of that is ever acknowledged.
            return self.send_next(length, now, encoder);
        }
        if let Some(frame) = self.poll_resend(now) {
            return Some(Transmit { frame, first: None });
        }
        if let Some(response) = self.handshake_response.take() {
            return self.send(PayloadType::HandshakeResponse, &response, now, encoder);
        }
        // A large message that waits for the rate must not be overtaken by small ones for ever.
        let waits_for_rate = self.rate_limited && !ending;
        if length > 0 && room && !waits_for_rate && (ending || self.is_admitted(length, now)) {
            return self.send_next(length, now, encoder);
        }
        if ending {
            self.unsent.clear();
            let number = self.next?;
            self.termination = Termination::Sent(number);
            let flag = Flag::TerminateSession.to_wire().to_be_bytes();
            return self.send(PayloadType::Flag, &flag, now, encoder);
        }
        None
    }

    /// Handles the acknowledgement of a message. Its id and type are ignored, as in both official programs
    /// (docs/ssm-protocol.md, section 7).
    pub(crate) fn on_acknowledged(&mut self, number: SequenceNumber, now: Instant) -> Acknowledged {
        let Some(sent) = self.in_flight.remove(number) else { return Acknowledged::Nothing };
        if sent.timed {
            self.rtt.on_sample(now.saturating_duration_since(sent.at));
        }
        self.congestion.on_acknowledged(sent.payload_bytes, &self.rtt, now);
        let highest = self.progress.map_or(number, |(highest, _)| highest.max(number));
        self.progress = Some((highest, now));
        if self.in_flight.is_empty() {
            self.earliest_due = None;
            self.resend.clear();
            self.sent_again.clear();
        } else if sent.timed && self.frozen_since.is_none() {
            self.mark_missing(number, sent.at, now);
        }
        if self.termination == Termination::Sent(number) {
            self.termination = Termination::Acknowledged;
            return Acknowledged::Termination;
        }
        Acknowledged::Message
    }

    /// Queues overdue messages to be sent again, and sets those aside that will not be acknowledged.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.pacing.handle_timeout(now);
        self.rate_limited &= self.congestion.next_burst().is_some_and(|due| due > now);
        if self.frozen_since.is_some() || self.earliest_due.is_none_or(|due| due > now) {
            return;
        }
        let oldest = self.in_flight.oldest_counted();
        let mut newest_lost = None;
        let mut set_aside = Vec::new();
        self.earliest_due = None;
        for (number, counted, sent) in self.in_flight.iter_mut() {
            match sent.due {
                Some(due) if due <= now => (),
                Some(due) => {
                    self.earliest_due = Some(self.earliest_due.map_or(due, |other| other.min(due)));
                    continue;
                }
                None => continue,
            }
            let others_progress =
                self.progress.is_some_and(|(highest, at)| highest > number && at >= sent.at);
            sent.due = None;
            sent.timed = false;
            sent.timeouts = sent.timeouts.saturating_add(1);
            self.resend.push_back(number);
            if sent.timeouts == 1 {
                newest_lost = newest_lost.max(Some(sent.at));
            }
            if !counted || sent.timeouts < SET_ASIDE_TIMEOUTS {
                continue;
            }
            if others_progress {
                sent.timeouts = SET_ASIDE_TIMEOUTS;
                set_aside.push(number);
            } else if oldest == Some(number) {
                // No progress. One new message shows whether the agent has all of these and merely does not
                // acknowledge duplicates.
                self.probe = true;
            }
        }
        self.resend.make_contiguous().sort_unstable();
        for number in set_aside {
            self.in_flight.set_aside(number);
        }
        if let Some(sent_at) = newest_lost
            && self.congestion.on_lost(sent_at, now)
        {
            self.rtt.on_timeout();
        }
    }

    /// Queues messages to be sent again that are not acknowledged although `number`, sent later at `sent_at`,
    /// is. Acknowledgements are per message, so a gap shows at once (RACK, RFC 8985).
    ///
    /// Limited per message, since agents before 3.2.1041.0 do not acknowledge duplicates.
    fn mark_missing(&mut self, number: SequenceNumber, sent_at: Instant, now: Instant) {
        // A message sent after `limit` may merely have been overtaken.
        let Some(limit) = sent_at.checked_sub(self.rtt.allowance()) else { return };
        let known = self.resend.len();
        self.unchecked = self.unchecked.max(self.in_flight.oldest_counted().unwrap_or(number));
        while self.unchecked < number {
            if let Some((true, sent)) = self.in_flight.get_mut(self.unchecked) {
                if sent.at > limit {
                    break;
                }
                if sent.mark_missing() {
                    self.resend.push_back(self.unchecked);
                }
            }
            self.unchecked = self.unchecked.advanced_by(1);
        }
        while let Some((again, _)) = self.sent_again.pop_front_if(|(_, at)| *at <= limit) {
            if let Some((true, sent)) = self.in_flight.get_mut(again)
                && sent.at <= limit
                && sent.mark_missing()
            {
                self.resend.push_back(again);
            }
        }
        let found = self.resend.len() - known;
        if found > 0 {
            self.resend.make_contiguous().sort_unstable();
            self.congestion.on_missing(found, &self.rtt, now);
        }
    }

    /// The service asks for a pause.
    pub(crate) fn on_pause(&mut self, now: Instant) {
        self.congestion.on_pause(now);
        self.freeze(now);
    }

    /// The pause is over.
    pub(crate) fn on_pause_ended(&mut self, now: Instant) {
        self.congestion.on_pause_ended(now);
        self.thaw(now);
    }

    /// The path is lost, or the channel was closed.
    pub(crate) fn on_path_lost(&mut self, now: Instant) {
        let mut in_flight = self.in_flight.iter_mut();
        let is_large = in_flight.any(|(_, _, sent)| sent.payload_bytes > PROVEN_MESSAGE);
        drop(in_flight);
        self.congestion.on_path_lost(is_large, now);
        self.freeze(now);
    }

    /// Stops the clocks of messages in flight.
    fn freeze(&mut self, now: Instant) {
        self.frozen_since.get_or_insert(now);
        for (_, _, sent) in self.in_flight.iter_mut() {
            sent.timed = false;
        }
    }

    /// Lets the clocks continue from where they stopped.
    fn thaw(&mut self, now: Instant) {
        let Some(since) = self.frozen_since.take() else { return };
        self.earliest_due = self.in_flight.prolong(now.saturating_duration_since(since), now);
    }

    /// Queues everything unacknowledged, in order: what the old path still delivered is unknown. Without pacing, unless
    /// the old path was lost by congestion.
    pub(crate) fn on_new_path(&mut self) {
        self.congestion.on_new_path();
        self.frozen_since = None;
        self.probe = false;
        self.rtt.on_new_path();
        self.resend.clear();
        self.sent_again.clear();
        for (number, _, sent) in self.in_flight.iter_mut() {
            sent.due = None;
            sent.timed = false;
            sent.timeouts = 0;
            sent.times_missing = 0;
            self.resend.push_back(number);
        }
        self.resend.make_contiguous().sort_unstable();
        self.earliest_due = None;
        if !self.congestion.is_congested() {
            self.pacing.exempt(self.resend.len());
        }
    }

    /// When `handle_timeout` is due.
    pub(crate) fn retransmission_deadline(&self) -> Option<Instant> {
        if self.frozen_since.is_some() { None } else { self.earliest_due }
    }

    /// When the next burst may be sent.
    pub(crate) fn pacing_deadline(&self) -> Option<Instant> {
        if self.frozen_since.is_some() {
            return None;
        }
        if self.rate_limited {
            return self.congestion.next_burst();
        }
        if self.resend.is_empty() { None } else { self.pacing.next_burst() }
    }

    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    pub(crate) const fn congestion(&self) -> &Congestion {
        &self.congestion
    }

    pub(crate) const fn rtt(&self) -> &RoundTrip {
        &self.rtt
    }

    /// Whether the next message, of `length` bytes, has room in the window.
    fn has_room(&mut self, length: usize) -> bool {
        if length == 0 {
            self.congestion.on_idle();
            return true;
        }
        let (messages, bytes) = (self.in_flight.counted(), self.in_flight.counted_bytes());
        self.congestion.has_room(messages, bytes, length) && self.in_flight.span() < MAXIMUM_SPAN
    }

    fn is_admitted(&mut self, length: usize, now: Instant) -> bool {
        let admitted = self.congestion.admits(length, now);
        self.rate_limited = !admitted;
        admitted
    }

    /// Sends the first `length` bytes that were not sent before.
    fn send_next(
        &mut self,
        length: usize,
        now: Instant,
        encoder: &mut Encoder,
    ) -> Option<Transmit> {
        let mut unsent = mem::take(&mut self.unsent);
        let payload = unsent.get(..length).unwrap_or_default();
        let transmit = self.send(PayloadType::Output, payload, now, encoder);
        unsent.advance(length);
        self.unsent = unsent;
        transmit
    }

    fn send(
        &mut self,
        payload_type: PayloadType,
        payload: &[u8],
        now: Instant,
        encoder: &mut Encoder,
    ) -> Option<Transmit> {
        let number = self.next?;
        self.next = number.next();
        let frame = encoder.stream_message(number, payload_type.to_wire(), payload, now);
        let due = now + self.rtt.retransmission_timeout();
        let sent = Sent {
            frame: frame.clone(),
            payload_bytes: payload.len(),
            at: now,
            due: Some(due),
            timeouts: 0,
            times_missing: 0,
            // A message sent during a pause gives no valid sample.
            timed: self.frozen_since.is_none(),
        };
        self.in_flight.push(number, sent);
        self.note_due(due);
        self.congestion.on_sent(payload.len(), now);
        Some(Transmit { frame, first: Some(payload.len()) })
    }

    fn poll_resend(&mut self, now: Instant) -> Option<Bytes> {
        loop {
            let Some(number) = self.resend.front().copied() else {
                self.pacing.end_exemption();
                return None;
            };
            let Some((counted, sent)) = self.in_flight.get_mut(number) else {
                // Acknowledged in the meantime.
                self.resend.pop_front();
                continue;
            };
            let bytes = sent.payload_bytes;
            self.rate_limited = !self.congestion.admits(bytes, now);
            if self.rate_limited || !self.pacing.admits(self.congestion.window(), now) {
                return None;
            }
            self.congestion.on_sent(bytes, now);
            self.resend.pop_front();
            let timeout = if counted {
                self.rtt.timeout_after(sent.timeouts)
            } else {
                let more = sent.timeouts.saturating_sub(SET_ASIDE_TIMEOUTS).min(8);
                (MAXIMUM_TIMEOUT * (2 << more)).min(ASIDE_TIMEOUT)
            };
            let due = now + timeout;
            sent.at = now;
            sent.due = Some(due);
            let frame = sent.frame.clone();
            if counted && sent.timeouts == 0 {
                self.sent_again.push_back((number, now));
            }
            self.note_due(due);
            return Some(frame);
        }
    }

    fn note_due(&mut self, due: Instant) {
        self.earliest_due = Some(self.earliest_due.map_or(due, |other| other.min(due)));
    }
}

/// Time-outs after which a message is set aside, if later ones were acknowledged meanwhile. Our choice:
/// 0.2 + 0.4 + 0.8 + 1.6 + 3 s on a fast path.
const SET_ASIDE_TIMEOUTS: u32 = 5;

/// Maximum time-out of a message that was set aside; it doubles from 6 s. Agents before 3.2.1041.0 have the
/// message and will never acknowledge it; should an agent lack it, it still arrives, if late. Our choice.
const ASIDE_TIMEOUT: Duration = Duration::from_mins(1);

/// Bound of the bytes set aside, as a multiple of the bound of accepted bytes. Our choice: the windows of four
/// lost sockets whose acknowledgements were all lost.
const ASIDE_LIMITS: usize = 4;

/// Maximum number of probe messages beyond the bound of bytes. Our choice; one is enough unless its
/// acknowledgement is lost.
const MAXIMUM_PROBES: usize = 8;

/// Bytes are accepted up to this many windows, those in flight included. Our choice: the second one is sent while the
/// first is acknowledged.
const QUEUED_WINDOWS: usize = 2;

/// Bytes that are accepted however small the window is. Our choice: a few packets of the protocol above.
const MINIMUM_QUEUE: usize = 128 * 1_024;

/// Maximum distance in messages from the oldest message in flight to the newest. The agent buffers 100,000
/// messages after a gap (docs/ssm-protocol.md, section 7); with a margin.
const MAXIMUM_SPAN: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_to_the_end_of_the_wire_field() {
        let now = Instant::now();
        let mut encoder = Encoder::new(1, now, 1);
        let mut outgoing = Outgoing::new(256, 10_000, UploadLimits::default(), now);
        outgoing.next = Some(SequenceNumber::LAST);
        assert_eq!(outgoing.write(&[1; 300]), 300);
        let last = outgoing.poll_transmit(now, false, &mut encoder).unwrap();
        let last = crate::Message::decode(&last.frame).unwrap();
        assert_eq!((last.sequence_number, last.payload.len()), (i64::MAX, 256));
        assert!(outgoing.poll_transmit(now, false, &mut encoder).is_none(), "no number is left");
        assert_eq!((outgoing.writable(), outgoing.write(b"x")), (0, 0));
        let acknowledged = outgoing.on_acknowledged(SequenceNumber::LAST, now);
        assert_eq!(acknowledged, Acknowledged::Message);
    }

    #[test]
    fn a_gap_never_exceeds_the_buffer_of_the_agent() {
        let now = Instant::now();
        let mut encoder = Encoder::new(1, now, 1);
        let mut outgoing = Outgoing::new(256, 1 << 30, UploadLimits::default(), now);
        let mut sent = 0;
        let mut acknowledged = 1;
        loop {
            outgoing.write(b"x");
            if outgoing.poll_transmit(now, false, &mut encoder).is_none() {
                break;
            }
            sent += 1;
            // All but the first.
            if sent > 10 {
                outgoing.on_acknowledged(SequenceNumber::from_wire(acknowledged).unwrap(), now);
                acknowledged += 1;
            }
        }
        assert_eq!(sent, MAXIMUM_SPAN);
        outgoing.on_acknowledged(SequenceNumber::FIRST, now);
        assert!(outgoing.poll_transmit(now, false, &mut encoder).is_some());
    }
}
