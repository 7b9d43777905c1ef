//! The sidecar as it is, but that it panics in the middle of the task that logs a given text: for the tests
//! of what a defect leaves behind. Its first argument is that text, its second may be `check`; the document
//! comes on stdin.

use std::{env, fmt, process::ExitCode};

use ssm_sidecar::{
    commands::{
        cli::OutputFormat,
        run::{self, CHANNEL_LIFE, Options, Source},
    },
    runtime::telemetry::Telemetry,
    worker::{self, check},
};
use tokio::time::Instant;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Panics at the event whose message has this text.
struct Panicking(String);

impl<S: Subscriber> Layer<S> for Panicking {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("ssm_sidecar") {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        assert!(!message.0.contains(&self.0), "planted");
    }
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

fn main() -> ExitCode {
    let started = Instant::now();
    let Some(text) = env::args().nth(1) else { return ExitCode::FAILURE };
    let word = env::args().nth(2);
    if word.as_deref() == Some(WORKER) {
        let prepared = worker::prepare();
        let telemetry = Telemetry::start_with(None, Panicking(text));
        let status = worker::run(prepared, &telemetry);
        drop(telemetry);
        return status.into();
    }
    let telemetry = Telemetry::start_with(None, Panicking(text.clone()));
    let worker = vec![text.into(), WORKER.into()];
    if word.as_deref() == Some("check") {
        let status = check::run(None, OutputFormat::Text, &worker);
        drop(telemetry);
        return status.into();
    }
    let options = Options { source: Source::Stdin, channel_life: CHANNEL_LIFE, worker, started };
    let status = run::run(&options, &telemetry);
    drop(telemetry);
    status.into()
}

const WORKER: &str = "worker";
