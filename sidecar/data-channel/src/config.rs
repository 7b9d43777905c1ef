//! What a channel is told once.

/// Sizes and names that a channel keeps to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Version reported to service and agent, four numbers; not below the smallest that AWS supports.
    pub client_version: String,
    /// Payload bytes of each outgoing message, 256 to 65,536; values outside are moved to the bound.
    pub message_bytes: usize,
    /// Bound of the reorder buffer, and of what waits to be read, each in bytes of whole frames.
    pub incoming_bytes: usize,
    /// The same in messages.
    pub incoming_messages: usize,
    /// Bound of what [`crate::DataChannel::write`] accepts and the agent has not acknowledged, in payload bytes.
    ///
    /// Beside it the channel keeps at most four times as much, and 8,192 messages, of what was set aside: what
    /// an agent before 3.2.1041.0 has in all likelihood and will never acknowledge. Messages that find out
    /// whether the agent still takes any, when it is silent, may exceed the bound by eight. Each message has a
    /// header of 120 bytes, which is not counted.
    pub outgoing_bytes: usize,
}

impl Default for Config {
    /// Version 1.2.764.0, 1,024 bytes a message as the official client sends, 8 MiB or 16,384 messages
    /// incoming, 2 MiB outgoing.
    fn default() -> Self {
        Self {
            client_version: "1.2.764.0".to_owned(),
            message_bytes: 1_024,
            incoming_bytes: 8 << 20,
            incoming_messages: 16_384,
            outgoing_bytes: 2 << 20,
        }
    }
}
