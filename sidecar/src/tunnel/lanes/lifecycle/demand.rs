//! Decides which lane a connection gets, whether it waits for one, and how many lanes the connections call for.
//!
//! A connection cannot change its lane, and a lane has the rate of one session. So a connection that arrives while each
//! open lane carries one waits, if a further lane is on its way: lanes are opened one after another, as many as there
//! are connections, up to `tunnel.sessions`. A connection that is alone never waits, and nothing is opened for it.
//!
//! The wait is bounded, see [`Lifecycle::longest_wait`]. When it is over, when a lane cannot be opened, and when no lane
//! is on its way, a connection shares the open lane with the least load.
//!
//! With more connections than lanes, each lane takes its part of those that wait, so that a burst is spread evenly.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Entry, LaneHandle, LaneState, Lifecycle, OpenState};

/// A client's connection, from its arrival to its end. Numbered in the order of arrival.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::tunnel::lanes) struct ConnectionId(u64);

/// The connections of all clients.
#[derive(Debug, Default)]
pub(super) struct Demand {
    connections: BTreeMap<ConnectionId, Connection>,
    last: ConnectionId,
    /// Those that wait for a lane. The first has waited longest.
    pub(super) waiting: BTreeSet<ConnectionId>,
    /// Those without a lane whose clients have finished: any will do for them.
    leaving: BTreeSet<ConnectionId>,
    /// Connections on each lane by its number, without those whose clients have finished.
    carried: BTreeMap<u64, usize>,
    /// A connection came that found no empty lane. Until there are enough lanes, or one could not be opened.
    calls_for_lanes: bool,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    /// When it arrived, or when the outage ended in which it did.
    since: Instant,
    /// The number of its lane; `None` while it waits.
    lane: Option<u64>,
    /// The connection may be using its lane.
    told: bool,
    /// The client has closed its half, which is how most connections end; the end itself comes later, by a round trip
    /// and what the target takes. Meanwhile the client's next connection may take its place.
    finished: bool,
}

impl<L: LaneHandle> Lifecycle<L> {
    /// A client has connected. [`lane_for`](Self::lane_for) tells its lane.
    pub(in crate::tunnel::lanes) fn on_connected(&mut self, now: Instant) -> ConnectionId {
        if !self.has_empty_lane() {
            self.demand.calls_for_lanes = true;
        }
        let id = self.demand.add(now);
        self.assign_lanes(now);
        id
    }

    /// The lane for this connection; `None` while it waits. To be asked again after every change, until there is one.
    pub(in crate::tunnel::lanes) fn lane_for(&mut self, id: ConnectionId) -> Option<L> {
        let lane = self.lane_of(id)?;
        self.demand.connections.get_mut(&id)?.told = true;
        Some(lane)
    }

    /// This connection has its SSH channel on this lane.
    pub(in crate::tunnel::lanes) fn on_placed(&mut self, id: ConnectionId, number: u64) {
        self.demand.place(id, Some(number));
    }

    /// The lane of this connection was lost before its SSH channel was open: it needs another.
    pub(in crate::tunnel::lanes) fn on_lane_missed(&mut self, now: Instant, id: ConnectionId) {
        self.demand.place(id, None);
        self.assign_lanes(now);
    }

    /// The client of this connection sends nothing more.
    pub(in crate::tunnel::lanes) fn on_finished(&mut self, now: Instant, id: ConnectionId) {
        self.demand.finish(id);
        self.assign_lanes(now);
    }

    /// This connection is over.
    pub(in crate::tunnel::lanes) fn on_disconnected(&mut self, now: Instant, id: ConnectionId) {
        self.demand.remove(id);
        self.assign_lanes(now);
    }

    /// The lane of this connection, if it has one and that is not lost.
    pub(super) fn lane_of(&self, id: ConnectionId) -> Option<L> {
        let number = self.demand.connections.get(&id)?.lane?;
        let entry = self.lanes.iter().find(|entry| entry.lane.number() == number)?;
        Some(entry.lane.clone())
    }

    /// Whether a new connection would have a lane to itself.
    pub(super) fn has_empty_lane(&self) -> bool {
        self.lanes.iter().any(|entry| takes_new(entry) && self.demand.carried(entry) == 0)
    }

    /// Whether the connections call for a further lane.
    pub(super) fn lacks_lanes(&self) -> bool {
        self.demand.calls_for_lanes && self.active() < self.lanes_wanted()
    }

    /// There is a lane again after an outage: what the connections waited until now does not count.
    pub(super) fn on_outage_over(&mut self, now: Instant) {
        self.demand.restart_waits(now);
    }

    /// A lane is gone: connections that were not told that they have it need another.
    pub(super) fn on_lane_gone(&mut self, number: u64) {
        self.demand.release(number);
    }

    /// A further lane could not be opened: connections share the open ones, until another connection calls for one.
    pub(super) fn on_lane_refused(&mut self, now: Instant) {
        self.demand.calls_for_lanes = false;
        self.assign_lanes(now);
    }

    /// When the first of the connections that wait has waited long enough.
    pub(super) fn wait_over(&self) -> Option<Instant> {
        let since = self.demand.longest_waiting()?.1.since;
        (!self.lanes.is_empty()).then(|| since + self.longest_wait())
    }

    /// Gives lanes to the connections that wait, in their order, up to the first that is to wait on.
    pub(super) fn assign_lanes(&mut self, now: Instant) {
        while let Some(id) = self.demand.leaving.first().copied()
            && let Some(number) = self.least_loaded(|_| true)
        {
            self.demand.place(id, Some(number));
        }
        let part = (self.counted() / self.lanes_wanted().max(1)).max(1);
        while let Some((id, connection)) = self.demand.longest_waiting() {
            let waits = self.lane_is_coming(now) && now < connection.since + self.longest_wait();
            let lane = if waits {
                self.least_loaded(|entry| takes_new(entry) && self.demand.carried(entry) < part)
            } else {
                self.least_loaded(|_| true)
            };
            let Some(number) = lane else { break };
            self.demand.place(id, Some(number));
        }
        if self.active() >= self.lanes_wanted() {
            self.demand.calls_for_lanes = false;
        }
    }

    /// The number of the lane for a new connection: an active one before a draining one, one that is up before one that
    /// is not, then the one with the fewest downloads and uploads, then with the fewest connections, then the oldest: what
    /// its connections do is known longest.
    ///
    /// Bulk transfers share the session's rate and slow each other down; any number of clients that ask and wait do
    /// not. And a connection that has just ended still counts for a moment, which must not put the next one of the same
    /// client beside a download.
    fn least_loaded(&self, is_eligible: impl Fn(&Entry<L>) -> bool) -> Option<u64> {
        // A stalled lane would be missed at once, see [`on_lane_missed`](Self::on_lane_missed).
        let is_usable = |entry: &&Entry<L>| entry.stall.is_none() && !entry.lane.is_over();
        let eligible = self.lanes.iter().filter(is_usable).filter(|entry| is_eligible(entry));
        let load = |entry: &&Entry<L>| {
            let Entry { lane, state, .. } = entry;
            let carried = self.demand.carried(entry);
            // Not the difference the other way: connections that were just assigned have no SSH channel yet.
            let ending = lane.channels().saturating_sub(carried);
            (*state, Reverse(lane.is_up()), lane.transfers(), carried, ending)
        };
        eligible.min_by_key(load).map(|entry| entry.lane.number())
    }

    /// How many active lanes the connections have a use for.
    fn lanes_wanted(&self) -> usize {
        self.counted().min(self.limits.sessions)
    }

    /// Connections that wait or are on active lanes: those on draining ones take no part of the others.
    fn counted(&self) -> usize {
        let active = self.lanes.iter().filter(|entry| entry.state == LaneState::Active);
        active.map(|entry| self.demand.carried(entry)).sum::<usize>() + self.demand.waiting.len()
    }

    /// Whether a lane is being opened, or will be by the next action.
    fn lane_is_coming(&self, now: Instant) -> bool {
        self.open_state == OpenState::Opening || (self.lacks_lanes() && now >= self.not_before)
    }

    /// How long a connection may wait for a lane while there is another: as long as an agent takes to start all further
    /// sessions; and once more for a lane that is being opened at that time, since its session has yet to be used.
    fn longest_wait(&self) -> Duration {
        let further = u32::try_from(self.limits.sessions - 1).unwrap_or(u32::MAX);
        let opening = u32::from(further > 0 && self.open_state == OpenState::Opening);
        START_SPACING * (further + opening)
    }
}

impl Demand {
    fn add(&mut self, now: Instant) -> ConnectionId {
        self.last.0 += 1;
        let connection = Connection { since: now, lane: None, told: false, finished: false };
        self.connections.insert(self.last, connection);
        self.count(self.last, connection);
        self.last
    }

    fn remove(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.remove(&id) {
            self.uncount(id, connection);
        }
    }

    fn finish(&mut self, id: ConnectionId) {
        self.change(id, |connection| connection.finished = true);
    }

    /// Moves a connection to the lane of this number, or lets it wait.
    fn place(&mut self, id: ConnectionId, lane: Option<u64>) {
        self.change(id, |connection| {
            connection.lane = lane;
            connection.told = false;
        });
    }

    fn change(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        let Some(mut connection) = self.connections.get(&id).copied() else { return };
        self.uncount(id, connection);
        change(&mut connection);
        self.connections.insert(id, connection);
        self.count(id, connection);
    }

    fn count(&mut self, id: ConnectionId, connection: Connection) {
        match (connection.lane, connection.finished) {
            (Some(number), false) => *self.carried.entry(number).or_default() += 1,
            (Some(_), true) => (),
            (None, false) => drop(self.waiting.insert(id)),
            (None, true) => drop(self.leaving.insert(id)),
        }
    }

    fn uncount(&mut self, id: ConnectionId, connection: Connection) {
        match (connection.lane, connection.finished) {
            (Some(number), false) => {
                let count = self.carried.get(&number).map_or(0, |count| count - 1);
                if count == 0 {
                    self.carried.remove(&number);
                } else {
                    self.carried.insert(number, count);
                }
            }
            (Some(_), true) => (),
            (None, false) => drop(self.waiting.remove(&id)),
            (None, true) => drop(self.leaving.remove(&id)),
        }
    }

    fn release(&mut self, number: u64) {
        let is_untold = |(_, connection): &(&ConnectionId, &Connection)| {
            connection.lane == Some(number) && !connection.told
        };
        let untold = self.connections.iter().filter(is_untold).map(|(id, _)| *id);
        for id in untold.collect::<Vec<_>>() {
            self.place(id, None);
        }
    }

    fn restart_waits(&mut self, now: Instant) {
        for id in &self.waiting {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.since = now;
            }
        }
    }

    fn longest_waiting(&self) -> Option<(ConnectionId, Connection)> {
        let id = *self.waiting.first()?;
        Some((id, *self.connections.get(&id)?))
    }

    fn carried<L: LaneHandle>(&self, entry: &Entry<L>) -> usize {
        self.carried.get(&entry.lane.number()).copied().unwrap_or_default()
    }
}

/// Whether new connections may have this lane to themselves.
fn takes_new<L: LaneHandle>(entry: &Entry<L>) -> bool {
    entry.state == LaneState::Active && entry.lane.is_up() && !entry.lane.is_over()
}

/// Between two sessions that an agent starts one after another (seen with the real agent).
const START_SPACING: Duration = Duration::from_secs(1);
