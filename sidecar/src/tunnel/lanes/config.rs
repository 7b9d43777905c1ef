//! What lanes are made from, and what their start finds out.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::Notify;

use super::host_key;
use crate::{
    channel::websocket::{self, OpeningSignature},
    runtime::shutdown::Shutdown,
    session::SessionApi,
};

/// What every lane of this process is made from.
#[derive(Debug)]
pub struct Needs {
    /// The control plane.
    pub api: Arc<dyn SessionApi>,
    /// How to reach the service's stream host.
    pub stream: websocket::Settings,
    /// Payload of each message towards the agent, in bytes.
    pub message_bytes: usize,
    /// The bastion's sshd, user, key and pins.
    pub ssh: ssh_client::Config,
    /// The type of host key to ask for, once a fingerprint was found to be of it.
    pub host_key_type: OnceLock<host_key::Type>,
    /// For hints: where the bastion's sshd should listen.
    pub ssh_port: u16,
    /// The database.
    pub target: Target,
    /// How many lanes may be open at once.
    pub sessions: usize,
    /// How long a broken path may take to come back.
    pub reconnect: Duration,
    /// How long the service leaves a data channel open.
    pub channel_life: Duration,
    /// How long a start may go on trying what may pass.
    pub start: Duration,
    /// Notified when a lane's WebSocket breaks and when its session is resumed.
    pub path_changed: Arc<Notify>,
    /// Hears what a start finds out on its way, for whoever wants to know more than the outcome.
    pub observer: Option<Arc<dyn Observer>>,
    /// The tasks and the stop signal of the process.
    pub shutdown: Shutdown,
}

impl Needs {
    pub(super) fn found(&self, finding: impl FnOnce() -> Finding) {
        if let Some(observer) = &self.observer {
            observer.on_found(finding());
        }
    }

    pub(super) fn pins_fingerprints(&self) -> bool {
        self.ssh.pins.iter().any(|pin| matches!(pin, ssh_client::HostKeyPin::Fingerprint(_)))
    }
}

/// Hears what the start of a lane finds out.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// Called from the lane's task; must not block.
    fn on_found(&self, finding: Finding);
}

/// What the start of a lane has found out.
#[derive(Clone, Debug)]
pub enum Finding {
    /// The id of the session that was started.
    Session(String),
    /// The data channel is open.
    Channel {
        /// The version of the SSM agent, as it said in the handshake.
        agent_version: String,
        /// How the opening was signed.
        signature: OpeningSignature,
    },
    /// The key exchange is done; authentication is next.
    Server {
        /// Its identification.
        server: String,
        /// `SHA256:…`.
        fingerprint: String,
        /// Whether the document pins it.
        pinned: bool,
    },
}

/// Where connections lead.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the bastion resolves it.
    pub host: String,
    /// TCP port.
    pub port: u16,
}
