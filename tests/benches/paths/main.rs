//! Whole paths, measured side by side in one run: the sidecar, OpenSSH's client, the official plugin if
//! available, and a client that only acknowledges, all against one emulated agent and one real sshd.
//!
//! `cargo bench --bench paths` measures; `-- --report` also writes Markdown and plots to `benches/report/`;
//! `-- --quick` checks within a minute that everything can be measured; names of chapters select them.
//! `SSM_SIDECAR_BIN` is the path of another sidecar than the one cargo builds, `SESSION_MANAGER_PLUGIN`
//! that of the official plugin.
#![expect(clippy::print_stdout, reason = "its result")]

mod acker;
mod bulk;
mod fleet;
mod footprint;
mod growth;
mod lanes;
mod link;
mod load;
mod openssh;
mod plot;
mod process;
mod queries;
mod report;
mod start;
mod stats;
mod tables;
mod together;
mod unpaced;
mod world;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tests::fixtures::Sshd;
use tokio::time::{Instant, timeout};

use self::{
    load::{Stretch, Target},
    report::Report,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What every chapter needs to measure.
struct Bench {
    sshd: Arc<Sshd>,
    target: Target,
    quick: bool,
}

impl Bench {
    /// How often to measure a figure whose median is reported.
    fn repeats(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    fn stretch(&self) -> Stretch {
        let [warm_up, window] = if self.quick { [200, 400] } else { [1000, 3000] };
        Stretch { warm_up: Duration::from_millis(warm_up), window: Duration::from_millis(window) }
    }

    /// Duration of one point of a curve.
    fn short(&self) -> Stretch {
        let [warm_up, window] = if self.quick { [100, 200] } else { [700, 1500] };
        Stretch { warm_up: Duration::from_millis(warm_up), window: Duration::from_millis(window) }
    }
}

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("something could not be measured, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("cannot measure: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures; false if a part could not be measured.
async fn run() -> Outcome<bool> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let chosen: Vec<&String> =
        arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    if let Some(unknown) = chosen.iter().find(|name| !CHAPTERS.contains(&name.as_str())) {
        return Err(format!("no chapter `{unknown}`; there are {}", CHAPTERS.join(", ")).into());
    }

    let path = program()?;
    let started = Instant::now();
    let sshd = Arc::new(Sshd::start_with(key()?, &["MaxStartups 2000"]).await?);
    let bench = Bench { sshd, target: Target::start().await?, quick: has("--quick") };
    let mut report = Report::default();
    for chapter in CHAPTERS {
        if !chosen.is_empty() && !chosen.iter().any(|name| *name == chapter) {
            continue;
        }
        println!("{chapter}");
        let measured = async {
            match chapter {
                "start" => start::run(&bench, &mut report).await,
                "bulk" => bulk::run(&bench, &mut report).await,
                "unpaced" => unpaced::run(&bench, &mut report).await,
                "queries" => queries::run(&bench, &mut report).await,
                "tables" => tables::run(&bench, &mut report).await,
                "lanes" => lanes::run(&bench, &mut report).await,
                "together" => together::run(&bench, &mut report).await,
                "fleet" => fleet::run(&bench, &mut report).await,
                "footprint" => footprint::run(&bench, &path, &mut report).await,
                "loss" => growth::loss(&bench, &mut report).await,
                _ => growth::run(&bench, &mut report).await,
            }
        };
        let outcome = match timeout(LIMIT, Box::pin(measured)).await {
            Ok(outcome) => outcome,
            Err(_) => Err("not done in time".into()),
        };
        if let Err(error) = outcome {
            report.not_measured(chapter, &error.to_string());
        }
    }
    if has("--report") {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/report");
        report.write(&directory, &conditions(started.elapsed(), bench.quick))?;
        println!("written to {}", directory.display());
    }
    println!("measured in {} s", started.elapsed().as_secs());
    Ok(report.is_complete())
}

fn key() -> std::io::Result<tests::fixtures::KeyPair> {
    tests::fixtures::KeyPair::generate(tests::fixtures::KeyType::Ed25519)
}

/// The sidecar to be measured: `SSM_SIDECAR_BIN`, or the one that cargo builds now, as it is shipped.
fn program() -> Outcome<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = PROGRAM.get() {
        return Ok(path.clone());
    }
    let path = if let Some(path) = env::var_os("SSM_SIDECAR_BIN") {
        PathBuf::from(path)
    } else {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            // Built together with a bench, the dependencies have the same features as those of this
            // program, so that none is built twice.
            .args(["build", "--release", "--locked", "--bin", "ssm-sidecar", "--bench", "parts"])
            .arg("--message-format=json-render-diagnostics")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let built = messages.lines().rev().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let path = message.get("executable")?.as_str()?;
            path.ends_with("/ssm-sidecar").then(|| PathBuf::from(path))
        });
        built.ok_or("cargo could not build the sidecar")?
    };
    Ok(PROGRAM.get_or_init(|| path).clone())
}

/// The machine and the date of the measurement.
fn conditions(took: Duration, quick: bool) -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let model = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let quick = if quick { " A quick run: the figures mean little." } else { "" };
    format!(
        "By `cargo bench --bench paths -- --report` in {} s on {processors} × {model}; everything, the \
         emulated AWS, sshd and the databases too, shares these processors. Load at the end {load}. \
         Medians, in parentheses the least and the most.{quick}",
        took.as_secs()
    )
}

const CHAPTERS: [&str; 11] = [
    "start",
    "bulk",
    "unpaced",
    "queries",
    "tables",
    "lanes",
    "together",
    "fleet",
    "footprint",
    "growth",
    "loss",
];

/// Time limit for a chapter; `together` dumps 240 MB at the pace of one session.
const LIMIT: Duration = Duration::from_mins(12);
