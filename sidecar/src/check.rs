//! `check`: each step in turn, what it found, and the hint that ends the ticket.
//!
//! The steps are those of [`run`](crate::run), by the same code; only the order of telling is this command's own.
//! The session is ended on every way out.

mod database;
mod report;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use runner_protocol::{ErrorCode, Failure};
use russh::keys::HashAlg;
use serde_json::{Value, json};
use tokio::{runtime, time::timeout};

use crate::{
    advice,
    aws::{ApiErrorKind, ControlPlane},
    cli::OutputFormat,
    config::Config,
    error::{Error, TargetCause, TargetError},
    hardening,
    http_proxy::Proxy,
    lanes::{Finding, Lane, Needs, Observer},
    policy::{OWN_SESSIONS, Scope},
    progress::Phase,
    run::{identity, needs, read_document, stopping_signal},
    session::{ApiError, SessionApi},
    shutdown::Shutdown,
    ssh::{Channel, OpenError},
    tls::Trust,
    websocket::OpeningSignature,
};

use report::{Report, Step};

/// Checks the document of `file`, or of stdin, and returns the status to exit with. Blocks.
pub fn run(file: Option<&Path>, format: OutputFormat) -> u8 {
    // What is refused here is refused again, and told, by `run`.
    drop(hardening::apply());
    let report = Arc::new(Report::to_stdout(format));
    report.begin(Step::Document);
    let outcome = read_document(file).and_then(|request| {
        let scope = Scope::of(&request);
        Ok((Config::from_request(request)?, scope))
    });
    let (config, scope) = match outcome {
        Ok(accepted) => accepted,
        Err(error) => return report.fail(&error.into_failure(Phase::Config), None),
    };
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let status = runtime.block_on(examine_until_stopped(&config, scope, &report));
            runtime.shutdown_background();
            status
        }
        Err(error) => report.fail(&defect(&error).into_failure(Phase::Config), None),
    }
}

fn defect(error: &io::Error) -> Error {
    Error::Internal(error.to_string())
}

async fn examine_until_stopped(config: &Config, scope: Scope, report: &Arc<Report>) -> u8 {
    let shutdown = Shutdown::default();
    let mut signal = pin!(stopping_signal());
    let scope = Mutex::new(scope);
    let outcome = tokio::select! {
        outcome = examine(config, &scope, report, &shutdown) => outcome,
        name = &mut signal => {
            report.stopped(name);
            finish(&shutdown).await;
            return stopped_by(name);
        }
    };
    // Sessions of a step that failed are ended by tasks of their own.
    finish(&shutdown).await;
    match outcome {
        Ok(()) => report.succeed(),
        Err(failure) => {
            let scope = scope.lock().unwrap_or_else(PoisonError::into_inner);
            report.fail(&failure, missing_statement(&failure, &scope))
        }
    }
}

async fn finish(shutdown: &Shutdown) {
    if let Err(error) = shutdown.finish(GRACE).await {
        advice::say(&format!("a session may be left to its idle time-out: {error}"));
    }
}

async fn examine(
    config: &Config,
    scope: &Mutex<Scope>,
    report: &Arc<Report>,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    report.found(document(config));
    let failed = |error: Error, phase| error.into_failure(phase);
    let proxy = Proxy::from_env().map_err(|error| failed(error.into(), Phase::Config))?;
    let trust = Trust::load();
    let plane = Arc::new(ControlPlane::new(identity::settings(config), &trust, &proxy));

    report.begin(Step::Identity);
    who(&plane, scope, report).await?;

    let watcher = Arc::new(Watcher { report: Arc::clone(report), session: Mutex::default() });
    let api: Arc<dyn SessionApi> = Arc::<ControlPlane>::clone(&plane);
    let observer: Arc<dyn Observer> = Arc::<Watcher>::clone(&watcher);
    let needs =
        Needs { observer: Some(observer), ..needs(config, api, trust, proxy, shutdown.clone()) };
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
        permissions(&*plane, &watcher, scope, report).await;
    }
    lane.terminate(END).await;
    outcome
}

/// The target, and what listens there.
async fn beyond(config: &Config, lane: &Lane, report: &Report) -> Result<(), Failure> {
    report.begin(Step::Target);
    let target = &config.target;
    let limit = config.timeouts.connect;
    let own = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let channel: Channel = match timeout(limit, lane.ssh.open(&target.host, target.port, own)).await
    {
        Ok(Ok(channel)) => channel,
        Ok(Err(OpenError::Lost(_))) => {
            return Err(Error::from(lane.ended().await).into_failure(Phase::Target));
        }
        Ok(Err(error)) => return Err(unreached(config, TargetCause::Open(error))),
        Err(_) => {
            return Err(unreached(config, TargetCause::TimedOut { seconds: limit.as_secs() }));
        }
    };
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

fn unreached(config: &Config, cause: TargetCause) -> Failure {
    let (host, port) = (config.target.host.clone(), config.target.port);
    Error::from(TargetError { host, port, cause }).into_failure(Phase::Target)
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
async fn who(plane: &ControlPlane, scope: &Mutex<Scope>, report: &Report) -> Result<(), Failure> {
    match plane.caller().await {
        Ok(arn) => {
            let mut scope = scope.lock().unwrap_or_else(PoisonError::into_inner);
            *scope = scope.clone().in_account_of(&arn);
            report.found(arn);
            Ok(())
        }
        Err(error) => match error.kind() {
            ApiErrorKind::Credentials
            | ApiErrorKind::CredentialsExpired
            | ApiErrorKind::AccessDenied => {
                let lane = crate::lanes::LaneError::from(error);
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
