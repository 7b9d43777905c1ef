//! Settings of a channel.

use crate::upload_limits::UploadLimits;

/// Settings of a channel, fixed for its life.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Version reported to service and agent, four numbers: at least 1.2.764.0, the smallest that AWS
    /// supports (docs/ssm-protocol.md, section 3.3).
    pub client_version: String,
    /// Maximum payload of an outgoing message in bytes, 256 to 65,536; values outside are clamped.
    ///
    /// Only 1,024 is proven for sustained uploads: with 8,192 the live service has closed the channel
    /// (docs/ssm-protocol.md, section 9.2). The channel falls back to 1,024 at the first pause during an upload, and
    /// at the first close with larger messages in flight.
    pub message_bytes: usize,
    /// Bound of the reorder buffer, and of the bytes not read yet, each in bytes of whole frames.
    pub incoming_bytes: usize,
    /// The same bounds in messages.
    pub incoming_messages: usize,
    /// Bound of the bytes accepted by [`crate::DataChannel::write`] and not acknowledged, in payload bytes.
    ///
    /// In addition the channel keeps messages that were set aside, at most four times as many bytes and 8,192
    /// messages: an agent before 3.2.1041.0 probably has them and will never acknowledge them
    /// (docs/ssm-protocol.md, section 7). While the agent is silent, up to eight probe messages may exceed the
    /// bound. The header of 120 bytes per message is not counted.
    ///
    /// No more is accepted than two windows hold, or 128 KiB, since what waits here delays whatever is written later.
    pub outgoing_bytes: usize,
    /// What earlier channels to the same instance have learned, by [`crate::DataChannel::upload_limits`].
    pub upload_limits: UploadLimits,
}

impl Default for Config {
    /// Version 1.2.764.0, payloads of 1,024 bytes as the official plugin sends, 8 MiB and 16,384 messages
    /// incoming, 2 MiB outgoing.
    fn default() -> Self {
        Self {
            client_version: "1.2.764.0".to_owned(),
            message_bytes: 1_024,
            incoming_bytes: 8 << 20,
            incoming_messages: 16_384,
            outgoing_bytes: 2 << 20,
            upload_limits: UploadLimits::default(),
        }
    }
}
