//! What a channel has seen and done.

use std::time::Duration;

/// Counters since the channel was made, over every WebSocket, and a few current figures.
///
/// Messages and bytes are those of the two streams: acknowledgements are not counted, bytes are payload.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Stream messages sent for the first time, handshake and flags included.
    pub messages_sent: u64,
    /// Their payload bytes.
    pub bytes_sent: u64,
    /// Stream messages stored, each once.
    pub messages_received: u64,
    /// Their payload bytes.
    pub bytes_received: u64,
    /// Messages sent again, each time.
    pub retransmissions: u64,
    /// Stream messages that came although they were stored.
    pub duplicates: u64,
    /// Stream messages that came before their predecessors.
    pub out_of_order: u64,
    /// Stream messages dropped, to come again, because there was no room for them or their acknowledgement.
    pub dropped_no_room: u64,
    /// Frames dropped because they were damaged, or did not match their digest.
    pub dropped_damaged: u64,
    /// Messages dropped because this client has no use for their type.
    pub dropped_unknown: u64,
    /// Stream messages whose payload type means nothing in a port session.
    pub ignored_payloads: u64,
    /// Acknowledgements of messages that were not in flight: repeated ones, and such of messages never sent.
    pub ignored_acknowledgements: u64,
    /// Acknowledgements sent.
    pub acknowledgements_sent: u64,
    /// How often the service asked to pause.
    pub pauses: u64,
    /// How often a new WebSocket took over.
    pub resumes: u64,
    /// Smoothed round-trip time, `None` before the first acknowledgement.
    pub smoothed_rtt: Option<Duration>,
    /// Smallest round-trip time on the current WebSocket.
    pub minimum_rtt: Option<Duration>,
    /// What a round trip takes at most, but for one in many: the smoothed time and four times its variation,
    /// or 10 ms where that is less.
    pub round_trip_bound: Option<Duration>,
    /// How long a new message waits before it is sent again.
    pub retransmission_timeout: Duration,
    /// How many messages may be in flight.
    pub window: usize,
    /// How many messages are in flight and count in the window.
    pub in_flight: usize,
    /// How many messages are sent again now and then without hope, and don't count in the window.
    pub set_aside: usize,
}
