//! The stop of the process: a token that requests it, and a tracker that waits until all tasks have ended.
//!
//! Every task of the process runs on the tracker, so that [`Shutdown::finish`] returns after the last session was
//! terminated.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Stop signal and task list of the whole process; clones share both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Returns one that was stopped already, for calls to which the time limits of the stop apply.
    pub(crate) fn stopped() -> Self {
        let shutdown = Self::default();
        shutdown.stop();
        shutdown
    }

    /// Requests the stop: tasks of [`spawn`](Self::spawn) are dropped. Idempotent.
    pub(crate) fn stop(&self) {
        self.token.cancel();
    }

    /// Completes after [`stop`](Self::stop). Cancel-safe.
    pub(crate) async fn stopping(&self) {
        self.token.cancelled().await;
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Runs `task` until it ends, or until the process stops: then it is dropped at its next `await`.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled_owned(task).await;
        });
    }

    /// Runs `task` to its end even while the process stops: for a `StartSession` that was sent, and for the end of
    /// sessions.
    pub(crate) fn spawn_to_its_end(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Requests the stop and waits at most `grace` for the last task.
    ///
    /// # Errors
    ///
    /// [`GraceExceeded`] with the number of tasks that are still running.
    pub(crate) async fn finish(&self, grace: Duration) -> Result<(), GraceExceeded> {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait())
            .await
            .map_err(|_| GraceExceeded { unfinished: self.tasks.len() })
    }
}

/// Tasks did not end within the grace period.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{unfinished} task(s) still running at the end of the grace period")]
pub(crate) struct GraceExceeded {
    pub(crate) unfinished: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finish_cancels_what_can_be_cancelled_and_waits_for_the_rest() {
        let shutdown = Shutdown::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        shutdown.spawn(std::future::pending());
        shutdown.spawn_to_its_end(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            sender.send(()).unwrap();
        });
        assert_eq!(shutdown.finish(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(receiver.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn finish_returns_how_many_tasks_outlived_the_grace_period() {
        let shutdown = Shutdown::default();
        shutdown.spawn_to_its_end(std::future::pending());
        let outcome = shutdown.finish(Duration::from_secs(5)).await;
        assert_eq!(outcome, Err(GraceExceeded { unfinished: 1 }));
    }
}
