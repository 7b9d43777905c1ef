//! Logs: tracing to stderr, as JSON lines or as text on a terminal.
//!
//! A thread writes them: a stderr that is not read must never block the tunnel. When its queue is full, lines are
//! dropped and counted.

mod labels;
mod level;

use std::{
    env,
    io::{self, IsTerminal as _},
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets, filter_fn},
    fmt::{self, format, format::JsonFields},
    prelude::*,
};

use self::labels::JobLabels;
use super::terminal;

pub(crate) use labels::shortened as shortened_job_id;
pub(crate) use level::IgnoredLevel;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people; coloured on a terminal.
    Text,
}

impl LogFormat {
    /// The value on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Keeps the log writer alive; flushes what it can, within about a second, when dropped.
#[derive(Debug)]
pub(crate) struct Telemetry {
    _writer: WorkerGuard,
    lost: ErrorCounter,
    labels: JobLabels,
}

impl Telemetry {
    /// Begins logging to stderr. Without a `format`: text on a terminal, JSON otherwise. The level comes from
    /// `RUST_LOG`; it is `default` without it, and where it [cannot be followed](ignored_level). A subscriber that is
    /// installed already stays.
    pub(crate) fn start(default: LevelFilter, format: Option<LogFormat>) -> Self {
        let terminal = io::stderr().is_terminal();
        let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUED_LINES)
            .lossy(true)
            .thread_name("logs")
            .finish(io::stderr());
        let lost = writer.error_counter();
        let asked_for = variable().and_then(|text| level::read(&text).ok().flatten());
        let level = asked_for.unwrap_or_else(|| Targets::new().with_default(default));
        let labels = JobLabels::default();
        let lines = match format {
            LogFormat::Json => {
                let json = format::format().json().flatten_event(true).with_current_span(false);
                fmt::layer()
                    .fmt_fields(JsonFields::new())
                    .event_format(labels.on(json))
                    .with_writer(writer)
                    .boxed()
            }
            LogFormat::Text => {
                let coloured = terminal::is_coloured(&io::stderr());
                let text = format::format().with_ansi(coloured);
                fmt::layer()
                    .with_ansi(coloured)
                    .event_format(labels.on(text))
                    .with_writer(writer)
                    .boxed()
            }
        };
        let ours = filter_fn(|metadata| is_ours(metadata.target()));
        let lines = lines.with_filter(ours).with_filter(level);
        // Fails only where a test has installed a subscriber of its own, which then sees the events instead.
        let _installed = tracing_subscriber::registry().with(lines).try_init();
        Self { _writer: guard, lost, labels }
    }

    /// From now on every line has the job's `name` and `job_id`.
    pub(crate) fn set_job(&self, name: &str, job_id: Option<&str>) {
        self.labels.set(name, job_id);
    }

    /// The counter of lines dropped because stderr was not read.
    pub(crate) fn dropped_lines(&self) -> DroppedLines {
        DroppedLines(Some(self.lost.clone()))
    }
}

/// Why `RUST_LOG` is not followed, if it is set and means nothing here.
pub(crate) fn ignored_level() -> Option<IgnoredLevel> {
    level::read(&variable()?).err()
}

fn variable() -> Option<String> {
    Some(env::var_os(LEVEL)?.to_string_lossy().into_owned())
}

/// Counts dropped log lines. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DroppedLines(Option<ErrorCounter>);

impl DroppedLines {
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, ErrorCounter::dropped_lines)
    }
}

/// Only our own targets reach the log, at any level: at `trace`, libraries print headers, request bodies and keys,
/// which no `RUST_LOG` may turn on.
fn is_ours(target: &str) -> bool {
    OURS.iter().any(|ours| {
        target == *ours || target.strip_prefix(ours).is_some_and(|rest| rest.starts_with("::"))
    })
}

/// The targets of our crates.
const OURS: [&str; 3] = ["ssm_sidecar", "data_channel", "ssh_client"];

/// Environment variable with the level.
pub(crate) const LEVEL: &str = "RUST_LOG";

/// Most log lines that are queued while stderr is not read; further ones are dropped and counted.
const QUEUED_LINES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn no_level_lets_a_library_log() {
        for (target, ours) in [
            ("ssm_sidecar", true),
            ("ssm_sidecar::aws", true),
            ("data_channel::channel", true),
            ("ssm_sidecar_other", false),
            ("aws_smithy_runtime::client::http", false),
            ("russh::client", false),
        ] {
            assert_eq!(is_ours(target), ours, "target: {target}");
        }
    }
}
