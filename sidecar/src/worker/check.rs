//! `check` in the worker: each step of the start in turn, printed with what it found, and the hint of the step that
//! failed. The steps are those of a tunnel, by the same code. The session is ended on every way out.

mod database;
pub(crate) mod report;

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use runner_protocol::{Config, ErrorCode, Failure};
use serde_json::json;
use tokio::time::Instant;

use self::report::{Report, Step, status_of_signal};
use crate::{
    channel::websocket::OpeningSignature,
    config::Settings,
    ipc::message::OutputFormat,
    runtime::{
        failure::{InternalError, ToFailure},
        panics::Panics,
        phase::Phase,
        shutdown::Shutdown,
        stop::{self, StopReason},
        terminal,
    },
    session::{ApiError, ApiErrorKind, IamAction, SessionApi, iam_policy::Scope},
    tunnel::{
        Dependencies, TunnelError,
        lanes::{Lane, LaneConfig, LaneError, LaneEvent, LaneObserver, open_first},
        target,
    },
};

/// The status to exit with and, where a step has failed, its failure.
type Outcome = (u8, Option<Failure>);

/// A failed step, and the IAM action that is not allowed, if that is why.
struct StepFailure {
    failure: Failure,
    denied: Option<IamAction>,
}

/// Runs the steps and prints them on stdout.
pub(super) async fn run(
    config: Config,
    dependencies: Dependencies,
    format: OutputFormat,
    stop: impl Future<Output = StopReason>,
) -> Outcome {
    let report = Arc::new(Report::to_stdout(format));
    report.begin(Step::Config);
    let scope = Scope::from_config(&config);
    match Settings::from_config(config) {
        Ok(settings) => run_until_stopped(&settings, scope, &report, dependencies, stop).await,
        Err(error) => {
            let failure = error.to_failure(Phase::Config);
            (report.fail(&failure, None), Some(failure))
        }
    }
}

async fn run_until_stopped(
    settings: &Settings,
    scope: Scope,
    report: &Arc<Report>,
    dependencies: Dependencies,
    stop: impl Future<Output = StopReason>,
) -> Outcome {
    let shutdown = Shutdown::default();
    let scope = Mutex::new(scope);
    let panics = dependencies.panics.clone();
    let steps = run_steps(settings, &scope, report, dependencies, &shutdown);
    // A panic is caught here: the session is still to be ended.
    let steps = AssertUnwindSafe(steps).catch_unwind();
    let outcome = tokio::select! {
        outcome = steps => outcome.unwrap_or_else(|_| Err(panicked(&panics, report))),
        () = panics.occurred() => Err(panicked(&panics, report)),
        stop = stop => {
            report.stopped(stop.as_str());
            finish(&shutdown).await;
            return (status_of_signal(stop.as_str()), None);
        }
    };
    // Tasks end the sessions of a failed step.
    finish(&shutdown).await;
    // A panic explains every other failure.
    let outcome = match panics.first() {
        Some(_) => Err(panicked(&panics, report)),
        None => outcome,
    };
    match outcome {
        Ok(()) => (report.succeed(), None),
        Err(StepFailure { failure, denied }) => {
            let statement = denied.and_then(|action| scope.lock().statement_for(action));
            (report.fail(&failure, statement), Some(failure))
        }
    }
}

fn panicked(panics: &Panics, report: &Report) -> StepFailure {
    let error = panics.first().map_or_else(|| InternalError::new("panic"), InternalError::from);
    error.to_failure(report.phase()).into()
}

async fn finish(shutdown: &Shutdown) {
    if let Err(error) = shutdown.finish(stop::WORKER).await {
        terminal::print_line(&format!("a session may be left to its idle time-out: {error}"));
    }
}

async fn run_steps(
    settings: &Settings,
    scope: &Mutex<Scope>,
    report: &Arc<Report>,
    dependencies: Dependencies,
    shutdown: &Shutdown,
) -> Result<(), StepFailure> {
    report.found(summary(settings));
    let Dependencies { api, connector, .. } = dependencies;

    report.begin(Step::Identity);
    check_identity(&*api, scope, report).await?;

    let config = LaneConfig::new(settings, Arc::clone(&api), connector, shutdown.clone());
    let config = Arc::new(config);
    let progress = Arc::new(LaneProgress::new(Arc::clone(report)));
    let observer: LaneObserver = {
        let progress = Arc::clone(&progress);
        Arc::new(move |event| progress.on_event(event))
    };
    let limit = settings.timeouts.ready;
    let deadline = Instant::now() + limit;
    let lane = match open_first(&config, &observer, deadline).await {
        Ok(outcome) => outcome.map_err(TunnelError::from),
        Err(_) => Err(TunnelError::NotReady { seconds: limit.as_secs(), phase: progress.phase() }),
    };
    let lane = lane.map_err(|error| with_offered_key(&error, progress.phase(), settings))?;
    report.found(format!("`{}`", settings.bastion.ssh_user));

    let outcome = check_target(settings, &config, &lane, report).await;
    if outcome.is_ok() {
        check_permissions(&*api, &progress, scope, report).await;
    }
    lane.terminate(stop::TERMINATE_FLAG).await;
    outcome
}

/// Connects to the target, and identifies the database there.
async fn check_target(
    settings: &Settings,
    config: &LaneConfig,
    lane: &Lane,
    report: &Report,
) -> Result<(), StepFailure> {
    report.begin(Step::Target);
    let target = &settings.target;
    let limit = settings.timeouts.connect;
    let connected = target::connect(lane, config, limit).await;
    let channel = connected.map_err(|error| step_failure(&error, Phase::Target))?;
    report.found(format!("{}:{} reached from the bastion", target.host, target.port));

    report.begin(Step::Database);
    match database::ask(&channel, target.engine).await {
        Ok(found) => report.found(found),
        Err(what) => {
            let message = format!("{}:{} {what}", target.host, target.port);
            let hint = "check `target.port` and `target.engine`: what listens there is not this database, \
                        or it refuses every login at present";
            let code = ErrorCode::TargetUnreachable;
            return Err(Failure::new(code, message, hint, Phase::Target.name()).into());
        }
    }
    Ok(())
}

fn summary(settings: &Settings) -> String {
    let Settings { name, bastion, aws, target, .. } = settings;
    format!(
        "`{name}`: {} in {}, to {}:{}; key {} {}",
        bastion.instance_id,
        aws.region,
        target.host,
        target.port,
        ssh_client::key_type(&bastion.key),
        ssh_client::fingerprint(&bastion.key),
    )
}

/// Finds the owner of the credentials. Fails only if these are refused: where STS is not reached, the other steps still
/// work.
async fn check_identity(
    api: &dyn SessionApi,
    scope: &Mutex<Scope>,
    report: &Report,
) -> Result<(), StepFailure> {
    match api.caller().await {
        Ok(arn) => {
            let mut scope = scope.lock();
            *scope = scope.clone().for_caller(&arn);
            report.found(arn);
            Ok(())
        }
        Err(error) => match error.kind() {
            ApiErrorKind::Credentials
            | ApiErrorKind::CredentialsExpired
            | ApiErrorKind::AccessDenied => {
                Err(step_failure(&LaneError::from(error).into(), Phase::StartSession))
            }
            _ => {
                report.warn(format!("the caller's identity is unknown: {error}"), None);
                Ok(())
            }
        },
    }
}

/// Tries the permissions that make a session more robust on this session, which ends it. Any outcome but `AccessDenied`
/// counts as allowed.
async fn check_permissions(
    api: &dyn SessionApi,
    progress: &LaneProgress,
    scope: &Mutex<Scope>,
    report: &Report,
) {
    report.begin(Step::Permissions);
    let Some((session_id, signature)) = progress.session() else { return };
    let denied = |outcome: Result<(), ApiError>| {
        outcome.is_err_and(|error| error.kind() == ApiErrorKind::AccessDenied)
    };
    let mut missing = Vec::new();
    for action in IamAction::OWN_SESSIONS {
        let is_denied = match action {
            IamAction::ResumeSession => denied(api.resume(&session_id).await.map(drop)),
            IamAction::TerminateSession => denied(api.terminate(&session_id).await),
            _ => signature == OpeningSignature::UnsignedAfterRefusal,
        };
        if is_denied {
            missing.push(action);
        }
    }
    let list = |actions: &[IamAction]| {
        actions.iter().map(|action| action.as_str()).collect::<Vec<_>>().join(", ")
    };
    if missing.is_empty() {
        let all = list(&IamAction::OWN_SESSIONS);
        report.found(format!("{}, {all}", IamAction::StartSession));
        return;
    }
    let statement = scope.lock().own_sessions(&missing);
    let gains: Vec<_> = missing.iter().map(|action| gain_of(*action)).collect();
    let text = format!("not allowed, and not required: {}; {}", list(&missing), gains.join("; "));
    report.warn(text, Some(statement));
}

/// What is gained by an action that is not required.
fn gain_of(action: IamAction) -> &'static str {
    match action {
        IamAction::ResumeSession => {
            "resumed, a session outlives a lost connection and the close of its channel"
        }
        IamAction::TerminateSession => {
            "terminated by API, a session ends also when its channel is lost"
        }
        _ => "AWS may stop accepting unsigned openings, as the one used here",
    }
}

/// Adds the fingerprint of a refused key, to be compared with those in the bastion's `authorized_keys`.
fn with_offered_key(error: &TunnelError, phase: Phase, settings: &Settings) -> StepFailure {
    let mut failed = step_failure(error, phase);
    let failure = &mut failed.failure;
    if matches!(error, TunnelError::Lane(error) if error.is_key_refused()) {
        let fingerprint = ssh_client::fingerprint(&settings.bastion.key);
        let user = &settings.bastion.ssh_user;
        failure.hint = format!(
            "{}; `ssh-keygen -lf ~{user}/.ssh/authorized_keys` on the bastion must list {fingerprint}",
            failure.hint
        );
    }
    failed
}

fn step_failure(error: &TunnelError, phase: Phase) -> StepFailure {
    let denied = match error {
        TunnelError::Lane(error) => error.denied_action(),
        _ => None,
    };
    StepFailure { failure: error.to_failure(phase), denied }
}

impl From<Failure> for StepFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, denied: None }
    }
}

/// Reports what the opening of the lane finds.
struct LaneProgress {
    report: Arc<Report>,
    state: Mutex<ProgressState>,
}

struct ProgressState {
    phase: Phase,
    session: Option<(String, OpeningSignature)>,
}

impl LaneProgress {
    fn new(report: Arc<Report>) -> Self {
        let state = ProgressState { phase: Phase::Config, session: None };
        Self { report, state: Mutex::new(state) }
    }

    fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// The id of the last session, and how its opening was signed.
    fn session(&self) -> Option<(String, OpeningSignature)> {
        self.state.lock().session.clone()
    }

    fn on_event(&self, event: LaneEvent) {
        let mut state = self.state.lock();
        match event {
            LaneEvent::Phase(phase) => {
                state.phase = phase;
                self.report.begin_phase(phase);
            }
            LaneEvent::SessionStarted(id) => {
                // Not for a second session, which is started to find another type of host key.
                if self.report.is_at(Step::StartSession) {
                    self.report.found(format!("session {id}"));
                }
                state.session = Some((id, OpeningSignature::NotSigned));
            }
            LaneEvent::ChannelOpen { agent_version, signature } => {
                let opening = match signature {
                    OpeningSignature::Signed => "signed opening",
                    OpeningSignature::UnsignedAfterRefusal => "unsigned opening",
                    OpeningSignature::NotSigned => "opening signed by its URL",
                };
                if self.report.is_at(Step::Session) {
                    self.report.found(format!("agent {agent_version}, {opening}"));
                }
                if let Some((_, known)) = &mut state.session {
                    *known = signature;
                }
            }
            LaneEvent::ServerVerified(identity) => {
                let (server, fingerprint) = (identity.server, identity.fingerprint);
                if identity.pinned {
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
