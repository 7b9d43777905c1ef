//! What a client tells its caller.

use crate::{
    channel::{ChannelId, OpenFailure},
    negotiation::Negotiated,
};

/// What the caller of a [`Client`](crate::Client) learns.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// The server has told its identification, e.g. `SSH-2.0-OpenSSH_9.6`.
    ServerIdentified(String),
    /// The server has proven to hold this host key.
    HostKey {
        /// `SHA256:…`
        fingerprint: String,
        /// Whether it was pinned; `false` only if no key was.
        pinned: bool,
    },
    /// Text that the server wants the user to read; escaped, at most 2,000 characters.
    Banner(String),
    /// Logged in. Requests for channels that were made before go out now.
    Authenticated(Negotiated),
    /// The channel is open.
    ChannelOpened(ChannelId),
    /// The server refused the channel, which is gone.
    ChannelRefused {
        /// The channel.
        id: ChannelId,
        /// The server's reason.
        reason: OpenFailure,
        /// The server's words, escaped and cut.
        description: String,
    },
    /// The channel has data: [`Client::read`](crate::Client::read) until it returns `None`. Not repeated before that.
    Readable(ChannelId),
    /// The channel takes data again, after it took less than was given or was full.
    Writable(ChannelId),
    /// The server sends no more data on the channel, and all that it sent has been read.
    Eof(ChannelId),
    /// The channel is gone, and all that the server sent has been read. Without an
    /// [`Eof`](Self::Eof) before it, the server cut the connection off.
    Closed(ChannelId),
}
