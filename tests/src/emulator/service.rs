//! State shared by the API, the gateway and the agents: settings, sessions, and the faults that are due.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::{
    agent,
    credentials::{Key, Keys, Principal},
    faults::{Action, Extent, Failure, Plan, Rng},
    flow_control::FlowControl,
    iam::{Decision, Policy, Request},
    journal::{Ending, Journal, Record, lock},
    session::{PATH, Session, Ticket},
    settings::{OpeningMode, Settings},
};

pub(crate) struct Service {
    pub(crate) settings: Settings,
    pub(crate) journal: Journal,
    pub(crate) keys: Keys,
    pub(crate) tasks: Tasks,
    /// Address at which data channels are opened.
    pub(crate) gateway: SocketAddr,
    user: Arc<Principal>,
    policy: Mutex<Policy>,
    /// Of `WebSockets` opened from now on.
    channel_lifetime: Mutex<Duration>,
    opening: Mutex<OpeningMode>,
    faults: Mutex<Faults>,
    plan: watch::Sender<Arc<Plan>>,
    flow_control: watch::Sender<FlowControl>,
    rng: Mutex<Rng>,
    sessions: Mutex<BTreeMap<String, Arc<Session>>>,
    /// Earliest time at which the agent begins the next session.
    next_start: Mutex<Instant>,
}

/// The faults of the API, and how often each still applies.
struct Faults {
    since: Instant,
    left: Vec<u32>,
}

/// The content of a `StartSession` call.
#[derive(Debug)]
pub(crate) struct StartRequest {
    pub(crate) target: String,
    pub(crate) document: String,
    pub(crate) port: u16,
    pub(crate) reason: Option<String>,
}

impl Service {
    pub(crate) fn new(settings: Settings, policy: Policy, plan: Plan, gateway: SocketAddr) -> Self {
        let user = Arc::new(Principal::user(&settings.account, "transfer"));
        let (channel_lifetime, opening) = (settings.channel_lifetime, settings.opening);
        let flow_control = watch::Sender::new(settings.flow_control);
        Self {
            settings,
            journal: Journal::new(),
            user,
            keys: Keys::default(),
            tasks: Tasks::default(),
            gateway,
            policy: Mutex::new(policy),
            channel_lifetime: Mutex::new(channel_lifetime),
            opening: Mutex::new(opening),
            faults: Mutex::new(Faults::new(&plan)),
            rng: Mutex::new(Rng::new(plan.seed)),
            plan: watch::Sender::new(Arc::new(plan)),
            flow_control,
            sessions: Mutex::default(),
            next_start: Mutex::new(Instant::now()),
        }
    }

    /// Starts a session, and the agent for it.
    pub(crate) fn start(
        self: &Arc<Self>,
        request: StartRequest,
        principal: &Arc<Principal>,
    ) -> (Arc<Session>, Ticket) {
        let id = format!("{}-0{}", principal.name, self.random(|rng| rng.hex(16)));
        let StartRequest { target, document, port, reason } = request;
        let (session, inbox) = Session::new(id.clone(), port, self.journal.clone());
        let session = Arc::new(session);
        let by = principal.arn.clone();
        self.journal.add(Record::SessionStarted {
            id: id.clone(),
            target,
            document,
            port,
            reason,
            by,
        });
        lock(&self.sessions).insert(id, Arc::clone(&session));
        let seed = self.random(Rng::next);
        let settings = &self.settings;
        let begin = {
            let mut next = lock(&self.next_start);
            let begin = (Instant::now() + settings.agent.start_delay).max(*next);
            *next = begin + settings.agent.start_spacing;
            begin
        };
        self.tasks.spawn(agent::run(
            Arc::clone(&session),
            inbox,
            begin,
            settings.agent.clone(),
            settings.pacing,
            self.watch_plan(),
            Rng::new(seed),
        ));
        self.tasks.spawn(watch_over(Arc::clone(&session), settings.clone()));
        let ticket = self.admit(&session);
        (session, ticket)
    }

    /// Issues a new token and URL; those issued before become invalid.
    pub(crate) fn admit(&self, session: &Session) -> Ticket {
        // A length that needs padding, and a first byte that encodes to a `+` and a `/`.
        let cell = self.random(|rng| {
            let mut bytes = vec![0xfb, 0xff, 0xfe];
            bytes.extend(rng.bytes(31));
            STANDARD.encode(bytes)
        });
        let query = format!("role=publish_subscribe&cell-number={cell}");
        let token = self.random(|rng| STANDARD.encode(rng.bytes(144)));
        self.journal.add_token(&token);
        let base = self.settings.stream_url.clone();
        let base = base.unwrap_or_else(|| format!("ws://{}", self.gateway));
        let url = format!("{base}{}{}?{query}", PATH, session.id);
        session.admit(&query, &token, Instant::now() + self.settings.token_lifetime);
        Ticket { url, token }
    }

    /// After which time a new `WebSocket` is closed, if ever.
    pub(crate) fn channel_lifetime(&self, signed: bool) -> Option<Duration> {
        let closes = signed || !self.settings.unsigned_channels_live_on;
        closes.then(|| *lock(&self.channel_lifetime))
    }

    pub(crate) fn opening(&self) -> OpeningMode {
        *lock(&self.opening)
    }

    pub(crate) fn set_opening(&self, mode: OpeningMode) {
        *lock(&self.opening) = mode;
    }

    /// Kills all processes of the agent; it begins no session before it is back.
    pub(crate) fn kill_agent(&self, back_after: Duration) {
        let back = Instant::now() + back_after;
        {
            let mut next = lock(&self.next_start);
            *next = back.max(*next);
        }
        for session in self.sessions() {
            session.kill_worker(back + self.settings.agent.report_delay);
        }
    }

    pub(crate) fn set_channel_lifetime(&self, lifetime: Duration) {
        *lock(&self.channel_lifetime) = lifetime;
    }

    pub(crate) fn session(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.sessions).get(id).map(Arc::clone)
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().map(Arc::clone).collect()
    }

    /// Checks whether a caller is allowed this action on this session; the error is the message of the
    /// refusal.
    pub(crate) fn authorize_on_session(
        &self,
        principal: &Principal,
        action: &str,
        id: &str,
    ) -> Result<(), String> {
        let Settings { region, account, .. } = &self.settings;
        let arn = format!("arn:aws:ssm:{region}:{account}:session/{id}");
        // A session's id begins with the name of the caller who started it; its tag is the caller's
        // `aws:userid`.
        let is_own = id.strip_prefix(&principal.name).is_some_and(|rest| rest.starts_with('-'));
        let owner = if is_own { &principal.user_id } else { "AIDASOMEBODYELSE" };
        self.decide(
            principal,
            action,
            &[arn],
            Some(("ssm:resourceTag/aws:ssmmessages:session-id", owner)),
        )
    }

    /// Checks whether a caller is allowed this action; the error is the message of the refusal.
    pub(crate) fn authorize(
        &self,
        principal: &Principal,
        action: &str,
        resources: &[String],
    ) -> Result<(), String> {
        self.decide(principal, action, resources, None)
    }

    fn decide(
        &self,
        principal: &Principal,
        action: &str,
        resources: &[String],
        tag: Option<(&'static str, &str)>,
    ) -> Result<(), String> {
        let mut context = BTreeMap::from([
            ("aws:userid", principal.user_id.clone()),
            ("aws:PrincipalAccount", self.settings.account.clone()),
            ("ssm:SessionDocumentAccessCheck", "true".to_owned()),
        ]);
        context.extend(tag.map(|(key, value)| (key, value.to_owned())));
        if principal.is_user {
            context.insert("aws:username", principal.name.clone());
        }
        let request = Request { action, resources, context: &context };
        let decision = match &principal.policy {
            Some(policy) => policy.decide(&request),
            None => lock(&self.policy).decide(&request),
        };
        let because = match decision {
            Decision::Allow => return Ok(()),
            Decision::ImplicitDeny => {
                format!("because no identity-based policy allows the {action} action")
            }
            Decision::ExplicitDeny => {
                "with an explicit deny in an identity-based policy".to_owned()
            }
        };
        let (caller, resource) = (&principal.arn, resources.first().map_or("*", String::as_str));
        Err(format!(
            "User: {caller} is not authorized to perform: {action} on resource: {resource} {because}"
        ))
    }

    /// Returns the failure that applies to this call, if any, and counts it as used.
    pub(crate) fn failure(&self, action: Action) -> Option<Failure> {
        let plan = self.plan();
        let mut faults = lock(&self.faults);
        let elapsed = faults.since.elapsed();
        for (fault, left) in plan.api.iter().zip(&mut faults.left) {
            let over = matches!(fault.extent, Extent::Lasting(duration) if elapsed >= duration);
            if fault.action.is_some_and(|other| other != action) || over || *left == 0 {
                continue;
            }
            if matches!(fault.extent, Extent::Times(_)) {
                *left -= 1;
            }
            return Some(fault.failure.clone());
        }
        None
    }

    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.borrow())
    }

    pub(crate) fn watch_plan(&self) -> watch::Receiver<Arc<Plan>> {
        self.plan.subscribe()
    }

    pub(crate) fn set_plan(&self, plan: Plan) {
        *lock(&self.faults) = Faults::new(&plan);
        self.plan.send_replace(Arc::new(plan));
    }

    pub(crate) fn watch_flow_control(&self) -> watch::Receiver<FlowControl> {
        self.flow_control.subscribe()
    }

    pub(crate) fn set_flow_control(&self, flow_control: FlowControl) {
        self.flow_control.send_replace(flow_control);
    }

    pub(crate) fn set_policy(&self, policy: Policy) {
        *lock(&self.policy) = policy;
    }

    /// Adds a key of the user.
    pub(crate) fn add_key(
        &self,
        id: &str,
        secret: &str,
        token: Option<&str>,
        lifetime: Option<Duration>,
    ) {
        let expires = lifetime.map(|lifetime| SystemTime::now() + lifetime);
        let principal = Arc::clone(&self.user);
        let (secret, token) = (secret.to_owned(), token.map(str::to_owned));
        self.keys.add(id, Key { secret, token, expires, principal });
    }

    pub(crate) fn add_user(&self, name: &str, key_id: &str, secret: &str, policy: Policy) {
        let principal = Arc::new(Principal::another_user(&self.settings.account, name, policy));
        let secret = secret.to_owned();
        self.keys.add(key_id, Key { secret, token: None, expires: None, principal });
    }

    pub(crate) fn random<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut lock(&self.rng))
    }

    pub(crate) fn has_instance(&self, id: &str) -> bool {
        self.settings.instances.iter().any(|other| other == id)
    }
}

impl Faults {
    fn new(plan: &Plan) -> Self {
        let left = plan.api.iter().map(|fault| match fault.extent {
            Extent::Times(times) => times,
            Extent::Always | Extent::Lasting(_) => u32::MAX,
        });
        Self { since: Instant::now(), left: left.collect() }
    }
}

/// Ends a session when it is idle or too old.
async fn watch_over(session: Arc<Session>, settings: Settings) {
    let start = Instant::now();
    let oldest = settings.maximum_duration.map(|duration| start + duration);
    loop {
        let idle = session.last_input() + settings.idle_timeout;
        let due = oldest.map_or(idle, |oldest| oldest.min(idle));
        tokio::select! {
            _ = session.ended() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        if oldest.is_some_and(|oldest| oldest <= Instant::now()) {
            session.end(Ending::MaximumDuration, MAXIMUM_DURATION);
        } else if session.last_input() + settings.idle_timeout <= Instant::now() {
            session.end(Ending::Idle, IDLE);
        }
    }
}

/// An emulator's tasks, aborted with it.
#[derive(Debug)]
pub(crate) struct Tasks(Mutex<Option<JoinSet<()>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Mutex::new(Some(JoinSet::new())))
    }
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.0).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    pub(crate) fn stop(&self) {
        let tasks = lock(&self.0).take();
        drop(tasks);
    }
}

/// Observed on AWS (specification, section 9).
const IDLE: &str = "Your session timed out due to inactivity and has been terminated.";

const MAXIMUM_DURATION: &str =
    "Your session has been terminated because it reached the maximum session duration.";
