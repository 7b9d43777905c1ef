//! Logs: tracing to stderr as JSON lines, or as text for a person in front of a terminal.
//!
//! A thread of its own writes them: a stderr that nobody reads must never hold up the tunnel. When its
//! queue is full, lines are dropped and counted.

use std::io::{self, IsTerminal as _};

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, fmt, layer::Identity, prelude::*,
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
    /// As the command line says it.
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
        Self::begin("info", format, Identity::new())
    }

    /// The same with another level in place of `info`.
    pub fn start_at(level: &str, format: Option<LogFormat>) -> Self {
        Self::begin(level, format, Identity::new())
    }

    /// As [`start`](Self::start), with a further layer that sees every event, whatever the level is.
    pub fn start_with(
        format: Option<LogFormat>,
        layer: impl Layer<Registry> + Send + Sync,
    ) -> Self {
        Self::begin("info", format, layer)
    }

    fn begin(
        level: &str,
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
        let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
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

/// Only our own targets reach the log, at any level: libraries below print headers, request bodies and
/// keys when asked to trace, and no `RUST_LOG` may turn that on.
fn is_ours(target: &str) -> bool {
    ["ssm_sidecar", "data_channel", "ssh_client"].iter().any(|ours| {
        target == *ours || target.strip_prefix(ours).is_some_and(|rest| rest.starts_with("::"))
    })
}

/// Lines that may wait for a slow reader of stderr.
const QUEUED_LINES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::is_ours;

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
