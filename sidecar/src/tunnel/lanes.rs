//! One to N lanes, each an SSM session with the SSH connection in it: which lane takes a connection, and
//! what all of them add up to. When lanes are opened and replaced is decided in `upkeep`, and done in `supervise`.

mod config;
mod error;
mod host_key;
mod lane;
mod lifecycle;
mod open_session;
mod resume;
mod resume_policy;
mod supervisor;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use self::supervisor::Supervisor;
use crate::ssh::{Channel, OpenError};

pub use config::{Finding, Needs, Observer, Target};
pub use error::LaneError;
pub use host_key::Type as HostKeyType;
pub use lane::Lane;

/// All lanes of this process.
#[derive(Debug)]
pub struct Lanes {
    needs: Arc<Needs>,
    open: watch::Sender<Vec<Arc<Lane>>>,
    /// A connection would have liked a lane of its own.
    wanted: Notify,
    totals: Mutex<Totals>,
    next_number: AtomicU64,
    /// The connection that proved the target at the start, for the first client.
    proof: Mutex<Option<(Channel, Instant)>>,
}

/// Counters of lanes that are gone; those of open ones are added when asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// SSM sessions started.
    pub sessions: u64,
    /// Times a session was resumed on a new WebSocket.
    pub resumes: u64,
    /// Messages sent again, over all sessions.
    pub retransmissions: u64,
}

/// Why a connection did not get to the target.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unopened {
    /// Somebody said no.
    #[error(transparent)]
    Refused(#[from] OpenError),
    /// Nobody answered, on a path that was whole all the time.
    #[error("the target did not answer within {} s", .within.as_secs())]
    TimedOut {
        /// `timeouts.connect_s`.
        within: Duration,
    },
}

/// What happened to the path below open connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// No lane carries bytes at present.
    Degraded(String),
    /// A lane carries bytes again.
    Recovered,
}

impl Lanes {
    /// Begins with the lane that the start has opened.
    pub fn new(needs: Arc<Needs>, first: Arc<Lane>) -> Self {
        let totals = Mutex::new(Totals { sessions: 1, ..Totals::default() });
        let (open, _) = watch::channel(vec![first]);
        Self {
            needs,
            open,
            wanted: Notify::new(),
            totals,
            next_number: AtomicU64::new(2),
            proof: Mutex::new(None),
        }
    }

    /// Opens a channel to the target on the lane that carries the least, within `limit`.
    ///
    /// While no lane carries bytes it waits for one: the tunnel comes back or is given up, within
    /// `timeouts.reconnect_s`. `limit` counts from when the path is whole. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Unopened`] when the bastion or the target refuses, or nobody answers in time.
    pub async fn open(&self, originator: SocketAddr, limit: Duration) -> Result<Channel, Unopened> {
        if let Some(channel) = self.take_proof() {
            self.want_spare(None);
            return Ok(channel);
        }
        loop {
            let lane = self.least_loaded().await;
            self.want_spare(Some(&lane));
            let outcome = tokio::select! {
                outcome = self.open_on(&lane, originator) => outcome,
                () = lane.up_for(limit) => return Err(Unopened::TimedOut { within: limit }),
            };
            match outcome {
                // Lost between the choice and the opening: nothing was sent to the target yet.
                Err(OpenError::Lost(_)) => {
                    self.retire(&lane);
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    async fn open_on(&self, lane: &Lane, originator: SocketAddr) -> Result<Channel, OpenError> {
        let target = &self.needs.target;
        lane.ssh.open(&target.host, target.port, originator).await
    }

    /// Keeps the connection that proved the target, for the first client: a server that counts aborted
    /// connections is not charged for our question, and the first query saves a round trip.
    pub fn keep(&self, channel: Channel, opened: Instant) {
        *self.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some((channel, opened));
    }

    fn take_proof(&self) -> Option<Channel> {
        let (channel, opened) = self.proof.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (opened.elapsed() < PROOF_IS_FRESH && channel.is_open()).then_some(channel)
    }

    /// Closes the kept connection when it is no longer fresh; never completes. Cancel-safe.
    pub async fn forget_proof(&self) {
        sleep(PROOF_IS_FRESH).await;
        drop(self.proof.lock().unwrap_or_else(PoisonError::into_inner).take());
        std::future::pending::<()>().await;
    }

    /// Keeps lanes open, and makes them before they break, until one is wanted, lost and cannot be
    /// replaced: then returns why.
    ///
    /// `on_change` hears when the last lane is lost and when there is one again. Called once, for as long as
    /// the job lasts.
    ///
    /// Cancel-safe: a lane that is being opened is given up, and what was started of it is ended; those that
    /// are open stay.
    pub async fn supervise(&self, on_change: impl Fn(Change)) -> LaneError {
        Supervisor::new(self, on_change).run().await
    }

    /// Ends every session, all at once: by flag, each within `bound`, then by API where that is allowed.
    ///
    /// Cancel-safe: when dropped before its end, the sessions are ended by API in the background.
    pub async fn terminate(&self, bound: Duration) {
        drop(self.proof.lock().unwrap_or_else(PoisonError::into_inner).take());
        let lanes = self.open.send_replace(Vec::new());
        let endings: FuturesUnordered<_> = lanes
            .iter()
            .map(|lane| {
                self.count(lane);
                lane.terminate(bound)
            })
            .collect();
        endings.collect::<()>().await;
    }

    /// The smoothed round-trip time of each session by its number, where one was measured.
    pub fn round_trips(&self) -> Vec<(u64, Duration)> {
        let lanes = self.open.borrow();
        let rtt = |lane: &Arc<Lane>| Some((lane.number, lane.driver().statistics().smoothed_rtt?));
        lanes.iter().filter_map(rtt).collect()
    }

    /// Counters over all sessions so far.
    pub fn totals(&self) -> Totals {
        let mut totals = *self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for lane in self.open.borrow().iter() {
            totals.add(lane);
        }
        totals
    }

    /// Lanes that carry bytes at this moment. Zero while the path is broken.
    pub fn up(&self) -> usize {
        self.open.borrow().iter().filter(|lane| lane.is_up()).count()
    }

    /// The lane for a new connection: among those that stay and whose path is whole, others only where there is
    /// none, the one with the fewest downloads and uploads, then with the fewest connections.
    ///
    /// Those in bulk share the session's rate and stand in each other's way; any number that ask and wait do not.
    /// And a connection that has just ended counts for a moment still, which must not send the next one of the same
    /// client beside a download.
    async fn least_loaded(&self) -> Arc<Lane> {
        let mut open = self.open.subscribe();
        loop {
            let best = {
                let lanes = open.borrow_and_update();
                let load = |lane: &&Arc<Lane>| {
                    let (bulk, all) = (lane.ssh.channels_in_bulk(), lane.ssh.channels());
                    (lane.is_leaving(), !lane.is_up(), bulk, all)
                };
                lanes.iter().min_by_key(load).cloned()
            };
            if let Some(lane) = best {
                return lane;
            }
            if open.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks for a further lane unless an empty one is left beside `taken`: the next connection is to find
    /// a lane of its own, and none ever waits for one.
    fn want_spare(&self, taken: Option<&Arc<Lane>>) {
        let lanes = self.open.borrow();
        let is_spare = |lane: &&Arc<Lane>| {
            let is_taken = taken.is_some_and(|taken| Arc::ptr_eq(lane, taken));
            !is_taken && !lane.is_leaving() && lane.ssh.channels() == 0
        };
        if staying(&lanes) < self.needs.sessions && !lanes.iter().any(|lane| is_spare(&lane)) {
            self.wanted.notify_one();
        }
    }

    /// Takes a lane out of those that are open; false when it was not among them.
    fn retire(&self, lost: &Arc<Lane>) -> bool {
        let mut counted = false;
        self.open.send_if_modified(|lanes| {
            let before = lanes.len();
            lanes.retain(|lane| !Arc::ptr_eq(lane, lost));
            counted = lanes.len() < before;
            counted
        });
        if counted {
            self.count(lost);
        }
        counted
    }

    fn count(&self, lane: &Lane) {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(lane);
    }

    fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Relaxed)
    }

    fn admit(&self, lane: Lane) -> Arc<Lane> {
        let lane = Arc::new(lane);
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).sessions += 1;
        self.open.send_modify(|lanes| lanes.push(Arc::clone(&lane)));
        lane
    }
}

/// Lanes that take new connections.
fn staying(lanes: &[Arc<Lane>]) -> usize {
    lanes.iter().filter(|lane| !lane.is_leaving()).count()
}

impl Totals {
    fn add(&mut self, lane: &Lane) {
        self.resumes += lane.resumes();
        self.retransmissions += lane.driver().statistics().retransmissions;
    }
}

/// How long the connection that proved the target is worth handing on: servers give a new connection
/// about ten seconds to log in.
const PROOF_IS_FRESH: Duration = Duration::from_secs(4);
