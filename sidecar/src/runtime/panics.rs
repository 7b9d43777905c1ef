//! The first panic of any task: it ends the job as an internal error, after its sessions.

use std::{
    fmt, panic,
    sync::{Arc, OnceLock},
};

use tokio::sync::Notify;
use tracing::error;

use super::failure::InternalError;

/// Whether a task has panicked, and where. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    first: OnceLock<PanicLocation>,
    notify: Notify,
}

/// File, line and column of a panic. Not its message, which might quote the data that it failed on.
#[derive(Clone, Debug)]
pub(crate) struct PanicLocation(String);

impl Panics {
    /// Installs the process's panic hook, which records the first panic from now on.
    pub(crate) fn watch() -> Self {
        let panics = Self::default();
        let hook = panics.clone();
        panic::set_hook(Box::new(move |info| {
            let location = info.location().map_or_else(String::new, ToString::to_string);
            error!(location, "panic");
            hook.0.first.get_or_init(|| PanicLocation(location));
            hook.0.notify.notify_one();
        }));
        panics
    }

    /// Completes after a panic, also after one before the call; for one caller only. Cancel-safe.
    pub(crate) async fn occurred(&self) {
        self.0.notify.notified().await;
    }

    /// Where the first panic was, if there was one.
    pub(crate) fn first(&self) -> Option<PanicLocation> {
        self.0.first.get().cloned()
    }
}

impl fmt::Display for PanicLocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "panic at {}", self.0)
    }
}

impl From<PanicLocation> for InternalError {
    fn from(location: PanicLocation) -> Self {
        Self::new(location.to_string())
    }
}
