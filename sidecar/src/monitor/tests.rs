//! What a worker gets away with that says what it may not, or says it last.

use std::future::pending;

use super::*;
use crate::{
    aws::{Identity, Settings as AwsSettings},
    ipc::message::Call,
};

/// A monitor, what it does for its worker, and the worker's end of the link.
fn watched(port: u16) -> (Monitor, Service, Link) {
    let (link, theirs) = Link::pair().unwrap();
    let process = Command::new("true").kill_on_drop(true).spawn().unwrap();
    let (outbox, queue) = mpsc::channel(QUEUE);
    let phase = Phase::Config;
    let monitor = Monitor { process, link, inbox: Inbox::default(), outbox, queue, phase };
    let settings = AwsSettings {
        identity: Identity::Environment,
        assume_role: None,
        region: "eu-west-1".to_owned(),
        endpoint_url: None,
        instance_id: "i-0123456789abcdef0".to_owned(),
        ssh_port: 22,
        reason: String::new(),
    };
    let trust = Trust::from_pem(b"");
    let plane = ControlPlane::new(settings, &trust, &Proxy::default());
    let wards = Wards::new(Settings::new("eu-west-1", trust, Proxy::default()));
    let service = Service {
        clerk: Clerk::new(Arc::new(plane), wards),
        calls: FuturesUnordered::new(),
        events: false,
        ready: Some(port),
    };
    let worker = Link::from_socket(theirs.into(), 1 << 20, 3).unwrap();
    (monitor, service, worker)
}

async fn says(worker: &Link, message: &ToMonitor) {
    worker.send(&encode(message).unwrap()).await.unwrap();
}

#[tokio::test]
async fn last_word_counts_where_an_answer_comes_too_late() {
    // Which of the two is seen first is chance.
    for _ in 0..50 {
        let (mut monitor, mut service, worker) = watched(1);
        let call = Call::Terminate { session: "none".to_owned() };
        says(&worker, &ToMonitor::Call { number: 0, call }).await;
        says(&worker, &ToMonitor::Ended(None)).await;
        drop(worker);
        let ended = monitor.attend(&mut service, pending(), |_| ()).await;
        assert!(matches!(ended, Ok(Ended::Tunnel(None))), "{ended:?}");
    }
}

#[tokio::test]
async fn port_that_is_not_the_listeners_is_not_given_out() {
    for (said, passed_on) in [(4711, vec![Line::Ready(4711)]), (4712, Vec::new())] {
        let (mut monitor, mut service, worker) = watched(4711);
        says(&worker, &ToMonitor::Line(Line::Ready(said).to_string())).await;
        says(&worker, &ToMonitor::Ended(None)).await;
        let mut heard = Vec::new();
        let ended = monitor.attend(&mut service, pending(), |line| heard.push(line.clone())).await;
        assert_eq!((heard, ended.is_ok()), (passed_on, said == 4711), "{said}");
    }
}
