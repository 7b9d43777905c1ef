//! Hours of real load under every fault: `cargo run --release --bin soak -- --minutes 60`.
//!
//! Two customers, each with an emulated AWS, a real sshd and a real database: PostgreSQL with sessions that
//! may be resumed, MariaDB with sessions that may not. Real clients read, write and query through the real
//! sidecar while faults of the network, the service and the agent are injected, by a seed. Prints a report,
//! and fails if a byte differed, a session was left, a sidecar died or the protocol was broken.

#![expect(clippy::print_stdout, reason = "what this program is for")]

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tests::soak;

#[derive(Debug, Parser)]
#[command(about = "Real load under every fault, with a report")]
struct Arguments {
    /// Duration of the soak.
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// Seed of the faults; random by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { minutes, seed, json } = Arguments::parse();
    let seed = seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {minutes} minutes");
    let report = match soak::run(Duration::from_secs_f64(minutes * 60.0), seed).await {
        Ok(report) => report,
        Err(error) => {
            println!("the soak could not be run: {error}");
            return ExitCode::FAILURE;
        }
    };
    if json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
