//! A client's WebSocket: its opening message, then frames between client and agent, until the connection
//! ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    codec::{self, PAUSE_PUBLICATION, START_PUBLICATION},
    faults::{Break, Link, Plan},
    flow_control::{Effect, FlowClose, FlowControl, Gauge, Next},
    journal::{Ending, Record, count},
    link::{Arrived, Path},
    opening::{self, Opening},
    payload,
    service::Service,
    session::{Attached, Session, ToClient, publication},
    websocket::{self, BINARY, Incoming, PONG, ReadError, Reader},
};

/// Why a connection ends.
enum Exit {
    /// The client, or its network, closed it.
    Client(String),
    /// The client violated the protocol.
    Violation(String),
    /// The service breaks it, by plan or on request.
    Break(Break),
    /// Another connection has replaced it.
    Replaced,
    /// The session has ended, and the client has been informed.
    Over,
}

/// What both directions of a connection share.
struct Connection<'a> {
    session: &'a Session,
    plan: watch::Receiver<Arc<Plan>>,
    flow_control: watch::Receiver<FlowControl>,
    /// Number of this connection among the session's, from 1.
    generation: u64,
    frames: AtomicU64,
    /// When the service closes it.
    lives_until: Option<Instant>,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    mut stream: TcpStream,
    buffer: BytesMut,
    session: Arc<Session>,
    signed: bool,
    service: &Service,
) {
    let (read, mut write) = stream.split();
    let mut reader = Reader::new(read, buffer);
    let (controls, mut to_write) = mpsc::channel(CONTROLS);
    let opened = async {
        let opening = first_message(&mut reader, &mut write, &session).await?;
        session.attach(&opening.token, opening.client_id)
    };
    let attached = match timeout(OPENING, opened)
        .await
        .unwrap_or_else(|_| Err("too late".to_owned()))
    {
        Ok(attached) => attached,
        Err(why) => {
            let id = session.id.clone();
            service.journal.add(Record::OpeningRefused { session: id, signed, why: why.clone() });
            let mut out = BytesMut::new();
            websocket::put_close(&mut out, POLICY, &why);
            drop(write.write_all(&out).await);
            return close(&mut stream).await;
        }
    };
    service.journal.add(Record::Opened { session: session.id.clone(), signed });
    session.publish_to(true).await;
    let Attached { generation, frames, early } = attached;
    let connection = Connection {
        session: &session,
        plan: service.watch_plan(),
        flow_control: service.watch_flow_control(),
        generation,
        frames: AtomicU64::new(0),
        lives_until: service.channel_lifetime(signed).map(|life| Instant::now() + life),
    };
    let exit = tokio::select! {
        exit = connection.read(&mut reader, &controls) => exit,
        exit = connection.write(&mut write, frames, early, &mut to_write) => exit,
    };
    connection.leave(exit, stream).await;
}

/// Reads the opening message; pings may precede it.
async fn first_message<R: AsyncRead + Unpin>(
    reader: &mut Reader<R>,
    write: &mut (impl AsyncWrite + Unpin),
    session: &Session,
) -> Result<Opening, String> {
    loop {
        match reader.next().await {
            Ok(Incoming::Ping(payload)) => {
                let mut out = BytesMut::new();
                websocket::put(&mut out, PONG, &payload);
                write.write_all(&out).await.map_err(|error| error.to_string())?;
            }
            Ok(Incoming::Pong) => {}
            Ok(Incoming::Text(text)) => {
                let opening = opening::read(&text).inspect_err(|why| {
                    session.violation(format!("OpenDataChannel: {why}"));
                })?;
                if opening.outdated {
                    session.violation("OpenDataChannel: ClientVersion is older than 1.2.764.0");
                }
                return Ok(opening);
            }
            Ok(Incoming::Binary(_)) => {
                session.violation("OpenDataChannel: a binary frame");
                return Err("a binary frame in place of the opening message".to_owned());
            }
            Ok(Incoming::Close(_)) => return Err("closed by the client".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

impl Connection<'_> {
    /// The direction from the client to the agent.
    async fn read<R: AsyncRead + Unpin>(
        &self,
        reader: &mut Reader<R>,
        controls: &mpsc::Sender<Bytes>,
    ) -> Exit {
        let seed = self.plan.borrow().seed;
        let mut path = Path::new(seed ^ self.generation.rotate_left(32) ^ 1);
        let mut violations = Vec::new();
        loop {
            while let Some(Arrived { frame, .. }) = path.arrived(Instant::now()) {
                self.session.submit(frame).await;
            }
            let incoming = tokio::select! {
                incoming = reader.next() => incoming,
                () = until(path.due()) => continue,
            };
            let frame = match incoming {
                Ok(Incoming::Binary(frame)) => frame,
                Ok(Incoming::Ping(payload)) => {
                    count(&self.session.counters.pings, 1);
                    // Pongs to a flood of pings are dropped.
                    drop(controls.try_send(payload));
                    continue;
                }
                Ok(Incoming::Pong) => continue,
                Ok(Incoming::Text(_)) => {
                    return Exit::Violation("a text frame after the opening message".to_owned());
                }
                Ok(Incoming::Close(code)) => {
                    let code =
                        code.map_or_else(|| "without status".to_owned(), |code| code.to_string());
                    return Exit::Client(format!("closed by the client: {code}"));
                }
                Err(ReadError::Violation(text)) => return Exit::Violation(text.to_owned()),
                Err(error) => return Exit::Client(error.to_string()),
            };
            let is_input = self
                .session
                .audit(|audit| audit.incoming(&frame, &self.session.counters, &mut violations));
            for text in violations.drain(..) {
                self.session.violation(text);
            }
            if is_input {
                self.session.note_input();
            }
            if let Some(exit) = self.limit(&frame).or_else(|| self.count_frame()) {
                return exit;
            }
            let link = Link { forge: 0.0, ..self.plan.borrow().up };
            if let Some(Arrived { frame, .. }) = path.send(&link, frame, Instant::now()) {
                self.session.submit(frame).await;
            }
        }
    }

    /// The direction from the agent to the client.
    async fn write<W: AsyncWrite + Unpin>(
        &self,
        write: &mut W,
        mut frames: mpsc::Receiver<ToClient>,
        early: Vec<Bytes>,
        controls: &mut mpsc::Receiver<Bytes>,
    ) -> Exit {
        let seed = self.plan.borrow().seed;
        let mut path = Path::new(seed ^ self.generation.rotate_left(32) ^ 2);
        let mut out = BytesMut::with_capacity(OUT);
        let mut batch = Vec::with_capacity(BATCH);
        let ended = self.session.ended();
        tokio::pin!(ended);
        batch.push(ToClient::Frame(publication(START_PUBLICATION)));
        batch.extend(early.into_iter().map(ToClient::Frame));
        loop {
            let mut exit = None;
            for message in batch.drain(..) {
                match message {
                    ToClient::Frame(frame) => {
                        let link = self.plan.borrow().down;
                        if let Some(arrived) = path.send(&link, frame, Instant::now()) {
                            self.put(&mut out, &arrived);
                        }
                        exit = exit.or_else(|| self.count_frame());
                    }
                    ToClient::Raw(bytes) => out.extend_from_slice(&bytes),
                    ToClient::Break(how) => exit = Some(Exit::Break(how)),
                }
            }
            while let Some(arrived) = path.arrived(Instant::now()) {
                self.put(&mut out, &arrived);
            }
            while let Ok(payload) = controls.try_recv() {
                websocket::put(&mut out, PONG, &payload);
            }
            if !out.is_empty() {
                if let Err(error) = write.write_all(&out).await {
                    return Exit::Client(error.to_string());
                }
                out.clear();
            }
            if let Some(exit) = exit {
                return exit;
            }
            tokio::select! {
                count = frames.recv_many(&mut batch, BATCH) => if count == 0 {
                    return Exit::Replaced;
                },
                Some(payload) = controls.recv() => websocket::put(&mut out, PONG, &payload),
                signal = self.signal() => {
                    let link = self.plan.borrow().down;
                    if let Some(arrived) = path.send_safely(&link, signal, Instant::now()) {
                        self.put(&mut out, &arrived);
                    }
                }
                () = until(path.due()) => {}
                () = until(self.lives_until) => return Exit::Break(Break::Close),
                end = &mut ended => {
                    // Frames that the agent sent before the end are delivered first.
                    while let Ok(message) = frames.try_recv() {
                        if let ToClient::Frame(frame) = message {
                            self.put(&mut out, &Arrived::intact(frame));
                        }
                    }
                    if !self.plan.borrow().ends_without_word {
                        let frame = payload::channel_closed(&self.session.id, &end.output);
                        self.put(&mut out, &Arrived::intact(frame));
                    }
                    websocket::put_close(&mut out, NORMAL, "");
                    drop(write.write_all(&out).await);
                    return Exit::Over;
                }
            }
        }
    }

    fn put(&self, out: &mut BytesMut, arrived: &Arrived) {
        let Arrived { frame, damaged, forged } = arrived;
        if !forged {
            self.session.note_delivery(frame, *damaged);
        }
        websocket::put(out, BINARY, frame);
    }

    /// Applies the flow control to a frame of the client; returns an exit if the client goes on after a
    /// pause.
    fn limit(&self, frame: &Bytes) -> Option<Exit> {
        let (sequence, length) = codec::input(frame)?;
        let model = *self.flow_control.borrow();
        let received = |gauge: &mut Gauge| gauge.received(&model, sequence, length, Instant::now());
        match self.session.flow(received) {
            Effect::Nothing => None,
            Effect::Signal => {
                self.session.signal_flow();
                None
            }
            Effect::Close(how) => {
                let session = self.session.id.clone();
                self.session.journal.add(Record::CloseProvoked { session });
                count(&self.session.counters.closes_provoked, 1);
                match how {
                    FlowClose::WebSocket => Some(Exit::Break(Break::Close)),
                    FlowClose::ChannelClosed => {
                        self.session.end(Ending::FlowControl, "");
                        None
                    }
                }
            }
        }
    }

    /// Waits for what the flow control has to tell the client. Cancel-safe.
    async fn signal(&self) -> Bytes {
        let mut model = self.flow_control.clone();
        loop {
            let current = *model.borrow_and_update();
            let session = self.session.id.clone();
            match self.session.flow(|gauge| gauge.poll(&current, Instant::now())) {
                Next::Pause(limit) => {
                    self.session.journal.add(Record::PublicationPaused { session, limit });
                    count(&self.session.counters.pauses, 1);
                    return publication(PAUSE_PUBLICATION);
                }
                Next::Start => {
                    self.session.journal.add(Record::PublicationStarted { session });
                    return publication(START_PUBLICATION);
                }
                Next::Wait(due) => {
                    tokio::select! {
                        () = self.session.flow_changed() => {}
                        () = until(due) => {}
                        Ok(()) = model.changed() => {}
                    }
                }
            }
        }
    }

    /// Counts a frame; returns an exit if the plan breaks the connection now.
    fn count_frame(&self) -> Option<Exit> {
        let frames = self.frames.fetch_add(1, Ordering::Relaxed) + 1;
        let cut = self.plan.borrow().cut?;
        let due = frames >= cut.after && self.generation <= u64::from(cut.times);
        due.then_some(Exit::Break(cut.how))
    }

    /// Ends the connection in the way that fits the reason.
    async fn leave(self, exit: Exit, mut stream: TcpStream) {
        let session = self.session;
        let close_frame = match &exit {
            Exit::Client(_) => Some((NORMAL, "")),
            Exit::Violation(_) => Some((PROTOCOL, "")),
            Exit::Break(Break::Close) => Some((NORMAL, "Bye")),
            Exit::Replaced => Some((NORMAL, "another connection was opened")),
            Exit::Break(Break::Reset | Break::Silence) | Exit::Over => None,
        };
        let why = match &exit {
            Exit::Client(why) => why.clone(),
            Exit::Violation(text) => {
                session.violation(text);
                text.clone()
            }
            Exit::Break(how) => format!("{how:?}"),
            Exit::Replaced => "replaced".to_owned(),
            Exit::Over => "over".to_owned(),
        };
        session.journal.add(Record::Disconnected { session: session.id.clone(), why });
        let was_last = session.detach(self.generation);
        let closing = async {
            if let Some((code, reason)) = close_frame {
                let mut out = BytesMut::new();
                websocket::put_close(&mut out, code, reason);
                // A client that does not read must not delay the end.
                drop(timeout(CLOSING, stream.write_all(&out)).await);
            }
            match exit {
                Exit::Break(Break::Reset) => drop(stream.set_zero_linger()),
                Exit::Break(Break::Silence) => drop(session.ended().await),
                _ => close(&mut stream).await,
            }
        };
        let pause = async {
            if was_last {
                session.publish_to(false).await;
            }
        };
        tokio::join!(closing, pause);
    }
}

/// Closes our side and waits for the client's, within a limit: closing a socket with unread data would
/// reset the connection, and the last frames would be lost.
async fn close(stream: &mut TcpStream) {
    drop(stream.shutdown().await);
    let mut ignored = [0; 4096];
    let rest = async { while matches!(stream.read(&mut ignored).await, Ok(1..)) {} };
    drop(timeout(CLOSING, rest).await);
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// How long a client may take to send its opening message.
const OPENING: Duration = Duration::from_secs(10);

/// How long a client may take to close.
const CLOSING: Duration = Duration::from_secs(2);

/// Maximum number of pongs that wait to be written.
const CONTROLS: usize = 16;

/// Maximum number of frames written at once.
const BATCH: usize = 256;

/// Usual size of such a batch, in bytes.
const OUT: usize = 512 * 1024;

/// Close codes (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;
const PROTOCOL: u16 = 1002;
const POLICY: u16 = 1008;
