//! Describes and starts an emulator.

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{
    Emulator, api,
    credentials::Role,
    faults::Plan,
    flow_control::FlowControl,
    gateway,
    iam::Policy,
    service::Service,
    settings::{AgentSettings, OpeningMode, Pacing, Settings},
};

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

/// An IAM user with its own access key, beside the one of `access_key`.
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

    /// The gateway's limits for what clients send; by default all three, with 5 MB/s.
    #[must_use]
    pub fn flow_control(mut self, flow_control: FlowControl) -> Self {
        self.settings.flow_control = flow_control;
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

    /// What each `StreamUrl` begins with, such as `wss://ssmmessages.ap-northeast-1.amazonaws.com`: for a
    /// gateway behind something that leads there. By default it is the gateway's own address.
    #[must_use]
    pub fn stream_url(mut self, url: &str) -> Self {
        self.settings.stream_url = Some(url.to_owned());
        self
    }

    /// When the gateway closes each WebSocket with 1000 "Bye"; after an hour by default.
    #[must_use]
    pub fn channel_lifetime(mut self, lifetime: Duration) -> Self {
        self.settings.channel_lifetime = lifetime;
        self
    }

    /// Data channels that were opened unsigned are not closed at their `channel_lifetime`. Whether the service
    /// closes them is not known: every close that was reported was of a signed one.
    #[must_use]
    pub fn unsigned_channels_live_on(mut self) -> Self {
        self.settings.unsigned_channels_live_on = true;
        self
    }

    /// HTTP status for an unsigned opening under [`OpeningMode::SignedOnly`]; 403 by default.
    #[must_use]
    pub fn unsigned_refusal(mut self, status: u16) -> Self {
        self.settings.unsigned_refusal = status;
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
