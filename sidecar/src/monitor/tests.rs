//! A worker that breaks the protocol, dies or does not stop, and its last message.

use std::{
    future::{pending, ready},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use http::Uri;
use parking_lot::Mutex;

use super::*;
use crate::{
    channel::websocket::testing,
    ipc::message::Request,
    runtime::phase::Phase,
    session::{ApiError, Resumed, SessionApi, SignedHeaders, Started, Token},
};

/// Starts and terminates a session, refuses the other calls, and records the terminations.
#[derive(Clone, Debug, Default)]
struct Service(Arc<Mutex<Vec<String>>>);

impl SessionApi for Service {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        let stream_url = "wss://ssmmessages.ap-northeast-1.amazonaws.com/v1/data-channel/s-1";
        Box::pin(ready(Ok(Started {
            session_id: "s-1".to_owned(),
            stream_url: stream_url.to_owned(),
            token: Token::from("token".to_owned()),
        })))
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(ready(Err(ApiError::aborted())))
    }

    fn terminate<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        self.0.lock().push(id.to_owned());
        Box::pin(ready(Ok(())))
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(ready(Err(ApiError::aborted())))
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(ready(Err(ApiError::aborted())))
    }

    fn session_ended(&self, _: &str) {}
}

/// A monitor with its handler, and the worker's end of the socket.
fn start(port: u16) -> (Monitor, RequestHandler, IpcSocket) {
    start_with(Service::default(), port)
}

fn start_with(service: Service, port: u16) -> (Monitor, RequestHandler, IpcSocket) {
    let (socket, theirs) = IpcSocket::pair().unwrap();
    let process = Command::new("true").kill_on_drop(true).spawn().unwrap();
    let monitor = Monitor::new(process, socket);
    let endpoint = testing::endpoint(None, false);
    let handler = RequestHandler::new(Arc::new(service), endpoint, false, Some(port));
    let worker = IpcSocket::from_socket(theirs.into(), 1 << 20, 3).unwrap();
    (monitor, handler, worker)
}

async fn send(worker: &IpcSocket, message: &ToMonitor) {
    worker.send(&encode(message).unwrap()).await.unwrap();
}

#[tokio::test]
async fn last_message_counts_even_if_a_response_cannot_be_sent_any_more() {
    // Which of the two is noticed first is random.
    for _ in 0..50 {
        let (mut monitor, mut handler, worker) = start(1);
        let request = Request::TerminateSession { session_id: "none".to_owned() };
        send(&worker, &ToMonitor::Request { id: 0, request }).await;
        send(&worker, &ToMonitor::Finished(None)).await;
        drop(worker);
        let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
        assert!(matches!(outcome, Ok(WorkerOutcome::Tunnel(None))), "{outcome:?}");
    }
}

#[tokio::test]
async fn port_that_is_not_the_listeners_is_not_reported_to_the_runner() {
    for (reported, lines) in [(4711, vec![Line::Ready(4711)]), (4712, Vec::new())] {
        let (mut monitor, mut handler, worker) = start(4711);
        send(&worker, &ToMonitor::TunnelReady(reported)).await;
        send(&worker, &ToMonitor::Finished(None)).await;
        let mut printed = Vec::new();
        let outcome = monitor.run(&mut handler, pending(), |line| printed.push(line.clone())).await;
        assert_eq!((printed, outcome.is_ok()), (lines, reported == 4711), "{reported}");
    }
}

#[tokio::test]
async fn tunnel_is_reported_as_ready_once() {
    let (mut monitor, mut handler, worker) = start(4711);
    for _ in 0..2 {
        send(&worker, &ToMonitor::TunnelReady(4711)).await;
    }
    let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
    assert!(matches!(outcome, Err(WorkerFailure::Protocol(_))), "{outcome:?}");
}

#[tokio::test]
async fn worker_that_exits_without_a_last_message_is_reported_with_its_status() {
    let (mut monitor, mut handler, worker) = start(1);
    drop(worker);
    let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
    let Err(WorkerFailure::Exited(info)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(info.to_string(), ": exit status: 0");
}

/// A monitor whose worker has started the session `s-1`.
async fn with_session() -> (Service, Monitor, RequestHandler, IpcSocket) {
    let service = Service::default();
    let (mut monitor, mut handler, worker) = start_with(service.clone(), 1);
    send(&worker, &ToMonitor::Phase(Phase::StartSession)).await;
    send(&worker, &ToMonitor::Request { id: 7, request: Request::StartSession }).await;
    let mut buffer = ReceiveBuffer::default();
    let response = async { worker.receive(&mut buffer).await.unwrap().unwrap() };
    let frame = tokio::select! {
        outcome = monitor.run(&mut handler, pending(), |_| ()) => panic!("{outcome:?}"),
        frame = response => frame,
    };
    let message = decode(&frame).unwrap();
    assert!(matches!(message, ToWorker::Response { id: 7, .. }), "{message:?}");
    (service, monitor, handler, worker)
}

async fn finish(monitor: Monitor, handler: RequestHandler) {
    monitor.finish(Some(handler), Instant::now() + stop::AFTER_WORKER_LOST).await;
}

#[tokio::test(start_paused = true)]
async fn worker_that_does_not_stop_has_its_session_terminated_and_is_given_up_in_time() {
    let (service, mut monitor, mut handler, worker) = with_session().await;
    let began = Instant::now();
    let stop = ready(StopReason::StdinClosed);
    let outcome = monitor.run(&mut handler, stop, |_| ()).await;
    assert!(matches!(outcome, Err(WorkerFailure::Stuck)), "{outcome:?}");
    assert_eq!(began.elapsed().as_millis(), stop::MONITOR.as_millis());
    assert_eq!(*service.0.lock(), ["s-1"]);
    finish(monitor, handler).await;
    assert_eq!(*service.0.lock(), ["s-1"], "it is terminated once");
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn session_of_a_worker_that_died_is_terminated() {
    let (service, mut monitor, mut handler, worker) = with_session().await;
    drop(worker);
    let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
    assert!(matches!(outcome, Err(WorkerFailure::Exited(_))), "{outcome:?}");
    finish(monitor, handler).await;
    assert_eq!(*service.0.lock(), ["s-1"]);
}

#[tokio::test(start_paused = true)]
async fn session_of_a_worker_that_broke_the_protocol_is_terminated() {
    let (service, mut monitor, mut handler, worker) = with_session().await;
    send(&worker, &ToMonitor::Sandboxed(Vec::new())).await;
    let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
    assert!(matches!(outcome, Err(WorkerFailure::Protocol(_))), "{outcome:?}");
    finish(monitor, handler).await;
    assert_eq!(*service.0.lock(), ["s-1"]);
}

#[tokio::test(start_paused = true)]
async fn session_that_the_worker_reports_as_ended_is_not_terminated() {
    let (service, mut monitor, mut handler, worker) = with_session().await;
    send(&worker, &ToMonitor::SessionEnded { session_id: "s-1".to_owned() }).await;
    send(&worker, &ToMonitor::Finished(None)).await;
    let outcome = monitor.run(&mut handler, pending(), |_| ()).await;
    assert!(matches!(outcome, Ok(WorkerOutcome::Tunnel(None))), "{outcome:?}");
    finish(monitor, handler).await;
    assert!(service.0.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn worker_that_still_opens_its_key_is_not_waited_for() {
    let (mut monitor, mut handler, _worker) = start(1);
    let began = Instant::now();
    let outcome = monitor.run(&mut handler, ready(StopReason::StdinClosed), |_| ()).await;
    assert!(matches!(outcome, Ok(WorkerOutcome::Tunnel(None))), "{outcome:?}");
    assert_eq!(began.elapsed().as_millis(), stop::MONITOR_TAKES_OVER.as_millis());
}
