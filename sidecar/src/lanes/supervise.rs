//! When lanes are opened, replaced and let go.
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

use std::{future::pending, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::{Change, Lane, LaneError, Lanes, session_channel::END_BOUND, staying};
use crate::{pauses::Pauses, session::ApiErrorKind};

/// The loop that keeps lanes open; it alone opens further ones.
pub(super) struct Supervisor<'a, F> {
    lanes: &'a Lanes,
    on_change: F,
    /// Each lane's end, with its reason.
    endings: FuturesUnordered<BoxFuture<'a, (Arc<Lane>, LaneError)>>,
    /// The end of each leaving lane's last connection.
    departures: FuturesUnordered<BoxFuture<'a, Arc<Lane>>>,
    /// The lane that is being opened.
    opening: Option<BoxFuture<'a, Result<Lane, LaneError>>>,
    /// The question whether sessions may be resumed.
    probe: Option<BoxFuture<'a, bool>>,
    /// Number of the lane for whose succession that was asked again.
    asked_again: u64,
    /// Sessions end with their channel, so lanes need successors.
    perishable: bool,
    /// A connection would have liked a lane of its own.
    wanted: bool,
    /// The runner was told that no lane carries bytes.
    degraded: bool,
    /// There is no lane at all.
    outage: Option<Outage>,
    /// No lane is opened before.
    not_before: Instant,
}

#[derive(Debug)]
struct Outage {
    deadline: Instant,
    /// When a lane was open again: soon lost too, it has mended nothing.
    mended: Option<Instant>,
    last: LaneError,
    pauses: Pauses,
}

impl<'a, F: Fn(Change)> Supervisor<'a, F> {
    pub(super) fn new(lanes: &'a Lanes, on_change: F) -> Self {
        let mut supervisor = Self {
            lanes,
            on_change,
            endings: FuturesUnordered::new(),
            departures: FuturesUnordered::new(),
            opening: None,
            probe: None,
            asked_again: 0,
            degraded: false,
            perishable: false,
            wanted: false,
            outage: None,
            not_before: Instant::now(),
        };
        let open = lanes.open.borrow().clone();
        if let Some(first) = open.first() {
            supervisor.ask_about(first);
        }
        for lane in open {
            supervisor.watch(lane);
        }
        supervisor
    }

    /// Runs until the last lane is lost and cannot be replaced; returns why. Cancel-safe.
    pub(super) async fn run(mut self) -> LaneError {
        loop {
            if let Err(error) = self.step().await {
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<(), LaneError> {
        let is_over =
            |outage: &mut Outage| outage.mended.is_none() && outage.deadline <= Instant::now();
        if let Some(outage) = self.outage.take_if(is_over) {
            return Err(outage.give_up());
        }
        self.announce();
        self.open_if_needed();
        let next_turn = self.next_turn();
        tokio::select! {
            Some((lane, reason)) = self.endings.next() => self.on_ended(&lane, reason),
            Some(lane) = self.departures.next() => self.let_go(&lane),
            outcome = completed(&mut self.opening) => return self.on_opened(outcome),
            allowed = completed(&mut self.probe) => self.perishable = !allowed,
            () = self.lanes.wanted.notified() => self.wanted = true,
            () = self.lanes.needs.path_changed.notified() => (),
            () = sleep_until(next_turn) => (),
        }
        Ok(())
    }

    /// Tells when the last path breaks, whatever is done about it, and when bytes are carried again.
    fn announce(&mut self) {
        let degraded = self.lanes.up() == 0;
        if degraded == self.degraded {
            return;
        }
        self.degraded = degraded;
        (self.on_change)(if degraded {
            let why = |lane: &Arc<Lane>| {
                let broken = lane.broken().map(|broken| broken.reason);
                broken.or_else(|| Some(lane.driver().try_ended()?.to_string()))
            };
            let broken = self.lanes.open.borrow().iter().find_map(why);
            let lost = || Some(self.outage.as_ref()?.last.to_string());
            Change::Degraded(broken.or_else(lost).unwrap_or_default())
        } else {
            Change::Recovered
        });
    }

    /// Begins to open a lane if one is needed and none is being opened.
    fn open_if_needed(&mut self) {
        if self.opening.is_some() || Instant::now() < self.not_before {
            return;
        }
        let open = self.lanes.open.borrow().clone();
        if let Some(due) = self.due(&open)
            && self.asked_again != due.number
        {
            // The customer has had time to allow it.
            self.asked_again = due.number;
            self.ask_about(due);
        }
        let succession = self.probe.is_none() && self.due(&open).is_some();
        let staying = staying(&open);
        self.wanted &= staying < self.lanes.needs.sessions;
        if staying == 0 || succession || self.wanted {
            let number = self.lanes.number();
            self.opening = Some(Lane::open(number, &self.lanes.needs, |_| ()).boxed());
        }
    }

    /// When the clock alone may make a difference.
    fn next_turn(&self) -> Instant {
        let now = Instant::now();
        let held_back = (self.not_before > now).then_some(self.not_before);
        let outage = self.outage.as_ref().filter(|outage| outage.mended.is_none());
        let outage = outage.map(|outage| outage.deadline);
        let oldest = oldest(&self.lanes.open.borrow()).map(Arc::clone);
        let succession = oldest
            .filter(|_| self.perishable)
            .map(|lane| lane.opened() + self.lanes.successor_after())
            .filter(|due| *due > now);
        let turns = [held_back, outage, succession];
        turns.into_iter().flatten().min().unwrap_or(now + self.lanes.needs.channel_life)
    }

    /// The lane that needs a successor now.
    fn due<'b>(&self, open: &'b [Arc<Lane>]) -> Option<&'b Arc<Lane>> {
        let after = self.lanes.successor_after();
        oldest(open).filter(|lane| self.perishable && lane.opened().elapsed() >= after)
    }

    fn on_opened(&mut self, outcome: Result<Lane, LaneError>) -> Result<(), LaneError> {
        let error = match outcome {
            Ok(lane) => {
                self.on_admitted(lane);
                return Ok(());
            }
            Err(error) => error,
        };
        self.wanted = false;
        let Some(mut outage) = self.outage.take_if(|outage| outage.mended.is_none()) else {
            warn!(%error, "a further session could not be opened; connections share those there are");
            self.not_before = Instant::now() + ADD_PAUSE;
            return Ok(());
        };
        if !error.may_pass() {
            return Err(error);
        }
        warn!(%error, "no new session yet");
        outage.last = error;
        self.not_before = Instant::now() + outage.pauses.next_pause();
        if self.not_before >= outage.deadline {
            return Err(outage.give_up());
        }
        self.outage = Some(outage);
        Ok(())
    }

    fn on_admitted(&mut self, lane: Lane) {
        self.wanted = false;
        let replaced = self.due(&self.lanes.open.borrow()).map(Arc::clone);
        let lane = self.lanes.admit(lane);
        info!(lane = lane.number, "a further session is open");
        // A successor mends nothing: only the first lane after an outage does.
        if let Some(outage) = self.outage.as_mut().filter(|outage| outage.mended.is_none()) {
            outage.mended = Some(Instant::now());
            // What could be resumed would not have been replaced.
            self.ask_about(&lane);
        }
        self.watch(lane);
        if let Some(old) = replaced {
            let connections = old.ssh.channels();
            info!(lane = old.number, connections, "lane is succeeded before its channel is closed");
            old.set_leaving(true);
            self.departures.push(self.lanes.departed(old).boxed());
        }
    }

    fn on_ended(&mut self, lane: &Arc<Lane>, reason: LaneError) {
        if lane.is_leaving() {
            debug!(lane = lane.number, %reason, "succeeded lane ended");
        } else {
            warn!(lane = lane.number, %reason, "lane lost");
        }
        self.lanes.retire(lane);
        if self.lanes.open.borrow().is_empty() {
            self.on_outage(lane, reason);
        }
    }

    /// Counts from when the path broke, not from when the attempts to resume it were given up; but a new
    /// session gets a chance in any case.
    fn on_outage(&mut self, lane: &Lane, reason: LaneError) {
        let now = Instant::now();
        let reconnect = self.lanes.needs.reconnect;
        let unmended =
            |outage: &Outage| outage.mended.is_none_or(|mended| mended.elapsed() < STEADY);
        let outage = if let Some(mut outage) = self.outage.take().filter(unmended) {
            self.not_before = now + outage.pauses.next_pause();
            // Only time without a path is used up, however often it breaks.
            let carried = outage.mended.take().map_or(Duration::ZERO, |mended| mended.elapsed());
            outage.deadline += carried;
            outage.last = reason;
            outage
        } else {
            self.not_before = now;
            if self.degraded {
                // Until now it was a pause; what cannot be resumed is cut, and here is why.
                (self.on_change)(Change::Degraded(reason.to_string()));
            }
            let since = lane.broken().map_or(now, |broken| Instant::from_std(broken.since));
            let deadline = (since + reconnect).max(now + reconnect / 6);
            Outage { deadline, mended: None, last: reason, pauses: Pauses::new(FIRST_PAUSE) }
        };
        self.outage = Some(outage);
    }

    /// Ends a lane that was succeeded, once it carries no connection any more or has to go.
    fn let_go(&self, lane: &Arc<Lane>) {
        if staying(&self.lanes.open.borrow()) == 0 {
            // Its successor was lost: this one is all there is, until it is succeeded again.
            lane.set_leaving(false);
        } else if lane.ssh.channels() > 0 && lane.opened().elapsed() < self.lanes.ended_after() {
            // Chosen just before it was succeeded.
            self.departures.push(self.lanes.departed(Arc::clone(lane)).boxed());
        } else if self.lanes.retire(lane) {
            let connections = lane.ssh.channels();
            info!(lane = lane.number, connections, "succeeded lane is ended");
            let lane = Arc::clone(lane);
            let shutdown = &self.lanes.needs.shutdown;
            shutdown.spawn_to_its_end(async move { lane.terminate(END_BOUND).await });
        }
    }

    fn watch(&self, lane: Arc<Lane>) {
        let ending = async move {
            let reason = lane.ended().await;
            (lane, reason)
        };
        self.endings.push(ending.boxed());
    }

    fn ask_about(&mut self, lane: &Arc<Lane>) {
        self.probe = Some(may_resume(self.lanes, Arc::clone(lane)).boxed());
    }
}

impl Outage {
    fn give_up(self) -> LaneError {
        match self.last {
            // Says better than a lost path what to do.
            LaneError::Api(error) if error.kind() == ApiErrorKind::CredentialsExpired => {
                error.into()
            }
            last => LaneError::NotReplaced(Box::new(last)),
        }
    }
}

impl Lanes {
    /// Age at which a lane whose session cannot be resumed gets a successor: there is time for several
    /// attempts, and few connections live from then to the close.
    fn successor_after(&self) -> Duration {
        self.needs.channel_life * 5 / 6
    }

    /// Age at which a succeeded lane is ended whatever it carries.
    fn ended_after(&self) -> Duration {
        self.needs.channel_life * 59 / 60
    }

    /// Completes when a succeeded lane carries nothing any more, or it is time to end it.
    async fn departed(&self, lane: Arc<Lane>) -> Arc<Lane> {
        tokio::select! {
            () = lane.ssh.emptied() => (),
            () = sleep_until(lane.opened() + self.ended_after()) => (),
        }
        lane
    }
}

/// The oldest of those that take new connections.
fn oldest(open: &[Arc<Lane>]) -> Option<&Arc<Lane>> {
    open.iter().filter(|lane| !lane.is_leaving()).min_by_key(|lane| lane.opened())
}

/// Asks for leave to resume a session that is open. Where the answer is anything but a refusal, the close of
/// its channel will show.
async fn may_resume(lanes: &Lanes, lane: Arc<Lane>) -> bool {
    loop {
        match lanes.needs.api.resume(lane.session_id()).await {
            Ok(_) => return true,
            Err(error) if error.kind() == ApiErrorKind::AccessDenied => {
                let minutes = lanes.needs.channel_life.as_secs() / 60;
                warn!(
                    %error,
                    minutes,
                    "sessions cannot be resumed: a broken path resets connections, and those older than \
                     a data channel's life are cut; allow `ssm:ResumeSession` on \
                     `arn:aws:ssm:*:*:session/${{aws:userid}}-*`"
                );
                return false;
            }
            Err(error) if error.may_pass() => {
                debug!(%error, "not known yet whether sessions can be resumed");
                sleep(PROBE_PAUSE).await;
            }
            Err(error) => {
                debug!(%error, "not known whether sessions can be resumed");
                return true;
            }
        }
    }
}

/// Completes with the future in `slot`, and empties it; never while it is empty. Cancel-safe.
async fn completed<T>(slot: &mut Option<BoxFuture<'_, T>>) -> T {
    let Some(future) = slot else { return pending().await };
    let output = future.await;
    *slot = None;
    output
}

/// Before the second attempt to end an outage.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Pause after a lane that nobody waits for could not be opened.
const ADD_PAUSE: Duration = Duration::from_secs(5);

/// A lane that lasts so long has ended the outage before it.
const STEADY: Duration = Duration::from_secs(10);

/// Before the question whether sessions may be resumed is repeated.
const PROBE_PAUSE: Duration = Duration::from_secs(30);
