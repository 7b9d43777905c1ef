//! What lanes are opened with.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::host_key::HostKeyType;
use crate::{
    channel::{Reports, websocket::StreamEndpoint},
    config::{Settings, Target},
    net::dial::Connector,
    runtime::shutdown::Shutdown,
    session::{SessionApi, SessionStarter},
};

/// What every lane of this process is opened with.
#[derive(Debug)]
pub(crate) struct LaneConfig {
    pub(crate) api: Arc<dyn SessionApi>,
    pub(crate) starter: SessionStarter,
    pub(crate) stream: StreamEndpoint,
    /// Payload of each message towards the agent, in bytes.
    pub(crate) message_bytes: usize,
    /// User, key and pins of the bastion's sshd.
    pub(crate) ssh: ssh_client::Config,
    /// The type of the pinned host key, once a fingerprint was found to be of it.
    pub(crate) host_key_type: OnceLock<HostKeyType>,
    /// For hints.
    pub(crate) ssh_port: u16,
    pub(crate) target: Target,
    /// Lanes at once, besides those that are drained.
    pub(crate) sessions: usize,
    /// How long an outage may last.
    pub(crate) reconnect: Duration,
    /// What the data channels of all lanes report to.
    pub(crate) reports: Reports,
    pub(crate) shutdown: Shutdown,
    lanes_opened: AtomicU64,
    /// Whether an opening was accepted only without signature.
    unsigned_opening: AtomicBool,
    /// Whether a lane was open before.
    has_opened: AtomicBool,
}

impl LaneConfig {
    /// The configuration by `settings`; sessions are started by `api`, connections opened by `connector`.
    pub(crate) fn new(
        settings: &Settings,
        api: Arc<dyn SessionApi>,
        connector: Connector,
        shutdown: Shutdown,
    ) -> Self {
        let mut ssh =
            ssh_client::Config::new(&settings.bastion.ssh_user, Arc::clone(&settings.bastion.key));
        ssh.pins.clone_from(&settings.bastion.pins);
        ssh.compression = settings.tunnel.compression;
        ssh.keepalive_interval = Some(SSH_KEEPALIVE);
        // The lane of a silent sshd is given up by the time of an outage, not before.
        let requests = settings.timeouts.reconnect.as_secs() / SSH_KEEPALIVE.as_secs() + 2;
        ssh.keepalive_max = u32::try_from(requests).unwrap_or(u32::MAX);
        // One more than clients may open: the probe connection may still be open.
        ssh.max_channels = settings.tunnel.max_connections + 1;
        let start = settings.timeouts.ready;
        Self {
            starter: SessionStarter::new(Arc::clone(&api), shutdown.clone(), start),
            api,
            stream: StreamEndpoint::new(&settings.aws, connector),
            message_bytes: settings.tunnel.message_bytes,
            ssh,
            host_key_type: OnceLock::new(),
            ssh_port: settings.bastion.ssh_port,
            target: settings.target.clone(),
            sessions: settings.tunnel.sessions,
            reconnect: settings.timeouts.reconnect,
            reports: Reports::default(),
            shutdown,
            lanes_opened: AtomicU64::new(0),
            unsigned_opening: AtomicBool::new(false),
            has_opened: AtomicBool::new(false),
        }
    }

    /// Returns the number of the next lane; the first has 1.
    pub(super) fn next_lane(&self) -> u64 {
        self.lanes_opened.fetch_add(1, Relaxed) + 1
    }

    /// Whether no opening before was accepted only without signature.
    pub(super) fn is_first_unsigned_opening(&self) -> bool {
        !self.unsigned_opening.swap(true, Relaxed)
    }

    pub(super) fn lane_has_opened(&self) {
        self.has_opened.store(true, Relaxed);
    }

    /// For how long sshd's identification is waited for.
    pub(super) fn banner_wait(&self) -> Duration {
        if self.has_opened.load(Relaxed) { BANNER_WAIT_AGAIN } else { BANNER_WAIT }
    }

    pub(super) fn pins_fingerprints(&self) -> bool {
        self.ssh.pins.iter().any(|pin| matches!(pin, ssh_client::HostKeyPin::Fingerprint(_)))
    }
}

/// For sshd's identification, which comes 1 to 15 ms after the handshake (seen with the real agent). A port on which
/// nothing listens shows only as silence for a minute.
const BANNER_WAIT: Duration = Duration::from_secs(8);

/// The same where a lane was open before: sshd is known to be there, and silence means that it is being restarted. The
/// next attempt finds it.
const BANNER_WAIT_AGAIN: Duration = Duration::from_secs(2);

/// Silence after which sshd is sent a keepalive. It counts as input of the session, too, whose idle time-out may be
/// as short as a minute.
const SSH_KEEPALIVE: Duration = Duration::from_secs(20);
