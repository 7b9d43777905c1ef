//! Logs: tracing to stderr as JSON lines, or as text for a person in front of a terminal.
//!
//! A thread of its own writes them: a stderr that nobody reads must never hold up the tunnel. When its
//! queue is full, lines are dropped and counted.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets, filter_fn},
    fmt,
    layer::Identity,
    prelude::*,
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people; coloured on a terminal.
    Text,
}

impl LogFormat {
    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Keeps the log writer alive; flushes what it can, within about a second, when dropped.
#[derive(Debug)]
pub struct Telemetry {
    _writer: WorkerGuard,
    lost: ErrorCounter,
}

impl Telemetry {
    /// Begins logging to stderr. Without a `format`: text on a terminal, JSON otherwise. The level comes
    /// from `RUST_LOG`, `info` without it.
    pub fn start(format: Option<LogFormat>) -> Self {
        Self::begin(LevelFilter::INFO, format, Identity::new())
    }

    /// The same with another level in place of `info`.
    pub fn start_at(level: LevelFilter, format: Option<LogFormat>) -> Self {
        Self::begin(level, format, Identity::new())
    }

    /// As [`start`](Self::start), with a further layer that sees every event, whatever the level is.
    pub fn start_with(
        format: Option<LogFormat>,
        layer: impl Layer<Registry> + Send + Sync,
    ) -> Self {
        Self::begin(LevelFilter::INFO, format, layer)
    }

    fn begin(
        level: LevelFilter,
        format: Option<LogFormat>,
        layer: impl Layer<Registry> + Send + Sync,
    ) -> Self {
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
        tracing_subscriber::registry()
            .with(layer)
            .with(lines.with_filter(ours).with_filter(level))
            .init();
        Self { _writer: guard, lost }
    }

    /// Lines dropped because nobody read them.
    pub fn lost_lines(&self) -> LostLines {
        LostLines(Some(self.lost.clone()))
    }
}

/// Counts log lines that were dropped; clones share it. By default there are none.
#[derive(Clone, Debug, Default)]
pub struct LostLines(Option<ErrorCounter>);

impl LostLines {
    /// How many so far.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(0, ErrorCounter::dropped_lines)
    }
}

/// Reads `level` or `target=level`, separated by commas; `None` where it says nothing, or nothing that makes sense.
fn targets(text: &str) -> Option<Targets> {
    if text.trim().is_empty() { None } else { text.parse().ok() }
}

/// Only our own targets reach the log, at any level: libraries below print headers, request bodies and
/// keys when asked to trace, and no `RUST_LOG` may turn that on.
fn is_ours(target: &str) -> bool {
    ["ssm_sidecar", "data_channel", "ssh_client"].iter().any(|ours| {
        target == *ours || target.strip_prefix(ours).is_some_and(|rest| rest.starts_with("::"))
    })
}

/// Sets the level, as elsewhere in Rust.
const LEVEL: &str = "RUST_LOG";

/// Lines that may wait for a slow reader of stderr.
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
    fn no_level_makes_a_library_print_what_it_carries() {
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
