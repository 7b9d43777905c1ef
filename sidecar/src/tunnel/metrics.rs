//! The metrics of the tunnel, as `OpenMetrics` text.
//!
//! Nothing is counted twice: each scrape reads the counters that the log's last line is made from. The job's id is in
//! them, which is the runner's own, but no name and no address: metrics are kept for long and read by many.

use std::{
    fmt,
    sync::{
        Arc,
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

use super::{forward::ConnectionStats, lanes::LanePool};
use crate::runtime::{
    phase::{Phase, Progress},
    telemetry::DroppedLines,
};

/// The sources of the metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) job_id: Option<String>,
    pub(crate) progress: Progress,
    pub(crate) connections: Arc<ConnectionStats>,
    pub(crate) lanes: Arc<LanePool>,
    pub(crate) dropped_lines: DroppedLines,
}

impl Metrics {
    /// Why the tunnel cannot be used at present; `None` when it can be: `ready` was reported, and `degraded` was not, or
    /// `recovered` since.
    pub(crate) fn not_ready(&self) -> Option<&'static str> {
        if self.progress.phase() != Phase::Tunnel {
            return Some("starting");
        }
        self.lanes.is_degraded().then_some("no lane is up")
    }

    /// Returns all metrics as `OpenMetrics` text, with its `# EOF`.
    ///
    /// # Errors
    ///
    /// Those of the encoder; none is known for writing to memory.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("ssm_sidecar");
        let connections = &*self.connections;
        let totals = self.lanes.totals();

        let build = Info::new(vec![("version", VERSION), ("commit", COMMIT)]);
        registry.register("build", "What this sidecar was built from", build);
        if let Some(job_id) = &self.job_id {
            let job = Info::new(vec![("job_id", job_id.clone())]);
            registry.register("job", "The job that this sidecar was started for", job);
        }
        let ready = ConstGauge::new(i64::from(self.not_ready().is_none()));
        registry.register("ready", "Whether the tunnel can be used: 1, else 0", ready);
        let up = ConstGauge::new(i64::try_from(self.lanes_up()).unwrap_or(i64::MAX));
        registry.register("lanes_up", "SSM sessions that carry bytes at present", up);
        let open = connections.open();
        let open = ConstGauge::new(i64::try_from(open).unwrap_or(i64::MAX));
        registry.register("connections_open", "Connections of clients at present", open);

        let dropped = u64::try_from(self.dropped_lines.count()).unwrap_or(u64::MAX);
        for (name, help, value) in [
            ("sessions_started", "SSM sessions started", totals.sessions),
            ("resumes", "Times a session went on on a new WebSocket", totals.resumes),
            ("retransmissions", "Messages sent again to the agent", totals.retransmissions),
            (
                "connections",
                "Connections of clients accepted",
                connections.connections.load(Relaxed),
            ),
            (
                "connections_refused",
                "Connections of users that may not connect",
                connections.refused.load(Relaxed),
            ),
            (
                "connections_reset",
                "Connections cut before their end",
                connections.resets.load(Relaxed),
            ),
            (
                "log_lines_dropped",
                "Log lines that were dropped because stderr was not read in time",
                dropped,
            ),
        ] {
            registry.register(name, help, ConstCounter::new(value));
        }
        for (name, help, value) in [
            ("to_target", "Bytes from clients to the target", &connections.bytes_up),
            ("from_target", "Bytes from the target to clients", &connections.bytes_down),
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
        for (number, rtt) in self.lanes.round_trips() {
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
        self.lanes.up()
    }
}

type Seconds = Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>;

/// The phases of the start.
const STARTED: [Phase; 5] =
    [Phase::Config, Phase::StartSession, Phase::Session, Phase::Ssh, Phase::Target];

/// The version of the program, from its manifest.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit, from the environment variable `SSM_SIDECAR_COMMIT` of the build.
pub(crate) const COMMIT: &str = match option_env!("SSM_SIDECAR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::tunnel::testing::World;

    fn metrics() -> Metrics {
        Metrics {
            job_id: Some("7 \"of\"\n9".to_owned()),
            progress: Progress::new(Instant::now(), |_| ()),
            connections: Arc::default(),
            lanes: Arc::new(LanePool::new(World::default().lane_config(""))),
            dropped_lines: DroppedLines::default(),
        }
    }

    #[tokio::test]
    async fn page_before_the_first_lane_holds_every_counter_and_ends_as_openmetrics_does() {
        let metrics = metrics();
        metrics.connections.connections.store(3, Relaxed);
        metrics.connections.finished.store(1, Relaxed);
        metrics.connections.bytes_down.store(7, Relaxed);
        metrics.progress.begin(Phase::StartSession);
        let page = metrics.encode().unwrap();
        for line in [
            "ssm_sidecar_lanes_up 0",
            "ssm_sidecar_ready 0",
            "ssm_sidecar_connections_total 3",
            "ssm_sidecar_connections_open 2",
            "ssm_sidecar_from_target_bytes_total 7",
            "ssm_sidecar_retransmissions_total 0",
            "# TYPE ssm_sidecar_build info",
            r#"ssm_sidecar_job_info{job_id="7 \"of\"\n9"} 1"#,
        ] {
            assert!(page.lines().any(|each| each == line), "no `{line}` in {page}");
        }
        assert!(page.contains(r#"ssm_sidecar_start_phase_seconds{phase="config"} "#), "{page}");
        assert!(page.contains(&format!(r#"version="{VERSION}""#)), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }

    #[tokio::test]
    async fn not_ready_returns_what_is_missing() {
        let metrics = metrics();
        assert_eq!(metrics.not_ready(), Some("starting"));
        metrics.progress.begin(Phase::Tunnel);
        assert_eq!(metrics.not_ready(), Some("no lane is up"));
    }
}
