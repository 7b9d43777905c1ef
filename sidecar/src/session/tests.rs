use parking_lot::Mutex;
use std::{collections::VecDeque, future::pending};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::*;

/// A scripted service: each `StartSession` fails with the next of `starts`, and succeeds when there is none left.
#[derive(Debug, Default)]
struct Script {
    starts: Mutex<VecDeque<ApiError>>,
    terminations: Mutex<VecDeque<ApiError>>,
    /// When set, `StartSession` answers once it is notified.
    gate: Option<Notify>,
    calls: Mutex<Vec<String>>,
}

impl Script {
    fn starts(errors: impl IntoIterator<Item = ApiError>) -> Arc<Self> {
        let starts = Mutex::new(errors.into_iter().collect());
        Arc::new(Self { starts, ..Self::default() })
    }

    fn terminations(errors: impl IntoIterator<Item = ApiError>) -> Arc<Self> {
        let terminations = Mutex::new(errors.into_iter().collect());
        Arc::new(Self { terminations, ..Self::default() })
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().clone()
    }

    fn note(&self, call: impl Into<String>) {
        self.calls.lock().push(call.into());
    }
}

impl SessionApi for Script {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        self.note("start");
        Box::pin(async {
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            if let Some(error) = self.starts.lock().pop_front() {
                return Err(error);
            }
            Ok(Started {
                session_id: "s-1".to_owned(),
                stream_url: "wss://stream.example/s-1".to_owned(),
                token: Token::from("secret token".to_owned()),
            })
        })
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        unreachable!("these tests lose no WebSocket")
    }

    fn terminate<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        self.note(format!("terminate {session_id}"));
        Box::pin(async {
            // As a real call does, so that it can be cancelled here.
            tokio::task::yield_now().await;
            self.terminations.lock().pop_front().map_or(Ok(()), Err)
        })
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        unreachable!("these tests open no WebSocket")
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        unreachable!("these tests ask for no caller")
    }

    fn session_ended(&self, _: &str) {}
}

fn error(kind: ApiErrorKind) -> ApiError {
    ApiError::new(kind, format!("{kind:?}"), "")
}

async fn start_with(script: &Arc<Script>, budget: u64) -> Result<Session, ApiErrorKind> {
    let api = Arc::clone(script) as Arc<dyn SessionApi>;
    let starter = SessionStarter::new(api, Shutdown::default(), Duration::from_secs(budget));
    let outcome = starter.start(pending()).await;
    outcome.map_err(|error| error.kind())
}

async fn session(script: &Arc<Script>, shutdown: &Shutdown) -> Session {
    starter(script, shutdown).start(pending()).await.unwrap()
}

fn starter(script: &Arc<Script>, shutdown: &Shutdown) -> SessionStarter {
    let api = Arc::clone(script) as Arc<dyn SessionApi>;
    SessionStarter::new(api, shutdown.clone(), Duration::from_mins(1))
}

async fn finish(shutdown: &Shutdown) {
    shutdown.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn start_that_is_not_wanted_any_more_is_still_answered() {
    let script = Arc::new(Script { gate: Some(Notify::new()), ..Script::default() });
    let shutdown = Shutdown::default();
    let starter = starter(&script, &shutdown);
    let starting = starter.start(std::future::ready(()));
    let answer = async { script.gate.as_ref().unwrap().notify_one() };
    let (session, ()) = tokio::join!(starting, answer);
    drop(session.unwrap());
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn start_that_is_not_wanted_any_more_is_not_retried() {
    let script = Script::starts([error(ApiErrorKind::Throttled)]);
    let starter = starter(&script, &Shutdown::default());
    let refused = starter.start(std::future::ready(())).await.unwrap_err();
    assert_eq!(refused.kind(), ApiErrorKind::Throttled);
    assert_eq!(script.calls(), ["start"]);
}

#[tokio::test(start_paused = true)]
async fn every_session_is_counted_when_it_is_started() {
    let unusable = error(ApiErrorKind::Internal).with_session_created();
    let script = Script::starts([error(ApiErrorKind::Throttled), unusable]);
    let starter = starter(&script, &Shutdown::default());
    // The first one was created by a call whose answer could not be used.
    for count in 2..=4 {
        drop(starter.start(pending()).await.unwrap());
        assert_eq!(starter.started(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_session_is_terminated_before_the_process_ends() {
    let script = Script::terminations([error(ApiErrorKind::Throttled)]);
    let shutdown = Shutdown::default();
    drop(session(&script, &shutdown).await);
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start", "terminate s-1", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn terminated_session_is_not_terminated_again() {
    let script = Script::starts([]);
    let shutdown = Shutdown::default();
    session(&script, &shutdown).await.terminate().await.unwrap();
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn refused_termination_is_reported_and_not_repeated() {
    let script = Script::terminations([error(ApiErrorKind::AccessDenied)]);
    let shutdown = Shutdown::default();
    let refused = session(&script, &shutdown).await.terminate().await.unwrap_err();
    assert_eq!(refused.kind(), ApiErrorKind::AccessDenied);
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn cancelled_termination_is_repeated_in_the_background() {
    let script = Script::starts([]);
    let shutdown = Shutdown::default();
    let session = session(&script, &shutdown).await;
    {
        let mut terminating = Box::pin(session.terminate());
        assert!(futures_util::poll!(terminating.as_mut()).is_pending());
    }
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start", "terminate s-1", "terminate s-1"]);
}

#[tokio::test(start_paused = true)]
async fn session_that_the_service_has_ended_is_left_alone() {
    let script = Script::starts([]);
    let shutdown = Shutdown::default();
    let mut session = session(&script, &shutdown).await;
    session.mark_ended();
    drop(session);
    finish(&shutdown).await;
    assert_eq!(script.calls(), ["start"]);
}

#[tokio::test(start_paused = true)]
async fn termination_gives_up_in_time_for_the_stop() {
    let script = Script::terminations((0..1000).map(|_| error(ApiErrorKind::Unreachable)));
    let shutdown = Shutdown::default();
    let session = session(&script, &shutdown).await;
    shutdown.stop();
    let began = Instant::now();
    assert_eq!(session.terminate().await.unwrap_err().kind(), ApiErrorKind::Unreachable);
    assert!(began.elapsed() <= stop::TERMINATE_API);
    assert!(script.calls().len() > 2, "retried meanwhile");
}

#[tokio::test(start_paused = true)]
async fn termination_is_retried_for_longer_while_the_job_continues() {
    let script = Script::terminations((0..20).map(|_| error(ApiErrorKind::Unreachable)));
    let shutdown = Shutdown::default();
    let session = session(&script, &shutdown).await;
    let began = Instant::now();
    session.terminate().await.unwrap();
    assert!(began.elapsed() > stop::TERMINATE_API, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn transient_errors_are_retried() {
    for kind in [ApiErrorKind::Throttled, ApiErrorKind::Internal, ApiErrorKind::Unreachable] {
        let script = Script::starts((0..4).map(|_| error(kind)));
        assert_eq!(start_with(&script, 60).await.unwrap().id(), "s-1");
        assert_eq!(script.calls(), ["start"; 5], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_not_retried() {
    for kind in [
        ApiErrorKind::AccessDenied,
        ApiErrorKind::Credentials,
        ApiErrorKind::CredentialsExpired,
        ApiErrorKind::Refused,
    ] {
        let script = Script::starts([error(kind)]);
        assert_eq!(start_with(&script, 60).await.unwrap_err(), kind);
        assert_eq!(script.calls(), ["start"], "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn retries_end_with_the_budget() {
    let began = Instant::now();
    let script = Script::starts((0..1000).map(|_| error(ApiErrorKind::Throttled)));
    assert_eq!(start_with(&script, 60).await.unwrap_err(), ApiErrorKind::Throttled);
    let took = began.elapsed().as_secs();
    assert!((40..60).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn instance_that_is_not_connected_is_retried_for_a_part_of_the_budget() {
    let began = Instant::now();
    let script = Script::starts((0..1000).map(|_| error(ApiErrorKind::InstanceNotConnected)));
    assert_eq!(start_with(&script, 60).await.unwrap_err(), ApiErrorKind::InstanceNotConnected);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(script.calls().len() > 2);

    let script = Script::starts([error(ApiErrorKind::InstanceNotConnected)]);
    assert!(start_with(&script, 60).await.is_ok(), "an agent that has just started is waited for");
}

#[tokio::test(start_paused = true)]
async fn start_of_unknown_outcome_is_repeated_once() {
    let script = Script::starts((0..1000).map(|_| error(ApiErrorKind::TimedOut)));
    assert_eq!(start_with(&script, 60).await.unwrap_err(), ApiErrorKind::TimedOut);
    assert_eq!(script.calls(), ["start"; 2]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_retried_after_a_stop() {
    let script = Script::starts((0..1000).map(|_| error(ApiErrorKind::Throttled)));
    let shutdown = Shutdown::default();
    shutdown.stop();
    let refused = starter(&script, &shutdown).start(pending()).await.unwrap_err();
    assert_eq!(refused.kind(), ApiErrorKind::Throttled);
    assert_eq!(script.calls(), ["start"]);
}

#[test]
fn secrets_are_not_shown() {
    let started = Started {
        session_id: String::new(),
        stream_url: String::new(),
        token: Token::from("hunter2".to_owned()),
    };
    let keys = Keys {
        access_key_id: "AKIDEXAMPLE".to_owned(),
        secret_access_key: Zeroizing::new("hunter2".to_owned()),
        session_token: Some(Zeroizing::new("hunter2".to_owned())),
    };
    let shown = format!("{started:?} {keys:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("AKID"), "{shown}");
}
