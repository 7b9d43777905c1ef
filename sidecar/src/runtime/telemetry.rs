//! Logs: tracing to stderr, as JSON lines or as text on a terminal.
//!
//! A thread writes them: a stderr that is not read must never block the tunnel. When its queue is full, lines are
//! dropped and counted.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets, filter_fn},
    fmt,
    prelude::*,
};

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
}

impl Telemetry {
    /// Begins logging to stderr. Without a `format`: text on a terminal, JSON otherwise. The level comes from
    /// `RUST_LOG`, `info` without it. A subscriber that is installed already stays.
    pub(crate) fn start(format: Option<LogFormat>) -> Self {
        Self::start_at(LevelFilter::INFO, format)
    }

    /// As [`start`](Self::start), with `level` instead of `info`.
    pub(crate) fn start_at(level: LevelFilter, format: Option<LogFormat>) -> Self {
        let terminal = io::stderr().is_terminal();
        let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
        let (writer, guard) = NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUED_LINES)
            .lossy(true)
            .thread_name("logs")
            .finish(io::stderr());
        let lost = writer.error_counter();
        let asked_for = env::var(LEVEL).ok().as_deref().and_then(targets);
        let level = asked_for.unwrap_or_else(|| Targets::new().with_default(level));
        let lines = match format {
            LogFormat::Json => fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_writer(writer)
                .boxed(),
            LogFormat::Text => fmt::layer().with_ansi(terminal).with_writer(writer).boxed(),
        };
        let ours = filter_fn(|metadata| is_ours(metadata.target()));
        let lines = lines.with_filter(ours).with_filter(level);
        // Fails only where a test has installed a subscriber of its own, which then sees the events instead.
        let _installed = tracing_subscriber::registry().with(lines).try_init();
        Self { _writer: guard, lost }
    }

    /// The counter of lines dropped because stderr was not read.
    pub(crate) fn dropped_lines(&self) -> DroppedLines {
        DroppedLines(Some(self.lost.clone()))
    }
}

/// Counts dropped log lines. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct DroppedLines(Option<ErrorCounter>);

impl DroppedLines {
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(0, ErrorCounter::dropped_lines)
    }
}

/// Parses `level` or `target=level`, separated by commas; `None` where the text is empty or malformed.
fn targets(text: &str) -> Option<Targets> {
    if text.trim().is_empty() { None } else { text.parse().ok() }
}

/// Only our own targets reach the log, at any level: at `trace`, libraries print headers, request bodies and keys,
/// which no `RUST_LOG` may turn on.
fn is_ours(target: &str) -> bool {
    ["ssm_sidecar", "data_channel", "ssh_client"].iter().any(|ours| {
        target == *ours || target.strip_prefix(ours).is_some_and(|rest| rest.starts_with("::"))
    })
}

/// Environment variable with the level.
const LEVEL: &str = "RUST_LOG";

/// Most log lines that are queued while stderr is not read; further ones are dropped and counted.
const QUEUED_LINES: usize = 1024;

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::{is_ours, targets};

    #[test]
    fn level_is_set_for_all_or_by_target() {
        let enabled = |text: &str, target| {
            targets(text).map(|targets| targets.would_enable(target, &Level::DEBUG))
        };
        for (text, target, expected) in [
            ("debug", "ssm_sidecar", Some(true)),
            ("info", "ssm_sidecar", Some(false)),
            ("warn,ssm_sidecar::run=debug", "ssm_sidecar::run", Some(true)),
            ("warn,ssm_sidecar::run=debug", "ssm_sidecar::lanes", Some(false)),
            ("ssm_sidecar=trace", "data_channel", Some(false)),
            ("", "ssm_sidecar", None),
            ("ssm_sidecar=loud", "ssm_sidecar", None),
        ] {
            assert_eq!(enabled(text, target), expected, "{text} for {target}");
        }
    }

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
