//! Carries out what [`Upkeep`] decides about the lanes, and tells it what becomes of them.

use std::{
    collections::BTreeMap,
    future::pending,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{
    Change, Lane, LaneError, Lanes, Needs,
    lifecycle::{Action, Answer, Limits, Path, Upkeep},
    open_session::END_BOUND,
};
use crate::{
    runtime::{backoff, clock::now},
    session::ApiErrorKind,
};

/// The loop that keeps lanes open; it alone opens further ones.
pub(super) struct Supervisor<'a, F> {
    lanes: &'a Lanes,
    on_change: F,
    upkeep: Upkeep,
    /// Those that `upkeep` knows, by number.
    known: BTreeMap<u64, Arc<Lane>>,
    /// Each lane's end, with its reason.
    endings: FuturesUnordered<BoxFuture<'a, (Arc<Lane>, LaneError)>>,
    /// The end of each leaving lane's last connection.
    departures: FuturesUnordered<BoxFuture<'a, Arc<Lane>>>,
    /// The lane that is being opened.
    opening: Option<BoxFuture<'a, Result<Lane, LaneError>>>,
    /// The question whether sessions may be resumed.
    probe: Option<BoxFuture<'a, Answer>>,
}

impl<'a, F: Fn(Change)> Supervisor<'a, F> {
    pub(super) fn new(lanes: &'a Lanes, on_change: F) -> Self {
        let needs = &lanes.needs;
        let limits = Limits {
            sessions: needs.sessions,
            reconnect: needs.reconnect,
            channel_life: needs.channel_life,
        };
        let open = lanes.open.borrow().clone();
        let opened = open.iter().map(|lane| (lane.number, lane.opened()));
        let mut supervisor = Self {
            lanes,
            on_change,
            upkeep: Upkeep::new(now(), limits, backoff::seed(), opened),
            known: BTreeMap::new(),
            endings: FuturesUnordered::new(),
            departures: FuturesUnordered::new(),
            opening: None,
            probe: None,
        };
        for lane in open {
            supervisor.watch(lane);
        }
        supervisor
    }

    /// Runs until the last lane is lost and cannot be replaced; returns why. Cancel-safe.
    pub(super) async fn run(mut self) -> LaneError {
        loop {
            let (now, path) = (now(), self.path());
            while let Some(action) = self.upkeep.poll_action(now, &path) {
                if let ControlFlow::Break(error) = self.carry_out(action) {
                    return error;
                }
            }
            let timeout = self.upkeep.poll_timeout(now);
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
            Some((lane, reason)) = self.endings.next() => self.on_ended(&lane, reason),
            Some(lane) = self.departures.next() => {
                self.upkeep.on_emptied(now(), lane.number, lane.ssh.channels());
            }
            outcome = completed(&mut self.opening) => self.on_opened(outcome),
            answer = completed(&mut self.probe) => self.upkeep.on_answer(answer),
            () = self.lanes.wanted.notified() => self.upkeep.on_wanted(),
            () = self.lanes.needs.path_changed.notified() => (),
            () = timeout => (),
        }
    }

    fn path(&self) -> Path {
        if self.lanes.up() > 0 {
            return Path::Whole;
        }
        let why = |lane: &Arc<Lane>| {
            let broken = lane.broken().map(|broken| broken.reason);
            broken.or_else(|| Some(lane.driver().try_ended()?.to_string()))
        };
        Path::Broken(self.lanes.open.borrow().iter().find_map(why))
    }

    fn carry_out(&mut self, action: Action) -> ControlFlow<LaneError> {
        match action {
            Action::Open => {
                let number = self.lanes.number();
                self.opening = Some(open(number, &self.lanes.needs).boxed());
            }
            Action::Ask(number) => {
                if let Some(lane) = self.known.get(&number) {
                    self.probe = Some(may_resume(self.lanes, Arc::clone(lane)).boxed());
                }
            }
            Action::Tell(change) => (self.on_change)(change),
            Action::Leave(number) => {
                if let Some(lane) = self.known.get(&number) {
                    let connections = lane.ssh.channels();
                    info!(
                        lane = number,
                        connections, "lane is succeeded before its channel is closed"
                    );
                    lane.set_leaving(true);
                    self.departures.push(departed(Arc::clone(lane)).boxed());
                }
            }
            Action::Linger(number) => {
                if let Some(lane) = self.known.get(&number) {
                    self.departures.push(departed(Arc::clone(lane)).boxed());
                }
            }
            Action::Return(number) => {
                if let Some(lane) = self.known.get(&number) {
                    lane.set_leaving(false);
                }
            }
            Action::Retire(number) => self.retire(number),
            Action::GiveUp(error) => return ControlFlow::Break(error),
        }
        ControlFlow::Continue(())
    }

    fn retire(&mut self, number: u64) {
        if let Some(lane) = self.known.remove(&number)
            && self.lanes.retire(&lane)
        {
            let connections = lane.ssh.channels();
            info!(lane = number, connections, "succeeded lane is ended");
            let shutdown = &self.lanes.needs.shutdown;
            shutdown.spawn_to_its_end(async move { lane.terminate(END_BOUND).await });
        }
    }

    fn on_opened(&mut self, outcome: Result<Lane, LaneError>) {
        match outcome {
            Ok(lane) => {
                let lane = self.lanes.admit(lane);
                info!(lane = lane.number, "a further session is open");
                self.upkeep.on_opened(now(), lane.number, lane.opened());
                self.watch(lane);
            }
            Err(error) => self.upkeep.on_open_failed(now(), error),
        }
    }

    fn on_ended(&mut self, lane: &Arc<Lane>, reason: LaneError) {
        self.known.remove(&lane.number);
        self.lanes.retire(lane);
        let broken = lane.broken().map(|broken| broken.since);
        self.upkeep.on_ended(now(), lane.number, broken, reason);
    }

    fn watch(&mut self, lane: Arc<Lane>) {
        self.known.insert(lane.number, Arc::clone(&lane));
        let ending = async move {
            let reason = lane.ended().await;
            (lane, reason)
        };
        self.endings.push(ending.boxed());
    }
}

/// Completes when a lane carries nothing any more. Cancel-safe.
async fn departed(lane: Arc<Lane>) -> Arc<Lane> {
    lane.ssh.emptied().await;
    lane
}

/// Asks for leave to resume a session that is open. Where the answer is anything but a refusal, the close of
/// its channel will show.
async fn may_resume(lanes: &Lanes, lane: Arc<Lane>) -> Answer {
    loop {
        match lanes.needs.api.resume(lane.session_id()).await {
            Ok(_) => return Answer::Allowed,
            Err(error) if error.kind() == ApiErrorKind::AccessDenied => {
                let minutes = lanes.needs.channel_life.as_secs() / 60;
                warn!(
                    %error,
                    minutes,
                    "sessions cannot be resumed: a broken path resets connections, and those older than \
                     a data channel's life are cut; allow `ssm:ResumeSession`, as `ssm-sidecar policy` prints it"
                );
                return Answer::Refused;
            }
            Err(error) if error.may_pass() => {
                debug!(%error, "not known yet whether sessions can be resumed");
                sleep(PROBE_PAUSE).await;
            }
            Err(error) => {
                debug!(%error, "not known whether sessions can be resumed");
                return Answer::Allowed;
            }
        }
    }
}

/// Opens one more lane, if that takes no longer than [`OPENING`].
async fn open(number: u64, needs: &Arc<Needs>) -> Result<Lane, LaneError> {
    let overdue = || Err(LaneError::Overdue { seconds: OPENING.as_secs() });
    timeout(OPENING, Lane::open(number, needs, |_| ())).await.unwrap_or_else(|_| overdue())
}

/// Completes with the future in `slot`, and empties it; never while it is empty. Cancel-safe.
async fn completed<T>(slot: &mut Option<BoxFuture<'_, T>>) -> T {
    let Some(future) = slot else { return pending().await };
    let output = future.await;
    *slot = None;
    output
}

/// For a further lane. A session may be started while its bastion is going down, whose agent then never answers;
/// the next one is another chance. One that comes to something takes a second or two.
const OPENING: Duration = Duration::from_secs(20);

/// Before the question whether sessions may be resumed is repeated.
const PROBE_PAUSE: Duration = Duration::from_secs(30);
