//! What a channel has learned of how much the service takes, to be passed on to the channels after it.

/// Limits of uploads that the service has shown by a pause or by a close (docs/ssm-protocol.md, section 9.2).
///
/// The default is no limit: nothing was learned yet.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct UploadLimits {
    /// Payload bytes a second.
    pub(crate) bytes_per_second: Option<usize>,
    /// Maximum of the window, in messages.
    pub(crate) window: Option<usize>,
    /// No payload is larger than 1,024 bytes.
    pub(crate) small_messages: bool,
}

impl UploadLimits {
    /// Returns the maximum rate in payload bytes a second, `None` without a limit.
    #[must_use]
    pub const fn bytes_per_second(&self) -> Option<usize> {
        self.bytes_per_second
    }
}
