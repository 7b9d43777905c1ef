//! Interference with a running emulator.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    codec::{PAUSE_PUBLICATION, START_PUBLICATION},
    faults::{Break, Plan},
    flow_control::{FlowControl, Gauge},
    iam::Policy,
    journal::Ending,
    service::Service,
    session::{ToClient, publication},
    settings::{AgentBreak, OpeningMode},
};

/// A handle to a running emulator. Clones refer to the same emulator.
#[derive(Clone)]
pub struct Control(Arc<Service>);

impl Control {
    pub(crate) fn new(service: &Arc<Service>) -> Self {
        Self(Arc::clone(service))
    }

    /// Breaks a session's WebSocket; the session itself continues. False if there is no WebSocket.
    pub async fn close_channel(&self, session: &str, how: Break) -> bool {
        match self.0.session(session) {
            Some(session) => session.tell_client(ToClient::Break(how)).await,
            None => false,
        }
    }

    /// Breaks the WebSocket of each session and returns how many there were.
    pub async fn disconnect_all(&self, how: Break) -> usize {
        let mut count = 0;
        for session in self.0.sessions() {
            count += usize::from(session.tell_client(ToClient::Break(how)).await);
        }
        count
    }

    /// Writes `bytes` unchanged to a session's client, between the frames of gateway and agent; waits while
    /// the client does not read. False if no client is connected.
    pub async fn inject(&self, session: &str, bytes: Bytes) -> bool {
        match self.0.session(session) {
            Some(session) => session.tell_client(ToClient::Raw(bytes)).await,
            None => false,
        }
    }

    /// Sends `pause_publication` to a session's client; the flow control does not end this pause. False if
    /// no client is connected.
    pub async fn pause(&self, session: &str) -> bool {
        if let Some(session) = self.0.session(session) {
            session.flow(Gauge::pause_by_hand);
        }
        self.tell(session, PAUSE_PUBLICATION).await
    }

    /// Sends `start_publication` to a session's client. False if no client is connected.
    pub async fn start(&self, session: &str) -> bool {
        if let Some(session) = self.0.session(session) {
            session.flow(Gauge::start_by_hand);
        }
        self.tell(session, START_PUBLICATION).await
    }

    /// Makes a session's agent pause until a message from the client arrives or publication is started
    /// again.
    pub async fn pause_agent(&self, session: &str) {
        if let Some(session) = self.0.session(session) {
            session.publish_to(false).await;
        }
    }

    /// Breaks the agent's own channel of a session; the agent opens another one after its `reconnect_delay`.
    pub fn break_agent(&self, session: &str, how: AgentBreak) {
        if let Some(session) = self.0.session(session) {
            session.break_agent(how);
        }
    }

    /// Kills the agent's worker of a session: nothing is read, written, acknowledged or sent for it any more,
    /// and the client's WebSocket stays. The agent's master reports it after its `report_delay`, which ends the
    /// session.
    pub fn kill_worker(&self, session: &str) {
        if let Some(session) = self.0.session(session) {
            session.kill_worker(Instant::now() + self.0.settings.agent.report_delay);
        }
    }

    /// Kills all processes of the agent. They are back after this time; until then sessions can be started, but
    /// nothing answers in them. Those of before are reported `report_delay` after that.
    pub fn kill_agent(&self, back_after: Duration) {
        self.0.kill_agent(back_after);
    }

    /// Ends a session as the console does, with this text for the client.
    pub fn terminate(&self, session: &str, output: &str) {
        if let Some(session) = self.0.session(session) {
            session.end(Ending::Operator, output);
        }
    }

    /// Replaces the policy of the keys.
    pub fn set_policy(&self, policy: Policy) {
        self.0.set_policy(policy);
    }

    /// Replaces the age at which the gateway closes `WebSockets`, for those that are opened from now on.
    pub fn set_channel_lifetime(&self, lifetime: Duration) {
        self.0.set_channel_lifetime(lifetime);
    }

    /// Changes which openings are accepted from now on; channels that are open stay open.
    pub fn set_opening(&self, mode: OpeningMode) {
        self.0.set_opening(mode);
    }

    /// Replaces the gateway's limits for what clients send, for channels that are open too.
    pub fn set_flow_control(&self, flow_control: FlowControl) {
        self.0.set_flow_control(flow_control);
    }

    /// Expires a key, or all keys if none is named.
    pub fn expire_credentials(&self, access_key_id: Option<&str>) {
        self.0.keys.expire(access_key_id);
    }

    /// Adds a key of the user, or replaces the one with this id.
    pub fn add_key(&self, access_key_id: &str, secret: &str, token: Option<&str>) {
        self.0.add_key(access_key_id, secret, token, None);
    }

    /// Replaces the faults; counts and times start again. Random generators already in use keep their seed.
    pub fn set_faults(&self, plan: Plan) {
        self.0.set_plan(plan);
    }

    async fn tell(&self, session: &str, kind: &str) -> bool {
        match self.0.session(session) {
            Some(session) => session.tell_client(ToClient::Frame(publication(kind))).await,
            None => false,
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Control").finish_non_exhaustive()
    }
}
