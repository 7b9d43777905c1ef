//! The pool of lanes, each an SSM session with the SSH connection in it: which lane takes a connection, and the totals.
//! When lanes are opened and replaced is decided in [`lifecycle`], and carried out in [`supervisor`].

mod config;
mod connection;
mod error;
mod event;
mod first;
mod hang_up;
mod host_key;
mod kept_connection;
mod lane;
mod lifecycle;
mod open_session;
mod resume;
mod resume_policy;
mod stall;
mod supervisor;

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::Notify, task::yield_now, time::Instant as TokioInstant};

use self::{
    connection::Place,
    kept_connection::KeptConnection,
    lifecycle::{Action, LaneHandle, Lifecycle, Limits, PathHealth, ResumePermission},
    stall::StallChange,
    supervisor::Supervisor,
};
use crate::{
    channel::Disconnected,
    runtime::{backoff::random_seed, clock::now, shared::Shared},
    ssh::{Channel, ChannelOpenError, SshError},
};

pub(crate) use config::LaneConfig;
pub(crate) use connection::{ClientEnd, Connection, TargetConnectError};
pub(crate) use error::LaneError;
pub(crate) use event::{LaneEvent, LaneObserver};
pub(crate) use first::open_first;
#[cfg(test)]
pub(crate) use hang_up::{HangUp, Stage};
pub(crate) use lane::Lane;

/// All lanes of this process.
#[derive(Debug)]
pub(crate) struct LanePool {
    config: Arc<LaneConfig>,
    state: Arc<Shared<State>>,
    /// Notified when a connection calls for a lane.
    lane_wanted: Notify,
    kept_connection: KeptConnection,
}

#[derive(Debug)]
struct State {
    lifecycle: Lifecycle<Arc<Lane>>,
    /// Counters of the lanes that are closed.
    closed: Totals,
}

/// Counters over all lanes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    /// SSM sessions started, those that never became usable included.
    pub(crate) sessions: u64,
    /// Number of times that a session was resumed.
    pub(crate) resumes: u64,
    /// Messages sent again.
    pub(crate) retransmissions: u64,
}

/// A change of the path below open connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PathChange {
    /// No lane is up; the reason.
    Degraded(String),
    /// A lane is up again.
    Recovered,
}

impl LanePool {
    /// A pool without lanes, until [`add_first`](Self::add_first).
    pub(crate) fn new(config: Arc<LaneConfig>) -> Self {
        let limits = Limits { sessions: config.sessions, reconnect: config.reconnect };
        let lifecycle = Lifecycle::new(now(), limits, random_seed());
        Self {
            config,
            state: Arc::new(Shared::new(State { lifecycle, closed: Totals::default() })),
            lane_wanted: Notify::new(),
            kept_connection: KeptConnection::default(),
        }
    }

    /// Adds the lane that the start has opened.
    pub(crate) fn add_first(&self, lane: &Arc<Lane>) {
        self.state.lock().lifecycle.add_first(Arc::clone(lane));
    }

    /// Opens a channel to the target, within `limit`, on the lane that the [`Lifecycle`] assigns.
    ///
    /// It may wait for a lane of its own while the others are taken, at most `tunnel.sessions` seconds. While no lane
    /// is up it waits for one: the tunnel recovers or is given up, within `timeouts.reconnect_s`. `limit` counts from
    /// when it has a lane, and while that is up. `client_end` completes when the client closes its half; only that in the
    /// wait for a lane matters here.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`TargetConnectError`] when the bastion or the target refuses, or does not answer in time, and when the client
    /// leaves while it waits for a lane.
    pub(crate) async fn open(
        &self,
        originator: SocketAddr,
        limit: Duration,
        client_end: impl Future<Output = ClientEnd>,
    ) -> Result<Connection, TargetConnectError> {
        let place = self.new_place();
        let mut client_end = pin!(client_end.fuse());
        let target = &self.config.target;
        loop {
            self.lane_wanted.notify_one();
            let lane = self.assigned_lane(&place, client_end.as_mut()).await?;
            let outcome = tokio::select! {
                outcome = lane.ssh.open(&target.host, target.port, originator) => outcome,
                () = lane.up_for(limit) => {
                    return Err(TargetConnectError::TimedOut { within: limit });
                }
                () = lane.stalled() => Err(ChannelOpenError::Lost(SshError::StreamEnded)),
            };
            match outcome {
                // Lost, or stalled, after it was chosen; nothing was sent to the target yet.
                Err(ChannelOpenError::Lost(_)) => {
                    self.state.lock().lifecycle.on_lane_missed(now(), place.id);
                    // Whatever is assigned now, the supervisor gets its turn.
                    yield_now().await;
                }
                outcome => return Ok(Connection::new(outcome?, lane.number, place)),
            }
        }
    }

    /// Waits for a lane. Cancel-safe.
    async fn assigned_lane(
        &self,
        place: &Place,
        client_end: Pin<&mut impl Future<Output = ClientEnd>>,
    ) -> Result<Arc<Lane>, TargetConnectError> {
        let assigned = || self.state.wait_for(|state| state.lifecycle.lane_for(place.id));
        tokio::select! {
            biased;
            lane = assigned() => return Ok(lane),
            client_end = client_end => match client_end {
                ClientEnd::Left => return Err(TargetConnectError::ClientLeft),
                ClientEnd::Finished => place.finish(),
            },
        }
        Ok(assigned().await)
    }

    /// Keeps the connection that proved the target, requested at `requested` on `lane`, for the first client.
    pub(crate) fn keep(&self, lane: Arc<Lane>, channel: Channel, requested: TokioInstant) {
        self.kept_connection.keep(lane, channel, requested);
    }

    /// The kept connection for a client, if it is as good as a fresh one. `client_speaks` completes when the client has
    /// sent something: until then it shows whether the target has refused the connection. Cancel-safe.
    pub(crate) async fn take_kept(
        &self,
        client_speaks: impl Future<Output = ()>,
    ) -> Option<Connection> {
        if !self.kept_connection.is_there() {
            return None;
        }
        // Counted meanwhile, so that a connection that comes with it gets another lane.
        let place = self.new_place();
        self.lane_wanted.notify_one();
        let (channel, lane) = self.kept_connection.take(client_speaks).await?;
        self.state.lock().lifecycle.on_placed(place.id, lane);
        Some(Connection::new(channel, lane, place))
    }

    /// A place for a connection that has just arrived.
    fn new_place(&self) -> Place {
        let id = self.state.lock().lifecycle.on_connected(now());
        Place { id, state: Arc::clone(&self.state) }
    }

    /// Closes the kept connection when it is worth nothing any more; never completes. Cancel-safe.
    pub(crate) async fn expire_kept_connection(&self) {
        self.kept_connection.expire().await;
    }

    /// Opens and replaces lanes until one is wanted, lost and cannot be replaced; returns why.
    ///
    /// `on_change` is called when the last lane is down and when one is up again. To be called once, after
    /// [`add_first`](Self::add_first).
    ///
    /// Cancel-safe: a lane that is being opened is given up, and its session ended; open lanes stay.
    pub(crate) async fn supervise(&self, on_change: impl Fn(PathChange)) -> LaneError {
        Supervisor::new(self, on_change).run().await
    }

    /// Ends every session, all at once: by flag, each within `bound`, then by API where that is allowed.
    ///
    /// Cancel-safe: when dropped before its end, the sessions are ended by API in the background.
    pub(crate) async fn terminate(&self, bound: Duration) {
        self.kept_connection.close();
        let lanes = {
            let mut state = self.state.lock();
            let lanes = state.lifecycle.take_lanes();
            for lane in &lanes {
                state.closed.add(lane);
            }
            lanes
        };
        let ends: FuturesUnordered<_> = lanes.iter().map(|lane| lane.terminate(bound)).collect();
        ends.collect::<()>().await;
    }

    /// The smoothed round-trip time of each lane by its number, where one was measured.
    pub(crate) fn round_trips(&self) -> Vec<(u64, Duration)> {
        let rtt = |lane: Arc<Lane>| Some((lane.number, lane.channel().statistics().smoothed_rtt?));
        self.lanes().into_iter().filter_map(rtt).collect()
    }

    /// Counters over all lanes so far.
    pub(crate) fn totals(&self) -> Totals {
        let state = self.state.lock();
        let mut totals = Totals { sessions: self.config.starter.started(), ..state.closed };
        state.lifecycle.lanes().iter().for_each(|entry| totals.add(&entry.lane));
        totals
    }

    /// Lanes that are up at this moment.
    pub(crate) fn up(&self) -> usize {
        self.state.lock().lifecycle.lanes().iter().filter(|entry| entry.lane.is_up()).count()
    }

    /// Whether new connections wait: no lane is up, and that is no matter of a moment.
    pub(crate) fn is_degraded(&self) -> bool {
        let state = self.state.lock();
        state.lifecycle.is_degraded() || state.lifecycle.lanes().is_empty()
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        let state = self.state.lock();
        state.lifecycle.lanes().iter().map(|entry| Arc::clone(&entry.lane)).collect()
    }

    /// Looks whether the other ends of the lanes answer; returns when to look again.
    fn review(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for lane in self.lanes() {
            let (again, change) = lane.review(now);
            next = Some(next.map_or(again, |next: Instant| next.min(again)));
            let mut state = self.state.lock();
            match change {
                Some(StallChange::Began(stall)) => {
                    state.lifecycle.on_stalled(now, lane.number, stall);
                }
                Some(StallChange::Ended) => state.lifecycle.on_answering(now, lane.number),
                None => continue,
            }
            drop(state);
            self.state.notify();
        }
        next
    }

    // For the supervisor: the events and actions of the lifecycle, under the lock.

    fn poll_action(&self, now: Instant, path: &PathHealth) -> Option<Action<Arc<Lane>>> {
        let mut state = self.state.lock();
        let action = state.lifecycle.poll_action(now, path);
        match &action {
            Some(Action::Close(lane) | Action::Abandon(lane)) => state.closed.add(lane),
            Some(_) => (),
            // Whatever has changed, connections that wait may have a lane now.
            None => self.state.notify(),
        }
        action
    }

    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.state.lock().lifecycle.poll_timeout(now)
    }

    fn channel_life(&self, lane: &Arc<Lane>) -> Duration {
        self.state.lock().lifecycle.channel_life(lane)
    }

    fn on_opened(&self, lane: &Arc<Lane>) {
        self.state.lock().lifecycle.on_opened(now(), Arc::clone(lane));
    }

    fn on_open_failed(&self, error: LaneError) {
        self.state.lock().lifecycle.on_open_failed(now(), error);
    }

    fn on_ended(&self, lane: &Lane, disconnected: Option<Disconnected>, reason: LaneError) {
        let mut state = self.state.lock();
        let ended = state.lifecycle.on_ended(now(), lane.number, disconnected, reason);
        if let Some(lane) = ended {
            state.closed.add(&lane);
        }
    }

    fn on_drained(&self, lane: &Lane) {
        let connections = lane.ssh.channels();
        self.state.lock().lifecycle.on_drained(lane.number, connections);
    }

    fn on_probed(&self, permission: ResumePermission) {
        self.state.lock().lifecycle.on_probed(permission);
    }
}

impl LaneHandle for Arc<Lane> {
    fn number(&self) -> u64 {
        self.number
    }

    fn opened_at(&self) -> Instant {
        Lane::opened_at(self)
    }

    fn is_signed(&self) -> bool {
        Lane::is_signed(self)
    }

    fn is_up(&self) -> bool {
        Lane::is_up(self)
    }

    fn is_over(&self) -> bool {
        self.ssh.is_ended()
    }

    fn transfers(&self) -> usize {
        self.ssh.channels_in_bulk()
    }

    fn channels(&self) -> usize {
        self.ssh.channels()
    }
}

impl Totals {
    fn add(&mut self, lane: &Lane) {
        self.resumes += lane.resumes();
        self.retransmissions += lane.channel().statistics().retransmissions;
    }
}
