//! The main job on embedded parts, with one command: `cargo run --release --bin demo`.
//!
//! Builds what it shows, the sidecar and [the job](../src/bin/demo-job.rs), in one go and without the link-time
//! optimization of a release, and starts the job in its own place. Without dependencies, so that this starts at once.

#![expect(clippy::print_stdout, reason = "what this program is for")]

use std::{
    convert::Infallible,
    env,
    error::Error,
    num::NonZero,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Instant,
};

/// Two more than processors: the largest crate (`aws-sdk-ssm`) becomes ready late and is compiled by one thread, so
/// that it should not wait for its turn.
fn jobs() -> String {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    (processors + 2).to_string()
}

/// The profile of the demonstration and the tests.
const PROFILE: &str = "quick";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.is_empty() && arguments != ["--keep"] {
        println!("usage: demo [--keep]");
        return ExitCode::from(64);
    }
    match demo(&arguments) {
        Ok(never) => match never {},
        Err(error) => {
            println!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds and starts the job, which takes the place of this process.
fn demo(arguments: &[String]) -> Result<Infallible, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    println!("Building the sidecar and the customer's side that it is shown with.");
    println!(
        "The first time takes three to four minutes on two processors; cargo shows how far it is.\n"
    );
    let started = Instant::now();
    let programs = build(&root)?;
    println!("\nBuilt in {} s.\n", started.elapsed().as_secs());

    let mut job = Command::new(programs.join("demo-job"));
    if env::var_os("SSM_SIDECAR_BIN").is_none() {
        job.env("SSM_SIDECAR_BIN", programs.join("ssm-sidecar"));
    }
    Err(job.args(arguments).exec().into())
}

/// Builds the two programs in one run of cargo, and returns their directory.
fn build(root: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // This program is in the target folder's `release`.
    let program = env::current_exe()?;
    let target = program.parent().and_then(Path::parent).ok_or("no target folder")?;
    let status = Command::new(cargo)
        .args([
            "build",
            "--locked",
            "--profile",
            PROFILE,
            "--package",
            "tests",
            "--package",
            "ssm-sidecar",
        ])
        .args(["--bin", "demo-job", "--bin", "ssm-sidecar"])
        .args(["--jobs", &jobs()])
        .current_dir(root)
        .env("CARGO_TARGET_DIR", target)
        .status()?;
    if !status.success() {
        return Err("cargo could not build it".into());
    }
    Ok(target.join(PROFILE))
}
