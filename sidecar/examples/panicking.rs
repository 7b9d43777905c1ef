//! The sidecar, except that it panics in the task that logs a given text: for the tests of what a panic leaves
//! behind. Its first argument is that text, its second may be `check`; the config comes on stdin.

use std::{env, fmt, io, process::ExitCode};

use ssm_sidecar::commands::{
    check,
    cli::{self, OutputFormat},
    run::{self, Options, Source},
    worker,
};
use tokio::time::Instant;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

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
    // The sidecar keeps a subscriber that is installed already.
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr);
    tracing_subscriber::registry().with(Panicking(text.clone())).with(lines).init();
    let worker = vec![text.into(), WORKER.into()];
    match env::args().nth(2).as_deref() {
        Some(WORKER) => worker::command(cli::Worker { log_format: None, quiet: false }).into(),
        Some("check") => check::run(None, OutputFormat::Text, &worker).into(),
        _ => run::run(&Options { source: Source::Stdin, worker, log_format: None, started }).into(),
    }
}

const WORKER: &str = "worker";
