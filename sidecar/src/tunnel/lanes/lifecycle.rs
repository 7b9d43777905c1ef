//! Decides when lanes are opened, replaced and let go: what happens and the time come in, what to do comes
//! out. No IO and no clock.
//!
//! The service closes each data channel after about an hour. A session that may be resumed goes on in a
//! new one and nobody notices. Where `ssm:ResumeSession` is not allowed the session ends there, so a
//! successor is **made before it breaks**: new connections go to it, those of the old lane stay where they
//! are, and a lane that nobody uses any more is ended at once. A minute before the close the old lane is
//! ended with what it still carries: the close would cut that anyway, and leave a session, its connection
//! to sshd and those to the database until the idle time-out, since without its channel a session can be
//! ended by `ssm:TerminateSession` alone.
//!
//! Whether sessions may be resumed is asked right after the start, by a `ResumeSession` on the session that is
//! open: its answer opens nothing, it only says whether the call is allowed, and the customer hears of the
//! missing permission while there is time to grant it. It is asked again before a successor is made and
//! after an outage.
//!
//! Lanes are opened one after another: an agent that is asked for several sessions at once begins them in
//! steps of a second (seen with the real agent).

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Change, LaneError};
use crate::{runtime::backoff::Pauses, session::ApiErrorKind};

/// The state machine. After each `on_…` and whenever [`poll_timeout`](Self::poll_timeout) is due, take
/// [`poll_action`](Self::poll_action) until there is nothing to do.
#[derive(Debug)]
pub(super) struct Upkeep {
    limits: Limits,
    /// Those that are open.
    lanes: Vec<Open>,
    opening: Opening,
    /// No lane is opened before.
    not_before: Instant,
    demand: Demand,
    resumption: Resumption,
    /// The lane for whose succession it was asked again whether sessions may be resumed.
    asked_again: Option<u64>,
    /// What the runner was told last.
    told: Told,
    standing: Standing,
    /// For the pauses of the next outage.
    seed: u64,
    actions: VecDeque<Action>,
}

/// What the document and the service allow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many lanes may be open at once, besides those that are succeeded.
    pub(super) sessions: usize,
    /// How long a broken path may take to come back.
    pub(super) reconnect: Duration,
    /// How long the service leaves a data channel open.
    pub(super) channel_life: Duration,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Open a further lane; ends with [`Upkeep::on_opened`] or [`Upkeep::on_open_failed`].
    Open,
    /// Ask whether the session of this lane may be resumed, instead of what is being asked; ends with
    /// [`Upkeep::on_answer`].
    Ask(u64),
    /// Tell the runner.
    Tell(Change),
    /// Keep new connections away from this lane, which has a successor, and say when it is
    /// [empty](Upkeep::on_emptied).
    Leave(u64),
    /// As before, say when this lane is empty.
    Linger(u64),
    /// Let new connections come to this lane again.
    Return(u64),
    /// End this lane, with what it still carries.
    Retire(u64),
    /// Give the tunnel up. Nothing follows.
    GiveUp(LaneError),
}

/// How things stand at this moment.
#[derive(Clone, Debug)]
pub(super) enum Path {
    /// A lane carries bytes.
    Whole,
    /// None does; why, where a lane that is still open knows.
    Broken(Option<String>),
}

/// Whether sessions may be resumed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// Or not known.
    Allowed,
    /// Sessions end with their channel, so lanes need successors.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    number: u64,
    opened: Instant,
    place: Place,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Takes new connections.
    Staying,
    /// Has a successor.
    Leaving,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Opening {
    Idle,
    Underway,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Demand {
    Met,
    /// A connection would have liked a lane of its own.
    Unmet,
}

#[derive(Clone, Copy, Debug)]
enum Resumption {
    /// What was known before holds until the answer.
    Asking(Answer),
    Known(Answer),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Recovered,
    Degraded,
}

#[derive(Debug)]
enum Standing {
    /// Nothing is to be mended.
    Sound,
    /// There is no lane at all.
    Lost(Outage),
    /// A lane is open again, since then: soon lost too, it has mended nothing.
    Mended(Outage, Instant),
    /// There is nothing to do any more.
    GivenUp,
}

#[derive(Debug)]
struct Outage {
    deadline: Instant,
    last: LaneError,
    pauses: Pauses,
}

impl Upkeep {
    /// Begins with `lanes`, the number of each and when it was opened. `seed` draws the pauses.
    pub(super) fn new(
        now: Instant,
        limits: Limits,
        seed: u64,
        lanes: impl IntoIterator<Item = (u64, Instant)>,
    ) -> Self {
        let staying = |(number, opened)| Open { number, opened, place: Place::Staying };
        let mut upkeep = Self {
            limits,
            lanes: lanes.into_iter().map(staying).collect(),
            opening: Opening::Idle,
            not_before: now,
            demand: Demand::Met,
            resumption: Resumption::Known(Answer::Allowed),
            asked_again: None,
            told: Told::Recovered,
            standing: Standing::Sound,
            seed,
            actions: VecDeque::new(),
        };
        if let Some(first) = upkeep.lanes.first() {
            upkeep.ask(first.number);
        }
        upkeep
    }

    /// A lane is open.
    pub(super) fn on_opened(&mut self, now: Instant, number: u64, opened: Instant) {
        self.opening = Opening::Idle;
        self.demand = Demand::Met;
        let succeeded = self.due(now).map(|lane| lane.number);
        self.lanes.push(Open { number, opened, place: Place::Staying });
        // A successor mends nothing: only the first lane after an outage does.
        self.standing = match mem::replace(&mut self.standing, Standing::Sound) {
            Standing::Lost(outage) => {
                // What could be resumed would not have been replaced.
                self.ask(number);
                Standing::Mended(outage, now)
            }
            standing => standing,
        };
        if let Some(old) = succeeded {
            self.set_place(old, Place::Leaving);
            self.actions.push_back(Action::Leave(old));
        }
    }

    /// A lane could not be opened.
    pub(super) fn on_open_failed(&mut self, now: Instant, error: LaneError) {
        self.opening = Opening::Idle;
        self.demand = Demand::Met;
        let Standing::Lost(outage) = &mut self.standing else {
            warn!(%error, "a further session could not be opened; connections share those there are");
            self.not_before = now + ADD_PAUSE;
            return;
        };
        if !error.may_pass() {
            self.give_up(error);
            return;
        }
        warn!(%error, "no new session yet");
        outage.last = error;
        self.not_before = now + outage.pauses.next_pause();
        self.give_up_if_over(self.not_before);
    }

    /// A lane is over for `reason`; its path, if it broke before that, did so at `broken`.
    pub(super) fn on_ended(
        &mut self,
        now: Instant,
        number: u64,
        broken: Option<Instant>,
        reason: LaneError,
    ) {
        match self.remove(number) {
            Some(Place::Staying) => warn!(lane = number, %reason, "lane lost"),
            Some(Place::Leaving) => debug!(lane = number, %reason, "succeeded lane ended"),
            None => return,
        }
        if self.lanes.is_empty() {
            self.on_outage(now, broken.unwrap_or(now), reason);
        }
    }

    /// A lane that is left carries no connection any more, or did so a moment ago: it has `connections` now.
    pub(super) fn on_emptied(&mut self, now: Instant, number: u64, connections: usize) {
        let is_left = |lane: &&Open| lane.number == number && lane.place == Place::Leaving;
        if let Some(lane) = self.lanes.iter().find(is_left).copied() {
            self.let_go(now, lane, connections);
        }
    }

    /// It is known whether sessions may be resumed.
    pub(super) fn on_answer(&mut self, answer: Answer) {
        self.resumption = Resumption::Known(answer);
    }

    /// A connection would have liked a lane of its own.
    pub(super) fn on_wanted(&mut self) {
        self.demand = Demand::Unmet;
    }

    /// Returns what is to be done next, if anything.
    #[must_use]
    pub(super) fn poll_action(&mut self, now: Instant, path: &Path) -> Option<Action> {
        self.give_up_if_over(now);
        if matches!(self.standing, Standing::GivenUp) {
            return self.actions.pop_front();
        }
        if self.actions.is_empty() {
            self.tell(path);
        }
        let overdue = self.leaving().find(|lane| self.ends(lane) <= now).copied();
        if self.actions.is_empty()
            && let Some(lane) = overdue
        {
            // Whatever it carries.
            self.let_go(now, lane, 0);
        }
        if self.actions.is_empty() {
            self.open_if_needed(now);
        }
        self.actions.pop_front()
    }

    /// Returns when the clock alone may make a difference; `now` as it was when there was nothing more to do,
    /// so that no turn comes in between.
    #[must_use]
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let outage = match &self.standing {
            Standing::Lost(outage) => Some(outage.deadline),
            Standing::Sound | Standing::Mended(..) => None,
            Standing::GivenUp => return None,
        };
        let succession = self
            .oldest()
            .filter(|_| self.resumption.answer() == Answer::Refused)
            .map(|lane| self.needs_successor(lane));
        let ends = self.leaving().map(|lane| self.ends(lane));
        let turns = [Some(self.not_before), outage, succession].into_iter().flatten().chain(ends);
        turns.filter(|turn| *turn > now).min()
    }

    /// Tells when the last path breaks, whatever is done about it, and when bytes are carried again.
    fn tell(&mut self, path: &Path) {
        let change = match (self.told, path) {
            (Told::Recovered, Path::Broken(reason)) => {
                self.told = Told::Degraded;
                let last = || match &self.standing {
                    Standing::Lost(outage) | Standing::Mended(outage, _) => {
                        Some(outage.last.to_string())
                    }
                    Standing::Sound | Standing::GivenUp => None,
                };
                Change::Degraded(reason.clone().or_else(last).unwrap_or_default())
            }
            (Told::Degraded, Path::Whole) => {
                self.told = Told::Recovered;
                Change::Recovered
            }
            (Told::Recovered, Path::Whole) | (Told::Degraded, Path::Broken(_)) => return,
        };
        self.actions.push_back(Action::Tell(change));
    }

    /// Begins to open a lane if one is needed and none is being opened.
    fn open_if_needed(&mut self, now: Instant) {
        if self.opening == Opening::Underway || now < self.not_before {
            return;
        }
        let due = self.due(now).map(|lane| lane.number);
        if let Some(number) = due
            && self.asked_again != due
        {
            // The customer has had time to allow it.
            self.asked_again = due;
            self.ask(number);
            return;
        }
        let succession = due.is_some() && matches!(self.resumption, Resumption::Known(_));
        let staying = self.staying();
        if staying >= self.limits.sessions {
            self.demand = Demand::Met;
        }
        if staying == 0 || succession || self.demand == Demand::Unmet {
            self.opening = Opening::Underway;
            self.actions.push_back(Action::Open);
        }
    }

    /// Counts from when the path broke, not from when the attempts to resume it were given up; but a new
    /// session gets a chance in any case.
    fn on_outage(&mut self, now: Instant, broken: Instant, reason: LaneError) {
        let outage = match mem::replace(&mut self.standing, Standing::Sound) {
            Standing::Mended(mut outage, mended) if now - mended < STEADY => {
                self.not_before = now + outage.pauses.next_pause();
                // Only time without a path is used up, however often it breaks.
                outage.deadline += now - mended;
                outage.last = reason;
                outage
            }
            _ => {
                self.not_before = now;
                if self.told == Told::Degraded {
                    // Until now it was a pause; what cannot be resumed is cut, and here is why.
                    let degraded = Change::Degraded(reason.to_string());
                    self.actions.push_back(Action::Tell(degraded));
                }
                let reconnect = self.limits.reconnect;
                let deadline = (broken + reconnect).max(now + reconnect / 6);
                self.seed = self.seed.wrapping_add(1);
                let pauses = Pauses::seeded(FIRST_PAUSE, self.seed);
                Outage { deadline, last: reason, pauses }
            }
        };
        self.standing = Standing::Lost(outage);
    }

    /// Ends a lane that was succeeded, once it carries no connection any more or has to go.
    fn let_go(&mut self, now: Instant, lane: Open, connections: usize) {
        let number = lane.number;
        let action = if self.staying() == 0 {
            // Its successor was lost: this one is all there is, until it is succeeded again.
            self.set_place(number, Place::Staying);
            Action::Return(number)
        } else if connections > 0 && now < self.ends(&lane) {
            // Chosen just before it was succeeded.
            Action::Linger(number)
        } else {
            self.remove(number);
            Action::Retire(number)
        };
        self.actions.push_back(action);
    }

    /// Gives up if the outage has no time left at `then`.
    fn give_up_if_over(&mut self, then: Instant) {
        self.standing = match mem::replace(&mut self.standing, Standing::GivenUp) {
            Standing::Lost(outage) if outage.deadline <= then => {
                return self.give_up(outage.reason());
            }
            standing => standing,
        };
    }

    fn give_up(&mut self, error: LaneError) {
        self.standing = Standing::GivenUp;
        self.actions.push_back(Action::GiveUp(error));
    }

    fn ask(&mut self, number: u64) {
        self.resumption = Resumption::Asking(self.resumption.answer());
        self.actions.push_back(Action::Ask(number));
    }

    /// The lane that needs a successor now.
    fn due(&self, now: Instant) -> Option<&Open> {
        let is_due = |lane: &&Open| self.needs_successor(lane) <= now;
        self.oldest().filter(is_due).filter(|_| self.resumption.answer() == Answer::Refused)
    }

    /// The oldest of those that take new connections.
    fn oldest(&self) -> Option<&Open> {
        let staying = self.lanes.iter().filter(|lane| lane.place == Place::Staying);
        staying.min_by_key(|lane| lane.opened)
    }

    fn staying(&self) -> usize {
        self.lanes.len() - self.leaving().count()
    }

    fn leaving(&self) -> impl Iterator<Item = &Open> {
        self.lanes.iter().filter(|lane| lane.place == Place::Leaving)
    }

    fn set_place(&mut self, number: u64, place: Place) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.number == number) {
            lane.place = place;
        }
    }

    fn remove(&mut self, number: u64) -> Option<Place> {
        let index = self.lanes.iter().position(|lane| lane.number == number)?;
        Some(self.lanes.remove(index).place)
    }

    /// When a lane whose session cannot be resumed gets a successor: there is time for several attempts, and
    /// few connections live from then to the close.
    fn needs_successor(&self, lane: &Open) -> Instant {
        lane.opened + self.limits.channel_life * 5 / 6
    }

    /// When a succeeded lane is ended whatever it carries.
    fn ends(&self, lane: &Open) -> Instant {
        lane.opened + self.limits.channel_life * 59 / 60
    }
}

impl Resumption {
    /// As far as is known.
    fn answer(self) -> Answer {
        match self {
            Self::Asking(answer) | Self::Known(answer) => answer,
        }
    }
}

impl Outage {
    /// Why the tunnel is given up.
    fn reason(self) -> LaneError {
        match self.last {
            // Says better than a lost path what to do.
            LaneError::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => {
                error.into()
            }
            last => LaneError::NotReplaced(Box::new(last)),
        }
    }
}

/// Before the second attempt to end an outage.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Pause after a lane that nobody waits for could not be opened.
const ADD_PAUSE: Duration = Duration::from_secs(5);

/// A lane that lasts so long has ended the outage before it.
const STEADY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
