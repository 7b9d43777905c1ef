//! What an emulator is made from.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{
    Emulator, api, credentials::Role, faults::Plan, gateway, iam::Policy, service::Service,
};

/// How fast the agent reads from sshd.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pacing {
    /// As the real agent: up to 1,024 bytes, then a pause of nominally 1 ms, in effect 0.75 MB/s.
    #[default]
    Real,
    /// Without pause, for bulk and to find the client's own ceiling.
    Unpaced,
}

/// Which openings of a data channel are taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OpeningMode {
    /// Without signature, or signed by a caller who may `ssmmessages:OpenDataChannel`; 403 for one who may not.
    #[default]
    UnsignedAccepted,
    /// Signed ones only, by a caller who may.
    SignedOnly,
    /// As `UnsignedAccepted`, but a signature is only verified: no permission is asked for.
    PermissionNotAsked,
}

/// How the agent on the instances behaves.
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
    /// An agent of this version; 3.3.987.0 if not set. Before 3.2.1041.0 it does not acknowledge again what it
    /// has seen before, before 3.0.732.0 it neither pauses nor drains, before 2.3.672.0 it knows no port sessions.
    #[must_use]
    pub fn version(mut self, version: [u32; 4]) -> Self {
        self.version = version;
        self
    }

    /// How long it takes to begin a session.
    #[must_use]
    pub fn start_delay(mut self, delay: Duration) -> Self {
        self.start_delay = delay;
        self
    }

    /// How far apart it begins sessions that are started at once; zero if not set. The real one takes steps
    /// of a second.
    #[must_use]
    pub fn start_spacing(mut self, spacing: Duration) -> Self {
        self.start_spacing = spacing;
        self
    }

    /// How long it waits for the answer to its handshake; 15 s if not set.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long after it has sent `HandshakeComplete` it still acknowledges data and throws it away; 1 ms if
    /// not set, as the real agent sets its flag after it has sent the message.
    #[must_use]
    pub fn complete_delay(mut self, delay: Duration) -> Self {
        self.complete_delay = delay;
        self
    }

    /// How long dialling sshd takes; data that comes meanwhile is not acknowledged.
    #[must_use]
    pub fn dial_delay(mut self, delay: Duration) -> Self {
        self.dial_delay = delay;
        self
    }

    /// How long it says nothing when nothing listens at the port; 60 s if not set.
    #[must_use]
    pub fn unreachable_silence(mut self, silence: Duration) -> Self {
        self.unreachable_silence = silence;
        self
    }

    /// How long it waits at the end for its messages to be acknowledged; 2 s if not set.
    #[must_use]
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// Share of the fast acknowledges that it forgets, as they overtake its own records, four a
    /// second at most; 0.003 if not set.
    #[must_use]
    pub fn forgotten_acknowledges(mut self, share: f64) -> Self {
        self.forgotten_acknowledges = share;
        self
    }

    /// It takes no acknowledge of the stream message with this number, and sends it again for ever. As it
    /// repairs the oldest message alone, everything that is lost later is lost for good.
    #[must_use]
    pub fn resending_for_ever(mut self, sequence: i64) -> Self {
        self.resends_for_ever = Some(sequence);
        self
    }

    /// Asks for KMS encryption in the handshake, which a port session cannot have.
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

/// What the service and its agents are told once and for all.
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

/// A user beside the one whom all other keys belong to.
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

    /// Adds a user's long-term key.
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

    /// Adds another user, such as another customer's, with a key and what it allows.
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

    /// What the keys allow; nothing if not set.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// `ap-northeast-1` if not set.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        region.clone_into(&mut self.settings.region);
        self
    }

    /// 12 digits.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.settings.account);
        self
    }

    /// As the real agent if not set.
    #[must_use]
    pub fn pacing(mut self, pacing: Pacing) -> Self {
        self.settings.pacing = pacing;
        self
    }

    /// Unsigned openings are taken if not set.
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

    /// What goes wrong; nothing if not set.
    #[must_use]
    pub fn faults(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// How long a token can open a data channel; a minute if not set.
    #[must_use]
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.token_lifetime = lifetime;
        self
    }

    /// How long a session lives without input of the client; 20 minutes if not set.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.idle_timeout = timeout;
        self
    }

    /// How long a session lives at most; without limit if not set.
    #[must_use]
    pub fn maximum_duration(mut self, duration: Duration) -> Self {
        self.settings.maximum_duration = Some(duration);
        self
    }

    /// After how long the gateway closes each WebSocket with 1000 "Bye"; an hour if not set.
    #[must_use]
    pub fn channel_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.channel_lifetime = lifetime;
        self
    }

    /// Port of the API; one that is free if not set.
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
