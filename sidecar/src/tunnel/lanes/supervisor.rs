//! Carries out the actions of the [`Lifecycle`](super::lifecycle::Lifecycle), and reports to it what becomes of lanes.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{
    Lane, LaneConfig, LaneError, LaneObserver, LanePool, PathChange,
    lifecycle::{Action, PathHealth, ResumePermission},
};
use crate::{
    channel::{Disconnected, PathLoss},
    runtime::{clock::now, stop},
    session::{ApiErrorKind, IamAction},
};

/// The loop that opens, replaces and closes lanes.
pub(super) struct Supervisor<'a, F> {
    pool: &'a LanePool,
    on_change: F,
    /// The end of each lane, with its reason.
    ends: FuturesUnordered<BoxFuture<'a, (Arc<Lane>, LaneError)>>,
    /// The end of the last connection of each draining lane.
    drained: FuturesUnordered<BoxFuture<'a, Arc<Lane>>>,
    opening: Option<BoxFuture<'a, Result<Lane, LaneError>>>,
    probe: Option<BoxFuture<'a, ResumePermission>>,
}

impl<'a, F: Fn(PathChange)> Supervisor<'a, F> {
    pub(super) fn new(pool: &'a LanePool, on_change: F) -> Self {
        let supervisor = Self {
            pool,
            on_change,
            ends: FuturesUnordered::new(),
            drained: FuturesUnordered::new(),
            opening: None,
            probe: None,
        };
        for lane in pool.lanes() {
            supervisor.watch(lane);
        }
        supervisor
    }

    /// Runs until the last lane is lost and cannot be replaced; returns why. Cancel-safe.
    pub(super) async fn run(mut self) -> LaneError {
        loop {
            let now = now();
            let review = self.pool.review(now);
            let path = self.path();
            while let Some(action) = self.pool.poll_action(now, &path) {
                if let ControlFlow::Break(error) = self.carry_out(action) {
                    return error;
                }
            }
            let timeout = self.pool.poll_timeout(now).into_iter().chain(review).min();
            self.step(timeout).await;
        }
    }

    async fn step(&mut self, timeout: Option<Instant>) {
        let timeout = async {
            match timeout {
                Some(timeout) => sleep_until(timeout.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            Some((lane, reason)) = self.ends.next() => {
                self.pool.on_ended(&lane, lane.disconnected(), reason);
            }
            Some(lane) = self.drained.next() => self.pool.on_drained(&lane),
            outcome = completed(&mut self.opening) => self.on_opened(outcome),
            permission = completed(&mut self.probe) => self.pool.on_probed(permission),
            () = self.pool.lane_wanted.notified() => (),
            () = self.pool.config.reports.path_changed.notified() => (),
            () = timeout => (),
        }
    }

    fn path(&self) -> PathHealth {
        if self.pool.up() > 0 {
            return PathHealth::Up;
        }
        let lanes = self.pool.lanes();
        let reason = |lane: &Arc<Lane>| {
            let disconnected = lane.disconnected().map(|disconnected| disconnected.reason);
            let silent = || Some(lane.silent()?.to_string());
            disconnected.or_else(|| Some(lane.channel().try_ended()?.to_string())).or_else(silent)
        };
        let closed_since = |lane: &Arc<Lane>| match lane.disconnected()? {
            Disconnected { since, loss: PathLoss::ClosedByService { .. }, .. } => Some(since),
            Disconnected { .. } => None,
        };
        let closed: Option<Vec<_>> = lanes.iter().map(closed_since).collect();
        PathHealth::Down {
            reason: lanes.iter().find_map(reason),
            closed_since: closed.and_then(|since| since.into_iter().max()),
        }
    }

    fn carry_out(&mut self, action: Action<Arc<Lane>>) -> ControlFlow<LaneError> {
        match action {
            Action::Open => self.opening = Some(open(&self.pool.config).boxed()),
            Action::ProbeResume(lane) => {
                self.probe = Some(probe_resume(self.pool, lane).boxed());
            }
            Action::Notify(change) => (self.on_change)(change),
            Action::Drain(lane) => {
                let connections = lane.ssh.channels();
                info!(
                    lane = lane.number,
                    connections,
                    "lane is replaced before its channel is closed; its connections stay"
                );
                self.drained.push(drained(lane).boxed());
            }
            Action::KeepDraining(lane) => self.drained.push(drained(lane).boxed()),
            // The pool reads the state from the lifecycle.
            Action::Undrain(lane) => debug!(lane = lane.number, "lane is active again"),
            Action::Close(lane) => self.close(lane),
            Action::Abandon(lane) => {
                warn!(lane = lane.number, "stalled lane is given up, its connections are reset");
                self.close(lane);
            }
            Action::GiveUp(error) => return ControlFlow::Break(error),
        }
        ControlFlow::Continue(())
    }

    fn close(&self, lane: Arc<Lane>) {
        let connections = lane.ssh.channels();
        info!(lane = lane.number, connections, "replaced lane is closed");
        let shutdown = &self.pool.config.shutdown;
        shutdown.spawn_to_its_end(async move { lane.terminate(stop::TERMINATE_FLAG).await });
    }

    fn on_opened(&mut self, outcome: Result<Lane, LaneError>) {
        match outcome {
            Ok(lane) => {
                let lane = Arc::new(lane);
                info!(lane = lane.number, "lane opened");
                self.pool.on_opened(&lane);
                self.watch(lane);
            }
            Err(error) => self.pool.on_open_failed(error),
        }
    }

    fn watch(&self, lane: Arc<Lane>) {
        let end = async move {
            let reason = lane.ended().await;
            (lane, reason)
        };
        self.ends.push(end.boxed());
    }
}

/// Completes when a lane carries no connection. Cancel-safe.
async fn drained(lane: Arc<Lane>) -> Arc<Lane> {
    lane.ssh.channels_closed().await;
    lane
}

/// Checks whether `ssm:ResumeSession` is allowed, by calling it on an open session. Any outcome but `AccessDenied` counts
/// as allowed.
async fn probe_resume(pool: &LanePool, lane: Arc<Lane>) -> ResumePermission {
    loop {
        match pool.config.api.resume(lane.session_id()).await {
            Ok(_) => return ResumePermission::Granted,
            Err(error) if error.kind() == ApiErrorKind::AccessDenied => {
                let minutes = pool.channel_life(&lane).as_secs() / 60;
                warn!(
                    %error,
                    minutes,
                    "sessions cannot be resumed: a lost WebSocket resets connections, and so may the service's close of a \
                     data channel at this age; allow `{}`, as `ssm-sidecar policy` prints it",
                    IamAction::ResumeSession
                );
                return ResumePermission::Denied;
            }
            Err(error) if error.is_transient() => {
                debug!(%error, "not known yet whether sessions can be resumed");
                sleep(PROBE_DELAY).await;
            }
            Err(error) => {
                debug!(%error, "not known whether sessions can be resumed");
                return ResumePermission::Granted;
            }
        }
    }
}

/// Opens one more lane, within [`OPEN_TIMEOUT`].
async fn open(config: &Arc<LaneConfig>) -> Result<Lane, LaneError> {
    let observer: LaneObserver = Arc::new(|_| ());
    let timed_out = || Err(LaneError::OpenTimedOut { seconds: OPEN_TIMEOUT.as_secs() });
    timeout(OPEN_TIMEOUT, Lane::open(config, &observer)).await.unwrap_or_else(|_| timed_out())
}

/// Completes with the future in `slot`, and empties it; never while it is empty. Cancel-safe.
async fn completed<T>(slot: &mut Option<BoxFuture<'_, T>>) -> T {
    let Some(future) = slot else { return pending().await };
    let output = future.await;
    *slot = None;
    output
}

/// For a lane after the first. A session may be started while its bastion is going down, whose agent then never
/// answers; the next one may succeed. A successful opening takes a second or two.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// Before the probe is repeated.
const PROBE_DELAY: Duration = Duration::from_secs(30);
