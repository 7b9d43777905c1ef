//! The waker of a task that waits for a poll function of a shared state.

use std::task::{Context, Waker};

/// One waiting task; a later one replaces an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Waiter(Option<Waker>);

impl Waiter {
    /// Stores the waker of `context`.
    pub(crate) fn register(&mut self, context: &Context<'_>) {
        match &mut self.0 {
            Some(waker) => waker.clone_from(context.waker()),
            empty => *empty = Some(context.waker().clone()),
        }
    }

    /// Wakes the stored task.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}
