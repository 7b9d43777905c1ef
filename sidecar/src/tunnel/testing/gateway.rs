//! The message gateway with the agent behind it: one WebSocket of one session.

use std::mem;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::sleep_until,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};

use super::{PathFault, Session, World};
use crate::runtime::clock::now;

/// Serves a WebSocket until either end closes it or its path is cut.
#[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
pub(super) async fn serve(world: World, connection: DuplexStream) {
    let mut id = String::new();
    let callback = |request: &Request, response: Response| {
        id = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(connection, callback).await else { return };
    let session = world.session(&id);
    let Some(Ok(Message::Text(opening))) = socket.next().await else { return };
    assert!(opening.contains(r#""TokenValue":"token""#), "{opening}");
    // What was wrong with the last WebSocket is not wrong with this one.
    session.fault.send_replace(PathFault::None);
    sleep_until(session.begin.into()).await;
    carry(&session, &mut socket).await;
}

/// Carries messages to the agent and back, and bytes between the agent and sshd.
async fn carry(session: &Session, socket: &mut WebSocketStream<DuplexStream>) {
    let mut fault = session.fault.subscribe();
    let mut sshd = session.sshd.lock().await;
    let (mut buffer, mut unwritten) = (vec![0; 64 * 1024], Vec::new());
    // sshd has closed its connection, and the session is to end.
    let (mut hung_up, mut over) = (false, false);
    loop {
        let present = *fault.borrow();
        if present == PathFault::AgentGone {
            match socket.next().await {
                Some(Ok(Message::Ping(_))) => socket.flush().await.unwrap_or(()),
                Some(Ok(_)) => (),
                Some(Err(_)) | None => return,
            }
            continue;
        }
        let (out, written, timeout) = poll_agent(session);
        for frame in out {
            if socket.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
        if hung_up && !over && is_everything_passed_on(session) {
            // Without a reason, as the real agent does it.
            session.agent.lock().close("");
            over = true;
            continue;
        }
        unwritten.extend(written);
        if present != PathFault::SshdStuck {
            // Nobody reads any more once sshd has hung up.
            let _gone = sshd.write_all(&mem::take(&mut unwritten)).await;
        }
        let timeout = async {
            match timeout {
                Some(timeout) => sleep_until(timeout.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            frame = socket.next() => match frame {
                Some(Ok(Message::Binary(frame))) => {
                    session.agent.lock().handle_message(now(), &frame);
                }
                Some(Ok(Message::Ping(_))) => socket.flush().await.unwrap_or(()),
                Some(Ok(_)) => (),
                Some(Err(_)) | None => return,
            },
            read = sshd.read(&mut buffer), if !hung_up && present != PathFault::SshdStuck => match read {
                Ok(0) | Err(_) => hung_up = true,
                Ok(read) => session.agent.lock().offer(&buffer[..read]),
            },
            _ = fault.changed() => match *fault.borrow_and_update() {
                PathFault::None | PathFault::AgentGone | PathFault::SshdStuck => (),
                PathFault::Cut => return,
                PathFault::Silent => break,
            },
            () = timeout => (),
        }
    }
    // Another WebSocket may be served meanwhile.
    drop(sshd);
    let _closed = fault.wait_for(|fault| *fault == PathFault::Cut).await;
}

/// Whether the session is open, and the client has everything that sshd has sent.
fn is_everything_passed_on(session: &Session) -> bool {
    let agent = session.agent.lock();
    !agent.responses.is_empty() && agent.has_sent_everything()
}

/// The agent's frames, its bytes for sshd, and its next deadline.
fn poll_agent(session: &Session) -> (Vec<bytes::Bytes>, Vec<u8>, Option<std::time::Instant>) {
    let mut agent = session.agent.lock();
    agent.handle_timeout(now());
    let out = std::iter::from_fn(|| agent.poll_transmit()).collect();
    (out, mem::take(&mut agent.written), agent.poll_timeout())
}
