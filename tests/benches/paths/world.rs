//! The environment of a path: the emulator with legs of a given length, a bastion, a config.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tests::{
    emulator::{AgentSettings, Emulator, FlowControl, Link, Pacing, Plan, Policy},
    fixtures::{Config, Sidecar, Sshd},
};
use tokio::time::Instant;

use super::{Outcome, link::Leg, process};

pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";
pub(crate) const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// The network between the parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net {
    /// One-way delay of each leg: to the API, to the gateway, and from there to the agent.
    pub(crate) one_way: Duration,
    /// Loss of messages between gateway and agent, in each direction.
    pub(crate) loss: f64,
}

impl Net {
    pub(crate) const NEAR: Self = Self { one_way: Duration::ZERO, loss: 0.0 };
    pub(crate) const FAR: Self = Self { one_way: Duration::from_millis(25), loss: 0.0 };

    /// Round trip from the client to the agent.
    pub(crate) fn rtt(self) -> Duration {
        4 * self.one_way
    }

    pub(crate) fn label(self) -> String {
        format!("{} ms", self.one_way.as_millis())
    }
}

/// An emulator behind its legs, and a bastion.
pub(crate) struct World {
    pub(crate) emulator: Emulator,
    pub(crate) sshd: Arc<Sshd>,
    pub(crate) net: Net,
    api: Leg,
    gateway: Leg,
}

impl World {
    pub(crate) async fn start(sshd: &Arc<Sshd>, net: Net, pacing: Pacing) -> Outcome<Self> {
        Self::start_spaced(sshd, net, pacing, Duration::ZERO).await
    }

    /// The same with an agent that begins sessions at least `spacing` apart, as the real one does.
    pub(crate) async fn start_spaced(
        sshd: &Arc<Sshd>,
        net: Net,
        pacing: Pacing,
        spacing: Duration,
    ) -> Outcome<Self> {
        let link = Link::clean().delayed(net.one_way, Duration::ZERO).dropping(net.loss);
        let emulator = Emulator::builder()
            .instance(INSTANCE)
            .access_key(ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            .policy(Policy::full(INSTANCE))
            .pacing(pacing)
            .flow_control(match pacing {
                Pacing::Real => FlowControl::default(),
                // Measured is what the programs can do; the tables say so.
                Pacing::Unpaced => FlowControl::none(),
            })
            // This agent processes every acknowledge, and all input right after `HandshakeComplete`. The
            // tests cover agents that do not; through the official plugin, ssh would lose its session.
            .agent(
                AgentSettings::default()
                    .forgotten_acknowledges(0.0)
                    .complete_delay(Duration::ZERO)
                    .start_spacing(spacing),
            )
            .faults(Plan::seeded(1).both(link))
            .build()
            .await?;
        let port = |url: &str| url.rsplit(':').next().and_then(|port| port.parse().ok());
        let broken = || format!("no port in {}", emulator.api_url());
        let api = Leg::to(port(emulator.api_url()).ok_or_else(broken)?, net.one_way).await?;
        let gateway =
            Leg::to(port(&emulator.stream_url()).ok_or_else(broken)?, net.one_way).await?;
        Ok(Self { emulator, sshd: Arc::clone(sshd), net, api, gateway })
    }

    /// The URL of the API for clients: that of its leg, or of the emulator itself if the leg has no delay.
    pub(crate) fn api_url(&self) -> String {
        if self.net.one_way.is_zero() {
            return self.emulator.api_url().to_owned();
        }
        format!("http://127.0.0.1:{}", self.api.port())
    }

    pub(crate) fn stream_url(&self) -> String {
        if self.net.one_way.is_zero() {
            return self.emulator.stream_url();
        }
        format!("ws://127.0.0.1:{}", self.gateway.port())
    }

    /// The leg to the API, whatever its length.
    pub(crate) fn api_leg(&self) -> &Leg {
        &self.api
    }

    /// The config for a target on 127.0.0.1, as seen from the bastion.
    pub(crate) fn config(&self, target_port: u16, changes: &Value) -> Outcome<Config> {
        let base = json!({
            "aws": {
                "access_key_id": ACCESS_KEY_ID,
                "secret_access_key": SECRET_ACCESS_KEY,
                "endpoint_url": self.api_url(),
                "stream_endpoint_url": self.stream_url(),
            },
            "bastion": {
                "instance_id": INSTANCE,
                "ssh_port": self.sshd.port(),
                "ssh_user": self.sshd.user(),
                "ssh_private_key": self.sshd.client_key().private,
                "ssh_host_key": self.sshd.host_key_fingerprint("ed25519")?,
            },
            "target": { "host": "127.0.0.1", "port": target_port },
            "timeouts": { "ready_s": 300 },
        });
        Ok(Config::new("bench").with(&base).with(changes))
    }

    pub(crate) async fn tunnel(&self, target_port: u16, changes: &Value) -> Outcome<Tunnel> {
        Tunnel::open(&self.config(target_port, changes)?).await
    }
}

/// A sidecar that is ready.
pub(crate) struct Tunnel {
    pub(crate) sidecar: Sidecar,
    pub(crate) port: u16,
    /// Time from its start.
    pub(crate) ready_after: Duration,
    pub(crate) started: Instant,
}

impl Tunnel {
    pub(crate) async fn open(config: &Config) -> Outcome<Self> {
        let program = crate::program()?;
        let started = Instant::now();
        let mut sidecar = Sidecar::spawn_program(program, |command| {
            command.env("RUST_LOG", "warn,ssm_sidecar::tunnel=info,ssm_sidecar::worker=info");
        })
        .await?;
        sidecar.write(config.pretty().as_bytes()).await?;
        let port = sidecar.ready(Duration::from_mins(5)).await?;
        Ok(Self { sidecar, port, ready_after: started.elapsed(), started })
    }

    pub(crate) fn cpu(&self) -> Duration {
        self.sidecar.pid().map(process::cpu).unwrap_or_default()
    }

    pub(crate) fn memory(&self) -> process::Memory {
        self.sidecar.pid().map(process::memory).unwrap_or_default()
    }

    /// Closes the tunnel and returns the summary, the last line of its log.
    pub(crate) async fn close(mut self) -> Outcome<Value> {
        self.sidecar.close_stdin();
        let exit = self.sidecar.exit(Duration::from_secs(30)).await?;
        if exit.status.code() != Some(0) {
            return Err(exit.text().into());
        }
        Ok(exit.logs().pop().unwrap_or_default())
    }
}
