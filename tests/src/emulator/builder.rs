//! The settings from which an emulator is built.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{
    Emulator, api, credentials::Role, faults::Plan, gateway, iam::Policy, service::Service,
};

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

/// How the agents on the instances behave.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    pub(crate) version: [u32; 4],
    pub(crate) start_delay: Duration,
    pub(crate) start_spacing: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) complete_delay: Duration,
    pub(crate) dial_delay: Duration,
    pub(crate) unreachable_silence: Duration,
    pub(crate) drain: Duration,
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
            dial_delay: Duration::ZERO,
            unreachable_silence: Duration::from_mins(1),
            drain: Duration::from_secs(2),
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
    pub(crate) agent: AgentSettings,
    pub(crate) token_lifetime: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) maximum_duration: Option<Duration>,
    pub(crate) channel_lifetime: Duration,
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
            agent: AgentSettings::default(),
            token_lifetime: Duration::from_mins(1),
            idle_timeout: Duration::from_mins(20),
            maximum_duration: None,
            channel_lifetime: Duration::from_hours(1),
        }
    }
}

/// Builds an [`Emulator`].
#[derive(Debug, Default)]
pub struct Builder {
    settings: Settings,
    policy: Option<Policy>,
    plan: Plan,
    keys: Vec<(String, String, Option<String>, Option<Duration>)>,
    users: Vec<User>,
    port: u16,
}

/// A user besides the one to whom all other keys belong.
#[derive(Debug)]
struct User {
    name: String,
    key_id: String,
    secret: String,
    policy: Policy,
}

impl Builder {
    /// Adds an instance whose agent is connected.
    #[must_use]
    pub fn instance(mut self, id: &str) -> Self {
        self.settings.instances.push(id.to_owned());
        self
    }

    /// Adds a long-term key of the user.
    #[must_use]
    pub fn access_key(mut self, id: &str, secret: &str) -> Self {
        self.keys.push((id.to_owned(), secret.to_owned(), None, None));
        self
    }

    /// Adds a temporary key of the user, valid for `lifetime`.
    #[must_use]
    pub fn temporary_key(
        mut self,
        id: &str,
        secret: &str,
        token: &str,
        lifetime: Duration,
    ) -> Self {
        self.keys.push((id.to_owned(), secret.to_owned(), Some(token.to_owned()), Some(lifetime)));
        self
    }

    /// Adds another user, such as another customer's, with a key and a policy.
    #[must_use]
    pub fn user(mut self, name: &str, key_id: &str, secret: &str, policy: Policy) -> Self {
        let [name, key_id, secret] = [name, key_id, secret].map(str::to_owned);
        self.users.push(User { name, key_id, secret, policy });
        self
    }

    /// Adds a role that the keys may assume.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.settings.roles.push(role);
        self
    }

    /// The policy of the keys; nothing is allowed by default.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The region; `ap-northeast-1` by default.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.settings.region);
        self
    }

    /// The account; 12 digits.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.settings.account);
        self
    }

    /// Pacing of the agents; as the real agent by default.
    #[must_use]
    pub fn pacing(mut self, pacing: Pacing) -> Self {
        self.settings.pacing = pacing;
        self
    }

    /// Which openings are accepted; unsigned ones are by default.
    #[must_use]
    pub fn opening(mut self, mode: OpeningMode) -> Self {
        self.settings.opening = mode;
        self
    }

    /// How the agents behave.
    #[must_use]
    pub fn agent(mut self, agent: AgentSettings) -> Self {
        self.settings.agent = agent;
        self
    }

    /// The faults; none by default.
    #[must_use]
    pub fn faults(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// How long a token can open a data channel; a minute by default.
    #[must_use]
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.token_lifetime = lifetime;
        self
    }

    /// How long a session lives without input from the client; 20 minutes by default.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// Maximum duration of a session; unlimited by default.
    #[must_use]
    pub fn maximum_duration(mut self, duration: Duration) -> Self {
        self.settings.maximum_duration = Some(duration);
        self
    }

    /// When the gateway closes each WebSocket with 1000 "Bye"; after an hour by default.
    #[must_use]
    pub fn channel_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.channel_lifetime = lifetime;
        self
    }

    /// Port of the API; a free one by default.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Binds on 127.0.0.1 and starts.
    ///
    /// # Errors
    ///
    /// When a port cannot be bound.
    pub async fn build(self) -> io::Result<Emulator> {
        let Self { settings, policy, plan, keys, users, port } = self;
        let api = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let gateway = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let api_url = format!("http://{}", api.local_addr()?);
        let policy = policy.unwrap_or_else(Policy::nothing);
        let service = Arc::new(Service::new(settings, policy, plan, gateway.local_addr()?));
        for (id, secret, token, lifetime) in keys {
            service.add_key(&id, &secret, token.as_deref(), lifetime);
        }
        for User { name, key_id, secret, policy } in users {
            service.add_user(&name, &key_id, &secret, policy);
        }
        service.tasks.spawn(api::serve(api, Arc::clone(&service)));
        service.tasks.spawn(gateway::serve(gateway, Arc::clone(&service)));
        Ok(Emulator { service, api_url })
    }
}
