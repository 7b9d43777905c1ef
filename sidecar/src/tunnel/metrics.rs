//! What the tunnel does in figures, as `OpenMetrics` text.
//!
//! Nothing is counted twice: each scrape reads the counters that the log's last line is made from. No name, no
//! job id, no address is in them: those are labels of the logs, and metrics are kept for long and read by many.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    encoding::text,
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    runtime::{
        phase::{Phase, Progress},
        telemetry::LostLines,
    },
    tunnel::{forward::Traffic, lanes::Lanes},
};

/// Where the figures come from; clones share it.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The phases of the start.
    pub progress: Progress,
    /// What clients do.
    pub traffic: Arc<Traffic>,
    /// Set once the first lane is open.
    pub lanes: Arc<Mutex<Option<Arc<Lanes>>>>,
    /// Log lines that nobody read.
    pub lost_lines: LostLines,
}

impl Figures {
    /// Why the tunnel cannot be used at present; `None` when it can: `ready` was said and a lane carries bytes.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.progress.phase() != Phase::Tunnel {
            return Some("starting");
        }
        (self.lanes_up() == 0).then_some("no lane is up")
    }

    /// All figures as `OpenMetrics` text, to its `# EOF`.
    ///
    /// # Errors
    ///
    /// None that the encoder is known to give when it writes to memory.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("ssm_sidecar");
        let traffic = &*self.traffic;
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let totals = lanes.as_deref().map(Lanes::totals).unwrap_or_default();

        let build = Info::new(vec![("version", VERSION), ("commit", COMMIT)]);
        registry.register("build", "What this sidecar was built from", build);
        let ready = ConstGauge::new(i64::from(self.not_ready().is_none()));
        registry.register("ready", "Whether the tunnel can be used: 1, else 0", ready);
        let up = ConstGauge::new(i64::try_from(self.lanes_up()).unwrap_or(i64::MAX));
        registry.register("lanes_up", "SSM sessions that carry bytes at present", up);
        let open = traffic.open();
        let open = ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX));
        registry.register("connections_open", "Connections of clients at present", open);

        let lost = u64::try_from(self.lost_lines.count()).unwrap_or(u64::MAX);
        for (name, help, value) in [
            ("sessions_started", "SSM sessions started", totals.sessions),
            ("resumes", "Times a session went on on a new WebSocket", totals.resumes),
            ("retransmissions", "Messages sent again to the agent", totals.retransmissions),
            ("connections", "Connections of clients accepted", traffic.connections.load(Relaxed)),
            (
                "connections_refused",
                "Connections of users that may not connect",
                traffic.refused.load(Relaxed),
            ),
            ("connections_reset", "Connections cut before their end", traffic.resets.load(Relaxed)),
            ("log_lines_dropped", "Log lines that nobody read in time", lost),
        ] {
            registry.register(name, help, ConstCounter::new(value));
        }
        for (name, help, value) in [
            ("to_target", "Bytes from clients to the target", &traffic.bytes_up),
            ("from_target", "Bytes from the target to clients", &traffic.bytes_down),
        ] {
            let counter = ConstCounter::new(value.load(Relaxed));
            registry.register_with_unit(name, help, Unit::Bytes, counter);
        }

        let phases = Seconds::default();
        for phase in STARTED {
            if let Some(took) = self.progress.took(phase) {
                let label = vec![("phase", phase.name().to_owned())];
                phases.get_or_create(&label).set(took.as_secs_f64());
            }
        }
        let help = "How long each finished phase of the start took";
        registry.register_with_unit("start_phase", help, Unit::Seconds, phases);
        let rtts = Seconds::default();
        for (number, rtt) in lanes.as_deref().map(Lanes::round_trips).unwrap_or_default() {
            let label = vec![("lane", number.to_string())];
            rtts.get_or_create(&label).set(rtt.as_secs_f64());
        }
        let help = "Smoothed time from a message to its acknowledgement by the agent";
        registry.register_with_unit("round_trip", help, Unit::Seconds, rtts);

        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }

    fn lanes_up(&self) -> usize {
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.as_deref().map_or(0, Lanes::up)
    }
}

type Seconds = Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>;

/// The phases that end.
const STARTED: [Phase; 5] =
    [Phase::Config, Phase::StartSession, Phase::Session, Phase::Ssh, Phase::Target];

/// The version of the program, from its manifest.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that whoever builds names in `SSM_SIDECAR_COMMIT`; the build itself asks nobody.
pub const COMMIT: &str = match option_env!("SSM_SIDECAR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn figures() -> Figures {
        Figures {
            progress: Progress::new(Instant::now(), |_| ()),
            traffic: Arc::default(),
            lanes: Arc::default(),
            lost_lines: LostLines::default(),
        }
    }

    #[tokio::test]
    async fn page_before_the_first_lane_holds_every_counter_and_ends_as_openmetrics_does() {
        let figures = figures();
        figures.traffic.connections.store(3, Relaxed);
        figures.traffic.finished.store(1, Relaxed);
        figures.traffic.bytes_down.store(7, Relaxed);
        figures.progress.begin(Phase::StartSession);
        let page = figures.encode().unwrap();
        for line in [
            "ssm_sidecar_lanes_up 0",
            "ssm_sidecar_ready 0",
            "ssm_sidecar_connections_total 3",
            "ssm_sidecar_connections_open 2",
            "ssm_sidecar_from_target_bytes_total 7",
            "ssm_sidecar_retransmissions_total 0",
            "# TYPE ssm_sidecar_build info",
        ] {
            assert!(page.lines().any(|each| each == line), "no `{line}` in {page}");
        }
        assert!(page.contains(r#"ssm_sidecar_start_phase_seconds{phase="config"} "#), "{page}");
        assert!(page.contains(&format!(r#"version="{VERSION}""#)), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[tokio::test]
    async fn not_ready_says_what_is_missing() {
        let figures = figures();
        assert_eq!(figures.not_ready(), Some("starting"));
        figures.progress.begin(Phase::Tunnel);
        assert_eq!(figures.not_ready(), Some("no lane is up"));
    }
}
