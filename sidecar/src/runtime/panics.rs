//! The first panic of any task ends the job as a defect of ours, after its sessions.

use std::{
    panic,
    sync::{Arc, OnceLock},
};

use tokio::sync::Notify;
use tracing::error;

use crate::commands::error::Error;

/// Whether a task has panicked, and where.
#[derive(Clone, Debug, Default)]
pub struct Panics(Arc<Noted>);

#[derive(Debug, Default)]
struct Noted {
    place: OnceLock<String>,
    wake: Notify,
}

impl Panics {
    /// Notes the first panic from now on, without its text, which might quote what it worked on.
    pub fn watch() -> Self {
        let panics = Self::default();
        let noted = panics.clone();
        panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or_else(String::new, ToString::to_string);
            error!(place, "panic");
            noted.0.place.get_or_init(|| place);
            noted.0.wake.notify_one();
        }));
        panics
    }

    /// Completes when there was one. Cancel-safe.
    pub async fn noticed(&self) {
        self.0.wake.notified().await;
    }

    /// The failure that it is, if there was one.
    pub fn error(&self) -> Option<Error> {
        let place = self.0.place.get()?;
        Some(Error::Internal(format!("panic at {place}")))
    }
}
