//! State shared by a loop around a state machine and the handles on it, as in quinn.

use std::fmt;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A state behind a lock, and a signal that it has changed.
#[derive(Default)]
pub(crate) struct Shared<T> {
    state: Mutex<T>,
    changed: Notify,
}

impl<T> Shared<T> {
    pub(crate) fn new(state: T) -> Self {
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock()
    }

    /// Makes every [`wait_for`](Self::wait_for) look at the state again.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Completes with the value that `found` returns. `found` is called under the lock, first at once, then after each
    /// [`notify`](Self::notify), until it returns one. Cancel-safe.
    pub(crate) async fn wait_for<R>(&self, mut found: impl FnMut(&mut T) -> Option<R>) -> R {
        loop {
            // Created before `found` is called, so that a notification in between is not lost.
            let changed = self.changed.notified();
            if let Some(found) = found(&mut self.state.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl<T> fmt::Debug for Shared<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn every_waiter_sees_the_change_that_it_waits_for() {
        let shared = Arc::new(Shared::new(0));
        let waiting = (1..=3).map(|least| {
            let shared = Arc::clone(&shared);
            async move { shared.wait_for(|value| (*value >= least).then_some(*value)).await }
        });
        let waiting = futures_util::future::join_all(waiting);
        let changing = async {
            for value in 1..=3 {
                tokio::task::yield_now().await;
                *shared.lock() = value;
                shared.notify();
            }
        };
        let (seen, ()) = tokio::join!(waiting, changing);
        assert!(seen.into_iter().zip(1..).all(|(seen, least)| seen >= least));
    }
}
