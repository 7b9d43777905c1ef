//! Decides when lanes are opened, drained, closed and replaced. No IO and no clock: events and the time come in,
//! actions come out.
//!
//! The service has been seen to close data channels after about an hour. A session that may be resumed continues on a
//! new WebSocket. Where `ssm:ResumeSession` is not allowed the session ends there, so its lane is **replaced before
//! that**: new connections go to the replacement, those of the old lane stay where they are (it is *drained*), and it is
//! closed once it carries none. It is not closed with what it carries: a service that leaves the channel open would
//! have cut nothing.
//!
//! The hour is a first guess. Lanes that are lost to the close show the true age, and drained lanes that outlive it
//! show that it is longer, see [`channel_life`]. Signed and unsigned openings are told apart: all closes that were
//! reported are those of signed ones.
//!
//! Whether sessions may be resumed is learned when it matters: when a WebSocket is lost, and before a lane would be
//! replaced, by a `ResumeSession` on its open session. Nobody knows what that call does to the channel of a session that
//! is in use, so it is not made before.
//!
//! Lanes are opened one after another: an agent that is asked for several sessions at once starts them one second apart
//! (seen with the real agent). How many the connections call for, and which lane each gets, is in [`demand`].

mod channel_life;
mod demand;

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use self::{channel_life::ChannelLives, demand::Demand};
use super::{LaneError, PathChange, stall::Stall};
use crate::{
    channel::{ChannelEnd, Disconnected, PathLoss},
    runtime::backoff::Backoff,
    session::ApiErrorKind,
};

pub(super) use self::demand::ConnectionId;

/// The lanes of this process, and what is to be done about them.
///
/// After each `on_…`, and whenever [`poll_timeout`](Self::poll_timeout) is due, call
/// [`poll_action`](Self::poll_action) until it returns `None`.
#[derive(Debug)]
pub(super) struct Lifecycle<L> {
    limits: Limits,
    channel_lives: ChannelLives,
    lanes: Vec<Entry<L>>,
    open_state: OpenState,
    /// No lane is opened before this time.
    not_before: Instant,
    /// Between attempts to open a further lane; `None` after one that succeeded.
    add_backoff: Option<Backoff>,
    /// Logins refused since a lane was opened last.
    logins_refused: u32,
    demand: Demand,
    resumption: Resumption,
    /// The lane before whose replacement resumption was probed last.
    probed: Option<u64>,
    reported: Reported,
    /// When the path counts as degraded, unless it is up again before.
    degraded_at: Option<Instant>,
    health: Health,
    /// For the delays of the next outage.
    seed: u64,
    actions: VecDeque<Action<L>>,
}

/// A handle on a lane, as far as its lifecycle is concerned.
pub(super) trait LaneHandle: Clone {
    fn number(&self) -> u64;

    /// When its data channel was opened.
    fn opened_at(&self) -> Instant;

    /// Whether the opening of its data channel was signed.
    fn is_signed(&self) -> bool;

    /// Whether it has a WebSocket, rather than a session that is being resumed.
    fn is_up(&self) -> bool;

    /// Whether its SSH connection has ended.
    fn is_over(&self) -> bool;

    /// SSH channels that carry bulk data at present.
    fn transfers(&self) -> usize;

    /// SSH channels, those included whose clients are gone.
    fn channels(&self) -> usize;
}

/// An open lane.
#[derive(Clone, Debug)]
pub(super) struct Entry<L> {
    pub(super) lane: L,
    pub(super) state: LaneState,
    /// Whether it is known to need no replacement, since its session may be resumed.
    may_be_resumed: bool,
    /// While its other end does not answer, though its WebSocket is up.
    stall: Option<Stall>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum LaneState {
    /// Takes new connections.
    Active,
    /// Was replaced: takes new connections only where no active lane can.
    Draining,
}

/// Limits by the config.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Active lanes at once.
    pub(super) sessions: usize,
    /// How long an outage may last.
    pub(super) reconnect: Duration,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action<L> {
    /// Open a lane; answer with [`Lifecycle::on_opened`] or [`Lifecycle::on_open_failed`].
    Open,
    /// Probe whether the session of this lane may be resumed, instead of a probe under way; answer with
    /// [`Lifecycle::on_probed`].
    ProbeResume(L),
    /// Report to the runner.
    Notify(PathChange),
    /// Call [`Lifecycle::on_drained`] once this lane, which was replaced, carries no connection.
    Drain(L),
    /// The same again: there was a new connection in between.
    KeepDraining(L),
    /// This lane is active again.
    Undrain(L),
    /// Close this lane, which carries no connection.
    Close(L),
    /// Close this lane, whose other end has not answered for the time of an outage, with what it carries.
    Abandon(L),
    /// Give up the tunnel. The last action.
    GiveUp(LaneError),
}

/// The state of the path below all lanes.
#[derive(Clone, Debug)]
pub(super) enum PathHealth {
    /// A lane has a WebSocket.
    Up,
    /// None has.
    Down {
        /// Why, if an open lane knows.
        reason: Option<String>,
        /// When the last one was lost, if the service has closed each in order, so that their sessions may be resumed
        /// within a moment.
        closed_since: Option<Instant>,
    },
}

/// Whether sessions may be resumed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ResumePermission {
    /// Or the call did not tell.
    Granted,
    /// Sessions end with their channel, so lanes need replacements.
    Denied,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum OpenState {
    Idle,
    Opening,
}

#[derive(Clone, Copy, Debug)]
enum Resumption {
    Unknown,
    /// What was known before holds until the answer.
    Probing(Option<ResumePermission>),
    Known(ResumePermission),
}

/// What the runner knows of the path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reported {
    Recovered,
    Degraded,
}

#[derive(Debug)]
enum Health {
    Ok,
    /// There is no lane.
    Outage(Outage),
    /// There is a lane again, since this time. If it is lost soon, the outage goes on.
    Recovering(Outage, Instant),
    /// The tunnel was given up.
    Failed,
}

#[derive(Debug)]
struct Outage {
    deadline: Instant,
    last: LaneError,
    backoff: Backoff,
}

impl<L: LaneHandle> Lifecycle<L> {
    /// Without a lane, until [`add_first`](Self::add_first). `seed`: of the random part of delays.
    pub(super) fn new(now: Instant, limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            channel_lives: ChannelLives::default(),
            lanes: Vec::new(),
            open_state: OpenState::Idle,
            not_before: now,
            add_backoff: None,
            logins_refused: 0,
            demand: Demand::default(),
            resumption: Resumption::Unknown,
            probed: None,
            reported: Reported::Recovered,
            degraded_at: None,
            health: Health::Ok,
            seed,
            actions: VecDeque::new(),
        }
    }

    /// Adds the lane that the start has opened.
    pub(super) fn add_first(&mut self, lane: L) {
        self.push(lane);
    }

    /// The open lanes.
    pub(super) fn lanes(&self) -> &[Entry<L>] {
        &self.lanes
    }

    /// For how long the service is expected to leave the data channel of `lane` open.
    pub(super) fn channel_life(&self, lane: &L) -> Duration {
        self.channel_lives.of(lane.is_signed()).expected()
    }

    /// Whether the runner knows that no lane is up.
    pub(super) fn is_degraded(&self) -> bool {
        self.reported == Reported::Degraded
    }

    /// Removes and returns all lanes.
    pub(super) fn take_lanes(&mut self) -> Vec<L> {
        mem::take(&mut self.lanes).into_iter().map(|entry| entry.lane).collect()
    }

    /// The number of active lanes.
    pub(super) fn active(&self) -> usize {
        self.lanes.len() - self.draining().count()
    }

    /// A lane was opened.
    pub(super) fn on_opened(&mut self, now: Instant, lane: L) {
        self.open_state = OpenState::Idle;
        self.add_backoff = None;
        self.logins_refused = 0;
        if self.lanes.is_empty() {
            self.on_outage_over(now);
        }
        let replaced = self.due(now).filter(|_| self.resumption.is_denied()).cloned();
        self.push(lane);
        // Only the first lane after an outage ends it, not a replacement.
        self.health = match mem::replace(&mut self.health, Health::Ok) {
            Health::Outage(outage) => Health::Recovering(outage, now),
            health => health,
        };
        let stalled = self.lanes.iter().filter(|entry| entry.stall.is_some());
        let stalled = stalled.filter(|entry| entry.state == LaneState::Active);
        let replaced: Vec<_> = stalled.map(|entry| entry.lane.clone()).chain(replaced).collect();
        for old in replaced {
            self.set_state(old.number(), LaneState::Draining);
            self.actions.push_back(Action::Drain(old));
        }
    }

    /// A lane could not be opened.
    pub(super) fn on_open_failed(&mut self, now: Instant, error: LaneError) {
        self.open_state = OpenState::Idle;
        let is_refused = error.is_login_refused() && self.logins_refused < LOGIN_RETRIES;
        self.logins_refused += u32::from(is_refused);
        let is_stalled = self.usable() == 0 && self.lanes.iter().any(|entry| entry.stall.is_some());
        let Health::Outage(outage) = &mut self.health else {
            if is_refused || is_stalled && error.is_transient() {
                warn!(%error, "a session in place of another could not be opened, retrying");
                self.not_before = now + if is_refused { LOGIN_DELAY } else { STALLED_DELAY };
                return;
            }
            warn!(%error, "a further session could not be opened; connections share the open ones");
            self.seed = self.seed.wrapping_add(1);
            let seed = self.seed;
            let backoff = self.add_backoff.get_or_insert_with(|| Backoff::seeded(ADD_DELAY, seed));
            self.not_before = now + backoff.next_delay();
            self.on_lane_refused(now);
            return;
        };
        let delay = if is_refused {
            // After a reboot, keys may come back later than sshd.
            LOGIN_DELAY
        } else if error.is_transient() {
            outage.backoff.next_delay()
        } else {
            self.give_up(error);
            return;
        };
        warn!(%error, "a new session could not be opened, retrying");
        outage.last = error;
        self.not_before = now + delay;
        self.give_up_if_over(self.not_before);
    }

    /// The lane of this number is over for `reason`. `disconnected`: the loss of its WebSocket, if it had none at the
    /// end. Returns the lane, if it was open.
    pub(super) fn on_ended(
        &mut self,
        now: Instant,
        number: u64,
        disconnected: Option<Disconnected>,
        reason: LaneError,
    ) -> Option<L> {
        let entry = self.remove(number)?;
        if matches!(reason, LaneError::Channel(ChannelEnd::NotResumable(_))) {
            self.on_probed(ResumePermission::Denied);
        }
        let signed = entry.lane.is_signed();
        match disconnected.as_ref().map(|disconnected| disconnected.loss) {
            Some(PathLoss::ClosedByService { age }) => {
                self.channel_lives.of_mut(signed).on_closed(now, age);
            }
            Some(PathLoss::Broken) | None => (),
        }
        match entry.state {
            LaneState::Active => warn!(lane = number, %reason, "lane lost"),
            LaneState::Draining => debug!(lane = number, %reason, "drained lane ended"),
        }
        if self.lanes.is_empty() {
            let stalled = entry.stall.map_or(now, |stall| stall.since);
            let began = disconnected.map_or(stalled, |disconnected| disconnected.since);
            self.on_outage(now, began, reason);
        }
        Some(entry.lane)
    }

    /// A draining lane carried no connection for a moment; it has `connections` now.
    pub(super) fn on_drained(&mut self, number: u64, connections: usize) {
        let is_drained =
            |entry: &&Entry<L>| entry.lane.number() == number && entry.state == LaneState::Draining;
        if let Some(entry) = self.lanes.iter().find(is_drained) {
            self.close(entry.lane.clone(), connections);
        }
    }

    /// The other end of a lane does not answer, though its WebSocket is up.
    pub(super) fn on_stalled(&mut self, now: Instant, number: u64, stall: Stall) {
        warn!(lane = number, reason = %stall.silent, "lane stalled");
        self.set_stall(number, Some(stall));
        self.not_before = self.not_before.min(now);
        self.assign_lanes(now);
    }

    /// It answers again.
    pub(super) fn on_answering(&mut self, now: Instant, number: u64) {
        debug!(lane = number, "lane answers again");
        self.set_stall(number, None);
        self.assign_lanes(now);
    }

    /// The answer of a probe.
    pub(super) fn on_probed(&mut self, permission: ResumePermission) {
        self.resumption = Resumption::Known(permission);
        for entry in &mut self.lanes {
            entry.may_be_resumed = permission == ResumePermission::Granted;
        }
    }

    /// Returns the next action, if there is one.
    #[must_use]
    pub(super) fn poll_action(&mut self, now: Instant, path: &PathHealth) -> Option<Action<L>> {
        self.give_up_if_over(now);
        if matches!(self.health, Health::Failed) {
            return self.actions.pop_front();
        }
        if self.actions.is_empty() {
            self.report(now, path);
        }
        if self.actions.is_empty() {
            self.learn_from_outlived(now);
            self.abandon_stalled(now);
        }
        if self.actions.is_empty() {
            self.open_if_needed(now);
            self.assign_lanes(now);
        }
        self.actions.pop_front()
    }

    /// Returns the next deadline after `now`. Pass the same `now` as to the last `poll_action`, so that no deadline in
    /// between is skipped.
    #[must_use]
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let outage = match &self.health {
            Health::Outage(outage) => Some(outage.deadline),
            Health::Ok | Health::Recovering(..) => None,
            Health::Failed => return None,
        };
        let replaced = self.replaceable().map(|lane| self.replaced_at(lane));
        let outlived = self.draining().map(|lane| self.outlived_at(lane));
        let deadlines = [Some(self.not_before), outage, self.degraded_at, self.wait_over()];
        let deadlines = deadlines.into_iter().flatten();
        let abandoned = self.lanes.iter().filter_map(|entry| self.abandoned_at(entry));
        let deadlines = deadlines.chain(replaced).chain(outlived).chain(abandoned);
        deadlines.filter(|deadline| *deadline > now).min()
    }

    /// Reports that the last path is down, whatever is done about it, and that a lane is up again.
    fn report(&mut self, now: Instant, path: &PathHealth) {
        self.degraded_at = None;
        let change = match (self.reported, path) {
            (Reported::Recovered, PathHealth::Down { closed_since: Some(since), .. })
                if now < *since + RESUMED_WITHIN =>
            {
                self.degraded_at = Some(*since + RESUMED_WITHIN);
                return;
            }
            (Reported::Recovered, PathHealth::Down { reason, .. }) => {
                self.reported = Reported::Degraded;
                let last = || match &self.health {
                    Health::Outage(outage) | Health::Recovering(outage, _) => {
                        Some(outage.last.to_string())
                    }
                    Health::Ok | Health::Failed => None,
                };
                PathChange::Degraded(reason.clone().or_else(last).unwrap_or_default())
            }
            (Reported::Degraded, PathHealth::Up) => {
                self.reported = Reported::Recovered;
                PathChange::Recovered
            }
            (Reported::Recovered, PathHealth::Up)
            | (Reported::Degraded, PathHealth::Down { .. }) => return,
        };
        self.actions.push_back(Action::Notify(change));
    }

    /// Expects a longer life of channels like those of drained lanes that have outlived it.
    fn learn_from_outlived(&mut self, now: Instant) {
        let outlived = |this: &Self| {
            this.draining().find(|lane| this.outlived_at(lane) <= now).map(L::is_signed)
        };
        while let Some(signed) = outlived(self) {
            self.channel_lives.of_mut(signed).on_outlived();
        }
    }

    /// Gives up the lanes that have been stalled for as long as an outage may last.
    fn abandon_stalled(&mut self, now: Instant) {
        while let Some((number, stall)) = self.overlong_stall(now) {
            let Some(entry) = self.remove(number) else { return };
            self.actions.push_back(Action::Abandon(entry.lane));
            if self.lanes.is_empty() {
                self.on_outage(now, stall.since, LaneError::Stalled { silent: stall.silent });
            }
        }
    }

    fn overlong_stall(&self, now: Instant) -> Option<(u64, Stall)> {
        let is_over = |entry: &&Entry<L>| self.abandoned_at(entry).is_some_and(|at| at <= now);
        let entry = self.lanes.iter().find(is_over)?;
        Some((entry.lane.number(), entry.stall?))
    }

    fn abandoned_at(&self, entry: &Entry<L>) -> Option<Instant> {
        Some(entry.stall?.since + self.limits.reconnect)
    }

    fn open_if_needed(&mut self, now: Instant) {
        if self.open_state == OpenState::Opening || now < self.not_before {
            return;
        }
        let due = self.due(now).cloned();
        if let Some(lane) = &due
            && self.probed != Some(lane.number())
        {
            // The permission may have been granted or withdrawn meanwhile.
            self.probed = Some(lane.number());
            self.resumption = Resumption::Probing(self.resumption.permission());
            self.actions.push_back(Action::ProbeResume(lane.clone()));
            return;
        }
        let denied = matches!(self.resumption, Resumption::Known(ResumePermission::Denied));
        let replace = due.is_some() && denied;
        if self.usable() == 0 || replace || self.lacks_lanes() {
            self.open_state = OpenState::Opening;
            self.actions.push_back(Action::Open);
        }
    }

    /// The deadline counts from the loss of the WebSocket, not from when resuming was given up; but a new session has
    /// [`NEW_SESSION_SHARE`] of the time in any case.
    fn on_outage(&mut self, now: Instant, disconnected: Instant, reason: LaneError) {
        let outage = match mem::replace(&mut self.health, Health::Ok) {
            Health::Recovering(mut outage, recovered) if now - recovered < STABLE_AFTER => {
                self.not_before = now + outage.backoff.next_delay();
                // Only time without a lane counts.
                outage.deadline += now - recovered;
                outage.last = reason;
                outage
            }
            _ => {
                self.not_before = now;
                if self.reported == Reported::Degraded {
                    // Until now connections only paused; now they are reset, and this is why.
                    let degraded = PathChange::Degraded(reason.to_string());
                    self.actions.push_back(Action::Notify(degraded));
                }
                let reconnect = self.limits.reconnect;
                let deadline = (disconnected + reconnect).max(now + reconnect / NEW_SESSION_SHARE);
                self.seed = self.seed.wrapping_add(1);
                let backoff = Backoff::seeded(FIRST_DELAY, self.seed);
                Outage { deadline, last: reason, backoff }
            }
        };
        self.health = Health::Outage(outage);
    }

    /// Closes a drained lane, unless it is needed still.
    fn close(&mut self, lane: L, connections: usize) {
        let number = lane.number();
        let action = if self.active() == 0 {
            // Its replacement was lost: it is the only lane, until it is replaced again.
            self.set_state(number, LaneState::Active);
            Action::Undrain(lane)
        } else if connections > 0 {
            // A connection chose it just before it was replaced.
            Action::KeepDraining(lane)
        } else {
            self.remove(number);
            Action::Close(lane)
        };
        self.actions.push_back(action);
    }

    /// Gives up if no time of the outage is left at `then`.
    fn give_up_if_over(&mut self, then: Instant) {
        self.health = match mem::replace(&mut self.health, Health::Failed) {
            Health::Outage(outage) if outage.deadline <= then => {
                return self.give_up(outage.into_error());
            }
            health => health,
        };
    }

    fn give_up(&mut self, error: LaneError) {
        self.health = Health::Failed;
        self.actions.push_back(Action::GiveUp(error));
    }

    fn push(&mut self, lane: L) {
        let (state, may_be_resumed, stall) = (LaneState::Active, false, None);
        self.lanes.push(Entry { lane, state, may_be_resumed, stall });
    }

    /// The oldest lane that needs a replacement now, unless its session may be resumed.
    fn due(&self, now: Instant) -> Option<&L> {
        let due = self.replaceable().filter(|lane| self.replaced_at(lane) <= now);
        due.min_by_key(|lane| lane.opened_at())
    }

    /// The active lanes that are not known to need no replacement.
    fn replaceable(&self) -> impl Iterator<Item = &L> {
        let is_replaceable =
            |entry: &&Entry<L>| entry.state == LaneState::Active && !entry.may_be_resumed;
        self.lanes.iter().filter(is_replaceable).map(|entry| &entry.lane)
    }

    fn draining(&self) -> impl Iterator<Item = &L> {
        let draining = self.lanes.iter().filter(|entry| entry.state == LaneState::Draining);
        draining.map(|entry| &entry.lane)
    }

    /// The number of active lanes whose other end answers, as far as is known.
    fn usable(&self) -> usize {
        let is_usable =
            |entry: &&Entry<L>| entry.state == LaneState::Active && entry.stall.is_none();
        self.lanes.iter().filter(is_usable).count()
    }

    fn set_stall(&mut self, number: u64, stall: Option<Stall>) {
        if let Some(entry) = self.lanes.iter_mut().find(|entry| entry.lane.number() == number) {
            entry.stall = stall;
        }
    }

    fn set_state(&mut self, number: u64, state: LaneState) {
        if let Some(entry) = self.lanes.iter_mut().find(|entry| entry.lane.number() == number) {
            entry.state = state;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Entry<L>> {
        let index = self.lanes.iter().position(|entry| entry.lane.number() == number)?;
        self.on_lane_gone(number);
        Some(self.lanes.remove(index))
    }

    /// When a lane that cannot be resumed is replaced: early enough for several attempts, and late enough that few
    /// connections live from then to the close.
    fn replaced_at(&self, lane: &L) -> Instant {
        lane.opened_at() + self.channel_life(lane) * 5 / 6
    }

    /// When a draining lane has shown that channels live longer than expected.
    fn outlived_at(&self, lane: &L) -> Instant {
        lane.opened_at() + self.channel_life(lane) * 11 / 10
    }
}

impl Resumption {
    /// The last known permission.
    fn permission(self) -> Option<ResumePermission> {
        match self {
            Self::Unknown => None,
            Self::Probing(permission) => permission,
            Self::Known(permission) => Some(permission),
        }
    }

    fn is_denied(self) -> bool {
        self.permission() == Some(ResumePermission::Denied)
    }
}

impl Outage {
    /// Why the tunnel is given up.
    fn into_error(self) -> LaneError {
        match self.last {
            // Explains better than a lost path what to change.
            LaneError::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => {
                error.into()
            }
            last => LaneError::NotReplaced(Box::new(last)),
        }
    }
}

/// A session whose channel the service has closed in order is not reported as degraded before this time: resuming takes
/// a fraction of a second. Our choice.
const RESUMED_WITHIN: Duration = Duration::from_secs(2);

/// Between attempts to replace the last lane while it is stalled. Our choice: with the time of an opening, a new lane is
/// there within 2 s of the agent's return.
const STALLED_DELAY: Duration = Duration::from_secs(1);

/// A login that is refused within an outage is tried again so many times.
const LOGIN_RETRIES: u32 = 3;

/// And so long after the refusal. All logins through SSM come from 127.0.0.1, and sshd's penalties for refused ones
/// (`PerSourcePenalties`) hit every job on the bastion.
const LOGIN_DELAY: Duration = Duration::from_secs(15);

/// Before the second attempt to end an outage.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// After a further lane could not be opened, before the random part.
const ADD_DELAY: Duration = Duration::from_secs(5);

/// A lane that lasts this long has ended the outage before it.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A new session has `reconnect` divided by this, even if resuming the old one took all of it.
const NEW_SESSION_SHARE: u32 = 6;

#[cfg(test)]
mod tests;
