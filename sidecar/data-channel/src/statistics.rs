//! Counters of a channel.

use std::time::Duration;

/// Counters since the channel was created, over every WebSocket, and a few current values.
///
/// Messages and bytes are those of both streams: acknowledgements are not counted, bytes are payload.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Stream messages sent for the first time, handshake and flags included.
    pub messages_sent: u64,
    /// Payload bytes of `messages_sent`.
    pub bytes_sent: u64,
    /// Stream messages stored, each once.
    pub messages_received: u64,
    /// Payload bytes of `messages_received`.
    pub bytes_received: u64,
    /// Retransmissions, each counted.
    pub retransmissions: u64,
    /// Stream messages received again.
    pub duplicates: u64,
    /// Stream messages received before their predecessors.
    pub out_of_order: u64,
    /// Stream messages dropped without acknowledgement, because there was no room for them or for it.
    pub dropped_no_room: u64,
    /// Frames dropped because they were damaged or did not match their digest.
    pub dropped_damaged: u64,
    /// Messages dropped because of their type: unknown, or sent by clients only.
    pub dropped_unknown: u64,
    /// Stream messages ignored because their payload type has no use in a port session.
    pub ignored_payloads: u64,
    /// Acknowledgements of messages not in flight: repeated ones, and those of messages never sent.
    pub ignored_acknowledgements: u64,
    /// Acknowledgements sent.
    pub acknowledgements_sent: u64,
    /// Pauses requested by the service.
    pub pauses: u64,
    /// Resumes on a new WebSocket.
    pub resumes: u64,
    /// Smoothed round-trip time; `None` before the first acknowledgement.
    pub smoothed_rtt: Option<Duration>,
    /// Smallest round-trip time on the current WebSocket.
    pub minimum_rtt: Option<Duration>,
    /// Round-trip time that few exceed: the smoothed time plus four times its variation, or plus 10 ms where
    /// that is more.
    pub round_trip_bound: Option<Duration>,
    /// Time after which a new message is sent again.
    pub retransmission_timeout: Duration,
    /// Maximum number of messages in flight.
    pub window: usize,
    /// Messages in flight that count in the window.
    pub in_flight: usize,
    /// Payload bytes of `in_flight`.
    pub bytes_in_flight: u64,
    /// Messages in flight that are set aside: probably received, sent again at long intervals, and not counted
    /// in the window (docs/ssm-protocol.md, section 7).
    pub set_aside: usize,
}
