//! Who may stop the sidecar, what is still running, and how long to wait for it.
//!
//! The token says *stop*, the tracker says *stopped*. Every task of the process runs on the tracker,
//! so that [`Shutdown::finish`] knows when the last session has been terminated.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Stop signal and task list of the whole process; clones share both.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Asks everything to stop; safe to call again.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Completes when somebody has called [`stop`](Self::stop). Cancel-safe.
    pub async fn stopping(&self) {
        self.token.cancelled().await;
    }

    /// The tasks that [`finish`](Self::finish) waits for.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Runs `task` until it ends or the process stops, whichever comes first.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let token = self.token.clone();
        self.tasks.spawn(async move {
            token.run_until_cancelled_owned(task).await;
        });
    }

    /// Runs `task` to its own end, also while the process stops: for what must be seen through.
    pub fn spawn_to_its_end(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Stops everything and waits at most `grace` for the last task.
    ///
    /// # Errors
    ///
    /// [`GraceExceeded`] with the number of tasks that are still running.
    pub async fn finish(&self, grace: Duration) -> Result<(), GraceExceeded> {
        self.token.cancel();
        self.tasks.close();
        tokio::time::timeout(grace, self.tasks.wait())
            .await
            .map_err(|_| GraceExceeded { unfinished: self.tasks.len() })
    }
}

/// Some tasks did not end in the time they had.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{unfinished} task(s) still running at the end of the grace period")]
pub struct GraceExceeded {
    /// How many.
    pub unfinished: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finish_stops_what_may_be_stopped_and_waits_for_the_rest() {
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
    async fn finish_says_how_many_tasks_outlived_the_grace_period() {
        let shutdown = Shutdown::default();
        shutdown.spawn_to_its_end(std::future::pending());
        let outcome = shutdown.finish(Duration::from_secs(5)).await;
        assert_eq!(outcome, Err(GraceExceeded { unfinished: 1 }));
    }
}
