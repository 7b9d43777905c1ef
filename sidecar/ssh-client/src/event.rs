//! Events of a client.

use crate::{
    channel::{ChannelId, OpenFailure},
    negotiation::Negotiated,
};

/// What happened on a connection; from [`Client::poll_event`](crate::Client::poll_event).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The server's identification, such as `SSH-2.0-OpenSSH_9.6`.
    ServerIdentified(String),
    /// The server has proven that it holds this host key.
    HostKey {
        /// `SHA256:…`
        fingerprint: String,
        /// Whether the key is pinned; `false` only if [`Config::pins`](crate::Config::pins) is empty.
        pinned: bool,
    },
    /// Text for the user (RFC 4252 section 5.4): its words on one line, escaped and cut to 2,000 characters.
    Banner(String),
    /// The login succeeded. Channels requested before it are opened now.
    Authenticated(Negotiated),
    /// The channel is open.
    ChannelOpened(ChannelId),
    /// The server refused to open the channel, whose number is no longer valid.
    ChannelRefused {
        /// The channel.
        id: ChannelId,
        /// The server's reason.
        reason: OpenFailure,
        /// The server's description, escaped and cut to 200 characters.
        description: String,
    },
    /// The channel has data. Not repeated until [`Client::read`](crate::Client::read) has returned `None`.
    Readable(ChannelId),
    /// The channel accepts data again, after a [`Client::write`](crate::Client::write) that filled its queue.
    Writable(ChannelId),
    /// The server sends no more data on the channel, and all of it was read.
    Eof(ChannelId),
    /// The channel is closed on both sides, all data was read, and its number is no longer valid. Without an
    /// [`Eof`](Self::Eof) before it, the server aborted the forwarded connection.
    Closed(ChannelId),
}
