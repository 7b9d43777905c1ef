//! `check`: each step in turn, what it found, and the hint that ends the ticket.
//!
//! The steps are those of [`run`](crate::commands::run), by the same code; only the order of telling is this command's own.
//! The session is ended on every way out. As in [`run`](crate::commands::run), a monitor keeps the keys of AWS, and a worker
//! does the steps.

mod database;
mod report;

use std::{
    ffi::OsString,
    panic::AssertUnwindSafe,
    path::Path,
    pin::pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use runner_protocol::{ErrorCode, Failure, Request};
use russh::keys::HashAlg;
use serde_json::{Value, json};
use tokio::{
    runtime,
    time::{Instant, timeout},
};

use crate::{
    aws::ApiErrorKind,
    channel::websocket::OpeningSignature,
    commands::{
        cli::OutputFormat,
        error::Error,
        run::{read_document, stopping_signal, write_termination_log},
    },
    config::Config,
    ipc::message::{Begin, Stop, Task},
    monitor::{self, Ended, Monitor, Orders, Service},
    net::{proxy::Proxy, tls::Trust},
    runtime::{hardening, panics::Panics, phase::Phase, shutdown::Shutdown, terminal},
    session::{
        ApiError, SessionApi,
        iam_policy::{OWN_SESSIONS, Scope},
    },
    tunnel::{
        Surroundings,
        lanes::{Finding, Lane, Needs, Observer, Target},
        needs, target,
    },
};

use report::{Report, Step};

/// The status to exit with and, where a step has failed, by what.
type Checked = (u8, Option<Failure>);

/// Checks the document of `file`, or of stdin, and returns the status to exit with; `worker`: the arguments with
/// which this program is one. Blocks.
///
/// What fails for a `file` is left for Kubernetes as well, as by [`run`](crate::commands::run).
pub fn run(file: Option<&Path>, format: OutputFormat, worker: &[OsString]) -> u8 {
    // What is refused here is refused again, and told, by `run`.
    drop(hardening::apply());
    let checked = read_document(file).and_then(|request| {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Internal(error.to_string()))?;
        let checked = runtime.block_on(supervise(&request, format, worker));
        runtime.shutdown_background();
        checked
    });
    let (status, failure) =
        checked.unwrap_or_else(|error| not_begun(error.into_failure(Phase::Config), format));
    if let (Some(_), Some(failure)) = (file, failure) {
        write_termination_log(&failure);
    }
    status
}

/// Has the steps done by a worker, which tells them on stdout.
async fn supervise(
    request: &Request,
    format: OutputFormat,
    worker: &[OsString],
) -> Result<Checked, Error> {
    let mut signals = pin!(stopping_signal());
    let mut monitor = Monitor::start(worker, Stdio::inherit()).map_err(Error::NoWorker)?;
    let begin = Begin { task: Task::Check(format), elapsed_ms: 0 };
    let orders = Orders { begin, descriptors: Vec::new() };
    // Meanwhile the worker locks itself up.
    let mut service = Service::new(request, None, Trust::load(), Proxy::from_env()?)?;
    // As above.
    drop(monitor.locked_up().await?);
    monitor.begin(orders, request)?;
    let mut asked = None;
    let stop = async {
        let signal = signals.as_mut().await;
        asked = Some((Instant::now(), signal));
        Stop::Signal(signal.into())
    };
    let attended = monitor.attend(&mut service, stop, |_| ()).await;
    let (since, signal) = asked.unzip();
    let deadline = since.unwrap_or_else(Instant::now) + monitor::GRACE;
    monitor.finish(Some(service), deadline).await;
    match attended {
        Ok(Ended::Check(status, failure)) => Ok((status, failure)),
        Ok(Ended::Tunnel(None)) if let Some(signal) = signal => Ok((stopped_by(signal), None)),
        // What it could not even begin with.
        Ok(Ended::Tunnel(failure)) => {
            Ok(not_begun(failure.unwrap_or_else(|| defect("no check was made")), format))
        }
        Err(lost) => Err(lost.into()),
    }
}

/// Tells what stands in the way of every step.
fn not_begun(failure: Failure, format: OutputFormat) -> Checked {
    let report = Report::to_stdout(format);
    report.begin(Step::Document);
    (report.fail(&failure, None), Some(failure))
}

fn defect(what: &str) -> Failure {
    Error::Internal(what.to_owned()).into_failure(Phase::Config)
}

/// The worker's part: the steps, told on stdout.
pub(crate) async fn work(
    request: Request,
    surroundings: Surroundings,
    format: OutputFormat,
    panics: &Panics,
    stop: impl Future<Output = Stop>,
) -> Checked {
    let report = Arc::new(Report::to_stdout(format));
    report.begin(Step::Document);
    let scope = Scope::of(&request);
    match Config::from_request(request) {
        Ok(config) => {
            examine_until_stopped(&config, scope, &report, surroundings, panics, stop).await
        }
        Err(error) => {
            let failure = Error::from(error).into_failure(Phase::Config);
            (report.fail(&failure, None), Some(failure))
        }
    }
}

async fn examine_until_stopped(
    config: &Config,
    scope: Scope,
    report: &Arc<Report>,
    surroundings: Surroundings,
    panics: &Panics,
    stop: impl Future<Output = Stop>,
) -> Checked {
    let shutdown = Shutdown::default();
    let scope = Mutex::new(scope);
    let examining = examine(config, &scope, report, surroundings, &shutdown);
    // Not unwound through here: the session is still to be ended.
    let examining = AssertUnwindSafe(examining).catch_unwind();
    let outcome = tokio::select! {
        outcome = examining => outcome.unwrap_or_else(|_| Err(defect("a step panicked"))),
        () = panics.noticed() => Err(defect("a task panicked")),
        stop = stop => {
            report.stopped(stop.reason());
            finish(&shutdown).await;
            return (stopped_by(stop.reason()), None);
        }
    };
    // Sessions of a step that failed are ended by tasks of their own.
    finish(&shutdown).await;
    // What else it led to explains nothing.
    let outcome = match panics.error() {
        Some(error) => Err(error.into_failure(report.phase())),
        None => outcome,
    };
    match outcome {
        Ok(()) => (report.succeed(), None),
        Err(failure) => {
            let scope = scope.lock().unwrap_or_else(PoisonError::into_inner);
            (report.fail(&failure, missing_statement(&failure, &scope)), Some(failure))
        }
    }
}

async fn finish(shutdown: &Shutdown) {
    if let Err(error) = shutdown.finish(GRACE).await {
        terminal::say(&format!("a session may be left to its idle time-out: {error}"));
    }
}

async fn examine(
    config: &Config,
    scope: &Mutex<Scope>,
    report: &Arc<Report>,
    surroundings: Surroundings,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    report.found(document(config));
    let api = Arc::clone(&surroundings.api);

    report.begin(Step::Identity);
    who(&*api, scope, report).await?;

    let watcher = Arc::new(Watcher { report: Arc::clone(report), session: Mutex::default() });
    let observer: Arc<dyn Observer> = Arc::<Watcher>::clone(&watcher);
    let needs = Needs { observer: Some(observer), ..needs(config, surroundings, shutdown.clone()) };
    let needs = Arc::new(needs);
    let phase = Arc::new(Mutex::new(Phase::Config));
    let reached = Arc::clone(&phase);
    let told = Arc::clone(report);
    let begin = move |next: Phase| {
        *reached.lock().unwrap_or_else(PoisonError::into_inner) = next;
        told.begin_phase(next);
    };
    let limit = config.timeouts.ready;
    let lane = match timeout(limit, Lane::open(1, &needs, begin)).await {
        Ok(Ok(lane)) => Ok(lane),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Error::NotReady { seconds: limit.as_secs() }),
    };
    let phase = *phase.lock().unwrap_or_else(PoisonError::into_inner);
    let lane = lane.map_err(|error| offered_key(error.into_failure(phase), config))?;
    report.found(format!("`{}`", config.bastion.ssh_user));

    let outcome = beyond(config, &lane, report).await;
    if outcome.is_ok() {
        permissions(&*api, &watcher, scope, report).await;
    }
    lane.terminate(END).await;
    outcome
}

/// The target, and what listens there.
async fn beyond(config: &Config, lane: &Lane, report: &Report) -> Result<(), Failure> {
    report.begin(Step::Target);
    let target = &config.target;
    let destination = Target { host: target.host.clone(), port: target.port };
    let limit = config.timeouts.connect;
    let reached = target::reach(lane, &destination, limit, config.bastion.ssh_port).await;
    let channel = reached.map_err(|error| error.into_failure(Phase::Target))?;
    report.found(format!("{}:{} reached from the bastion", target.host, target.port));

    report.begin(Step::Database);
    match database::ask(&channel, target.engine).await {
        Ok(found) => report.found(found),
        Err(what) => {
            let message = format!("{}:{} {what}", target.host, target.port);
            let hint = "check `target.port` and `target.engine`: what listens there is not this database, \
                        or it lets nobody in at present";
            return Err(Failure::new(ErrorCode::TargetUnreachable, message, hint, "target"));
        }
    }
    Ok(())
}

fn document(config: &Config) -> String {
    let key = config.bastion.key.public_key();
    format!(
        "`{}`: {} in {}, to {}:{}; key {} {}",
        config.name,
        config.bastion.instance_id,
        config.aws.region,
        config.target.host,
        config.target.port,
        key.algorithm().as_str(),
        key.fingerprint(HashAlg::Sha256),
    )
}

/// Whose the credentials are. Not to learn it is no failure: where only the SSM endpoint is reached, all the
/// rest works.
async fn who(api: &dyn SessionApi, scope: &Mutex<Scope>, report: &Report) -> Result<(), Failure> {
    match api.caller().await {
        Ok(arn) => {
            let mut scope = scope.lock().unwrap_or_else(PoisonError::into_inner);
            *scope = scope.clone().for_caller(&arn);
            report.found(arn);
            Ok(())
        }
        Err(error) => match error.kind() {
            ApiErrorKind::Credentials
            | ApiErrorKind::CredentialsExpired
            | ApiErrorKind::AccessDenied => {
                let lane = crate::tunnel::lanes::LaneError::from(error);
                Err(Error::from(lane).into_failure(Phase::StartSession))
            }
            _ => {
                report.warn(format!("not told by STS: {error}"), None);
                Ok(())
            }
        },
    }
}

/// What would make the session more robust, each tried on this very session.
async fn permissions(
    api: &dyn SessionApi,
    watcher: &Watcher,
    scope: &Mutex<Scope>,
    report: &Report,
) {
    report.begin(Step::Permissions);
    let session = watcher.session.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some((id, signature)) = session else { return };
    let denied = |outcome: Result<(), ApiError>| {
        outcome.is_err_and(|error| error.kind() == ApiErrorKind::AccessDenied)
    };
    let outcomes = [
        denied(api.resume(&id).await.map(drop)),
        denied(api.terminate(&id).await),
        signature == OpeningSignature::UnsignedAfterRefusal,
    ];
    let pairs = OWN_SESSIONS.iter().zip(outcomes);
    let missing: Vec<&str> =
        pairs.filter(|(_, denied)| *denied).map(|(action, _)| *action).collect();
    if missing.is_empty() {
        report.found(format!("ssm:StartSession, {}", OWN_SESSIONS.join(", ")));
        return;
    }
    let statement = scope.lock().unwrap_or_else(PoisonError::into_inner).own_sessions(&missing);
    let text = format!(
        "not allowed, and not required: {}; with them a session outlives a broken connection and its \
         channel's hourly close, and is ended by API too",
        missing.join(", ")
    );
    report.warn(text, Some(statement));
}

/// Names the key that was refused, to be compared with those that the bastion knows.
fn offered_key(mut failure: Failure, config: &Config) -> Failure {
    if failure.code == ErrorCode::SshAuthRejected {
        let fingerprint = config.bastion.key.public_key().fingerprint(HashAlg::Sha256);
        let user = &config.bastion.ssh_user;
        failure.hint = format!(
            "{}; `ssh-keygen -lf ~{user}/.ssh/authorized_keys` on the bastion must list {fingerprint}",
            failure.hint
        );
    }
    failure
}

/// The IAM statement that `failure` asks for.
fn missing_statement(failure: &Failure, scope: &Scope) -> Option<Value> {
    if failure.code != ErrorCode::AwsAccessDenied {
        return None;
    }
    let actions = ["ssm:StartSession", "sts:AssumeRole"].iter().chain(OWN_SESSIONS);
    let named = actions.copied().find(|action| {
        failure.message.contains(action) || failure.hint.contains(&format!("`{action}`"))
    })?;
    scope.statement_for(named)
}

/// Tells what the lane finds out on its way.
#[derive(Debug)]
struct Watcher {
    report: Arc<Report>,
    session: Mutex<Option<(String, OpeningSignature)>>,
}

impl Observer for Watcher {
    fn on_found(&self, finding: Finding) {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        match finding {
            Finding::Session(id) => {
                // Not when a further lane looks for another type of host key.
                if self.report.is_at(Step::StartSession) {
                    self.report.found(format!("session {id}"));
                }
                *session = Some((id, OpeningSignature::NotSigned));
            }
            Finding::Channel { agent_version, signature } => {
                let how = match signature {
                    OpeningSignature::Signed => "signed opening",
                    OpeningSignature::UnsignedAfterRefusal => "unsigned opening",
                    OpeningSignature::NotSigned => "opening signed by its URL",
                };
                if self.report.is_at(Step::Session) {
                    self.report.found(format!("agent {agent_version}, {how}"));
                }
                if let Some((_, known)) = &mut *session {
                    *known = signature;
                }
            }
            Finding::Server { server, fingerprint, pinned } => {
                if pinned {
                    self.report.found(format!("{server}, host key {fingerprint} as pinned"));
                } else {
                    let pin = json!({ "bastion": { "ssh_host_key": fingerprint } });
                    let text = format!("{server}, host key {fingerprint} is not pinned");
                    self.report.warn(text, Some(pin));
                }
                self.report.begin(Step::Login);
            }
        }
    }
}

/// As shells say it: 128 and the signal's number.
fn stopped_by(signal: &str) -> u8 {
    match signal {
        "SIGHUP" => 129,
        "SIGQUIT" => 131,
        "SIGTERM" => 143,
        _ => 130,
    }
}

/// For the session to end.
const GRACE: Duration = Duration::from_millis(4500);

/// For the agent to acknowledge the end.
const END: Duration = Duration::from_secs(2);
