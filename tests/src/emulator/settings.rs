//! The settings of the service and its agents.

use std::time::Duration;

use super::{credentials::Role, flow_control::FlowControl};

/// How fast the agent reads from sshd.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pacing {
    /// As the real agent: up to 1,024 bytes, then a pause of nominally 1 ms, effectively 0.75 MB/s.
    #[default]
    Real,
    /// Without pauses, for bulk transfers and to measure the client's own limit.
    Unpaced,
}

/// Which ways of opening a data channel are accepted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OpeningMode {
    /// Unsigned, or signed by a caller with `ssmmessages:OpenDataChannel`; a signed one without that
    /// permission gets 403.
    #[default]
    UnsignedAccepted,
    /// Only signed by a caller with that permission.
    SignedOnly,
    /// As `UnsignedAccepted`, but a signature is only verified: no permission is needed.
    PermissionNotAsked,
}

/// How an agent's own channel to the gateway breaks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AgentBreak {
    /// At once. A payload that arrives at this moment is written to sshd and not acknowledged; when the client
    /// sends it again, it is written again.
    #[default]
    AtOnce,
    /// With the next payload, which is written twice in this way for certain.
    WithNextPayload,
}

/// How the agents on the instances behave.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    pub(crate) version: [u32; 4],
    pub(crate) start_delay: Duration,
    pub(crate) start_spacing: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) complete_delay: Duration,
    pub(crate) complete_delay_share: f64,
    pub(crate) dial_delay: Duration,
    pub(crate) unreachable_silence: Duration,
    pub(crate) drain: Duration,
    pub(crate) channel_lifetime: Duration,
    pub(crate) reconnect_delay: Duration,
    pub(crate) report_delay: Duration,
    pub(crate) forgotten_acknowledges: f64,
    pub(crate) resends_for_ever: Option<i64>,
    pub(crate) encryption: bool,
    pub(crate) customer_message: String,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            version: [3, 3, 987, 0],
            start_delay: Duration::ZERO,
            start_spacing: Duration::ZERO,
            handshake_timeout: Duration::from_secs(15),
            complete_delay: Duration::from_millis(1),
            complete_delay_share: 1.0,
            dial_delay: Duration::ZERO,
            unreachable_silence: Duration::from_mins(1),
            drain: Duration::from_secs(2),
            channel_lifetime: Duration::from_hours(1),
            reconnect_delay: Duration::from_millis(200),
            report_delay: Duration::from_mins(1),
            forgotten_acknowledges: 0.003,
            resends_for_ever: None,
            encryption: false,
            customer_message: String::new(),
        }
    }
}

impl AgentSettings {
    /// The agent's version; 3.3.987.0 by default. Before 3.2.1041.0 it does not acknowledge duplicates,
    /// before 3.0.732.0 it neither pauses nor drains, before 2.3.672.0 it does not support port sessions.
    #[must_use]
    pub fn version(mut self, version: [u32; 4]) -> Self {
        self.version = version;
        self
    }

    /// How long the agent takes to begin a session.
    #[must_use]
    pub fn start_delay(mut self, delay: Duration) -> Self {
        self.start_delay = delay;
        self
    }

    /// Minimum interval between the beginnings of sessions that are started at once; zero by default. The
    /// real agent takes about a second.
    #[must_use]
    pub fn start_spacing(mut self, spacing: Duration) -> Self {
        self.start_spacing = spacing;
        self
    }

    /// How long the agent waits for the answer to its handshake; 15 s by default.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long after sending `HandshakeComplete` the agent still acknowledges data but discards it; 1 ms
    /// by default, because the real agent sets its flag only after sending the message.
    #[must_use]
    pub fn complete_delay(mut self, delay: Duration) -> Self {
        self.complete_delay = delay;
        self
    }

    /// Share of the starts in which `complete_delay` applies; 1 by default. With the real agent 2 of 75 starts
    /// lost data of a client that does not wait for sshd.
    #[must_use]
    pub fn complete_delay_share(mut self, share: f64) -> Self {
        self.complete_delay_share = share;
        self
    }

    /// How long dialling sshd takes; data that arrives meanwhile is not acknowledged.
    #[must_use]
    pub fn dial_delay(mut self, delay: Duration) -> Self {
        self.dial_delay = delay;
        self
    }

    /// How long the agent stays silent when nothing listens at the port; 60 s by default.
    #[must_use]
    pub fn unreachable_silence(mut self, silence: Duration) -> Self {
        self.unreachable_silence = silence;
        self
    }

    /// How long the agent waits at the end for its messages to be acknowledged; 2 s by default.
    #[must_use]
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// When the service closes the agent's own channel; after an hour by default. The agent opens a new one.
    #[must_use]
    pub fn channel_lifetime(mut self, lifetime: Duration) -> Self {
        self.channel_lifetime = lifetime;
        self
    }

    /// How long the agent takes to open its channel again; 200 ms by default. What the client sends meanwhile
    /// is lost.
    #[must_use]
    pub fn reconnect_delay(mut self, delay: Duration) -> Self {
        self.reconnect_delay = delay;
        self
    }

    /// How long the agent's master takes to report a session worker that was killed; 60 s by default.
    #[must_use]
    pub fn report_delay(mut self, delay: Duration) -> Self {
        self.report_delay = delay;
        self
    }

    /// Share of the fast acknowledges that the agent ignores, because they arrive before its own records
    /// are written; at most four a second; 0.003 by default.
    #[must_use]
    pub fn forgotten_acknowledges(mut self, share: f64) -> Self {
        self.forgotten_acknowledges = share;
        self
    }

    /// The agent ignores acknowledges of the stream message with this number, and retransmits it for ever.
    /// As it retransmits only the oldest message, everything lost later stays lost.
    #[must_use]
    pub fn resending_for_ever(mut self, sequence: i64) -> Self {
        self.resends_for_ever = Some(sequence);
        self
    }

    /// The agent requests KMS encryption in the handshake, which is not possible in a port session.
    #[must_use]
    pub fn encryption(mut self) -> Self {
        self.encryption = true;
        self
    }

    /// `CustomerMessage` of `HandshakeComplete`.
    #[must_use]
    pub fn customer_message(mut self, message: &str) -> Self {
        message.clone_into(&mut self.customer_message);
        self
    }
}

/// Settings of the service and its agents that never change.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) region: String,
    pub(crate) account: String,
    pub(crate) instances: Vec<String>,
    pub(crate) roles: Vec<Role>,
    pub(crate) pacing: Pacing,
    pub(crate) opening: OpeningMode,
    pub(crate) flow_control: FlowControl,
    pub(crate) agent: AgentSettings,
    pub(crate) token_lifetime: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) maximum_duration: Option<Duration>,
    pub(crate) channel_lifetime: Duration,
    pub(crate) unsigned_channels_live_on: bool,
    pub(crate) unsigned_refusal: u16,
    /// What stands before the path in a `StreamUrl`; the gateway's own address if it is `None`.
    pub(crate) stream_url: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            region: "ap-northeast-1".to_owned(),
            account: "123456789012".to_owned(),
            instances: Vec::new(),
            roles: Vec::new(),
            pacing: Pacing::default(),
            opening: OpeningMode::default(),
            flow_control: FlowControl::default(),
            agent: AgentSettings::default(),
            token_lifetime: Duration::from_mins(1),
            idle_timeout: Duration::from_mins(20),
            maximum_duration: None,
            channel_lifetime: Duration::from_hours(1),
            unsigned_channels_live_on: false,
            unsigned_refusal: 403,
            stream_url: None,
        }
    }
}
