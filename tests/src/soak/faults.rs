//! The faults of a soak, one after another, in an order that follows from the seed.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::emulator::{
    Action, AgentBreak, ApiFault, Break, Control, Failure, Journal, Link, Plan, Rng,
};

/// Injects the faults.
pub(super) struct FaultInjector<'a> {
    control: Control,
    journal: &'a Journal,
    rng: Rng,
    counts: BTreeMap<&'static str, u64>,
}

impl<'a> FaultInjector<'a> {
    pub(super) fn new(control: Control, journal: &'a Journal, seed: u64) -> Self {
        Self { control, journal, rng: Rng::new(seed), counts: BTreeMap::new() }
    }

    /// Runs until `end` and leaves no fault active; returns how often each was injected. `renew` gives the
    /// sidecar new keys.
    pub(super) async fn work(
        mut self,
        end: Instant,
        mut renew: impl AsyncFnMut(u64),
    ) -> BTreeMap<&'static str, u64> {
        for turn in 0.. {
            let peace = Duration::from_millis(1_500) + self.rng.up_to(Duration::from_secs(8));
            if Instant::now() + peace + LONGEST >= end {
                break;
            }
            sleep(peace).await;
            match self.rng.below(17) {
                0 => self.drop_sockets("socket closed", Break::Close).await,
                1 | 2 => self.drop_sockets("socket reset", Break::Reset).await,
                3 => self.drop_sockets("path silent", Break::Silence).await,
                4 => self.path("loss", Link::clean().dropping(0.1)).await,
                5 => self.path("duplication", Link::clean().duplicating(0.1)).await,
                6 => self.path("reordering", Link::clean().reordering(0.2)).await,
                7 => {
                    let link = Link::clean()
                        .delayed(Duration::from_millis(200), Duration::from_millis(200));
                    self.path("delay and jitter", link).await;
                }
                8 => self.damage("damaged frames", Link::clean().damaging(0.02)).await,
                9 => self.damage("truncated frames", Link::clean().truncating(0.02)).await,
                10 => {
                    let link = Link::clean().dropping(0.03).duplicating(0.03).reordering(0.03);
                    self.path("loss, duplication and reordering", link).await;
                }
                11 => self.pause_agents().await,
                12 => self.break_api().await,
                13 => self.end_session(),
                14 => self.break_agents(),
                15 => self.kill_worker(),
                _ => {
                    self.count("keys renewed");
                    renew(turn).await;
                }
            }
            self.control.set_faults(Plan::default());
        }
        sleep_until(end).await;
        self.counts
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    async fn drop_sockets(&mut self, name: &'static str, how: Break) {
        self.count(name);
        self.control.disconnect_all(how).await;
    }

    async fn path(&mut self, name: &'static str, link: Link) {
        self.count(name);
        self.control.set_faults(Plan::default().both(link));
        self.last_a_while().await;
    }

    /// Only towards the client: the agent checks no digests, so damage on the way to it would reach sshd.
    async fn damage(&mut self, name: &'static str, link: Link) {
        self.count(name);
        self.control.set_faults(Plan::default().down(link));
        self.last_a_while().await;
    }

    async fn pause_agents(&mut self) {
        self.count("agent paused");
        for session in self.journal.open_sessions() {
            self.control.pause_agent(&session).await;
        }
    }

    /// Together with a dropped WebSocket, so that the API is needed.
    async fn break_api(&mut self) {
        let failures =
            [Failure::Throttled, Failure::InternalServerError, Failure::ConnectionClosed];
        let failure = failures.get(self.rng.below(failures.len())).cloned();
        let Some(failure) = failure else { return };
        self.count("API fails");
        let fails = |action| ApiFault::new(failure.clone()).on(action);
        let plan = Plan::default()
            .api(fails(Action::ResumeSession))
            .api(fails(Action::TerminateSession))
            .api(fails(Action::StartSession))
            .api(fails(Action::OpenDataChannel));
        self.control.set_faults(plan);
        self.control.disconnect_all(Break::Reset).await;
        self.last_a_while().await;
    }

    /// Ends a session, as a restart of the agent or the console does.
    fn end_session(&mut self) {
        self.count("session ended");
        let open = self.journal.open_sessions();
        if let Some(session) = open.get(self.rng.below(open.len())) {
            self.control.terminate(session, "ended by the soak");
        }
    }

    /// A payload that meets the break is written to sshd twice, which costs the SSH connection.
    fn break_agents(&mut self) {
        self.count("agent's channel broken");
        for session in self.journal.open_sessions() {
            self.control.break_agent(&session, AgentBreak::AtOnce);
        }
    }

    fn kill_worker(&mut self) {
        self.count("session worker killed");
        let open = self.journal.open_sessions();
        if let Some(session) = open.get(self.rng.below(open.len())) {
            self.control.kill_worker(session);
        }
    }

    async fn last_a_while(&mut self) {
        sleep(Duration::from_millis(500) + self.rng.up_to(Duration::from_secs(5))).await;
    }
}

/// Time limit for a fault and the recovery from it.
const LONGEST: Duration = Duration::from_secs(12);
