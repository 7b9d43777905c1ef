//! Messages that the worker may not send, and the last message.

use std::{future::pending, sync::Arc};

use futures_util::future::BoxFuture;
use http::Uri;

use super::*;
use crate::{
    channel::websocket::testing,
    ipc::message::Request,
    session::{ApiError, Resumed, SessionApi, SignedHeaders, Started},
};

/// Refuses every call.
#[derive(Debug)]
struct Refusing;

impl SessionApi for Refusing {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        Box::pin(std::future::ready(Err(ApiError::aborted())))
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        Box::pin(std::future::ready(Err(ApiError::aborted())))
    }

    fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        Box::pin(std::future::ready(Err(ApiError::aborted())))
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        Box::pin(std::future::ready(Err(ApiError::aborted())))
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        Box::pin(std::future::ready(Err(ApiError::aborted())))
    }

    fn session_ended(&self, _: &str) {}
}

/// A monitor with its handler, and the worker's end of the socket.
fn start(port: u16) -> (Monitor, RequestHandler, IpcSocket) {
    let (socket, theirs) = IpcSocket::pair().unwrap();
    let process = Command::new("true").kill_on_drop(true).spawn().unwrap();
    let monitor = Monitor::new(process, socket);
    let endpoint = testing::endpoint(None, false);
    let handler = RequestHandler::new(Arc::new(Refusing), endpoint, false, Some(port));
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
