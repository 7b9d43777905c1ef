//! The entry to the message gateway: the upgrade to a WebSocket, with its URL and its signature.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{
    connection,
    faults::{Action, Failure},
    journal::Record,
    service::Service,
    session::{PATH, Session},
    settings::OpeningMode,
    sigv4::{Received, form_decode},
    websocket,
};

/// Accepts connections until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, service: Arc<Service>) {
    while let Ok((stream, _)) = listener.accept().await {
        let tasks = Arc::clone(&service);
        tasks.tasks.spawn(open(stream, Arc::clone(&service)));
    }
}

async fn open(mut stream: TcpStream, service: Arc<Service>) {
    // With Nagle's algorithm, the kernel would delay small frames.
    drop(stream.set_nodelay(true));
    let Ok(Some((head, rest))) = timeout(HEAD, read_head(&mut stream)).await else { return };
    let delayed = match service.failure(Action::OpenDataChannel) {
        Some(Failure::Delayed(delay)) => {
            sleep(delay).await;
            None
        }
        other => other,
    };
    let verdict = match delayed {
        Some(Failure::Hangs) => std::future::pending().await,
        Some(Failure::ConnectionClosed | Failure::AnswerLost) => return,
        Some(failure) => Err(refusal_of(&failure)),
        None => admit(&head, &service),
    };
    let signed = head.header("authorization").is_some();
    match verdict {
        Ok(session) => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                websocket::accept(&head.header("sec-websocket-key").unwrap_or_default())
            );
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                connection::serve(stream, rest, session, signed, &service).await;
            }
        }
        Err(Refusal { status, why }) => {
            let session = head.session().unwrap_or_default().to_owned();
            service.journal.add(Record::OpeningRefused { session, signed, why });
            let answer = format!(
                "HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.shutdown().await);
        }
    }
}

/// The head of a request, undecoded.
#[derive(Debug)]
struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

/// Why the upgrade is refused.
struct Refusal {
    status: u16,
    why: String,
}

impl Head {
    fn header(&self, name: &str) -> Option<String> {
        self.received().header(name)
    }

    fn parts(&self) -> (&str, &str) {
        self.target.split_once('?').unwrap_or((&self.target, ""))
    }

    fn session(&self) -> Option<&str> {
        self.parts().0.strip_prefix(PATH)
    }

    fn received(&self) -> Received<'_> {
        let (path, query) = self.parts();
        Received { method: &self.method, path, query, headers: &self.headers, body: b"" }
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<(Head, BytesMut)> {
    let mut buffer = BytesMut::with_capacity(LONGEST);
    loop {
        if stream.read_buf(&mut buffer).await.ok()? == 0 || buffer.len() > LONGEST {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = request.parse(&buffer).ok()? else { continue };
        if request.version != Some(1) {
            return None;
        }
        let header = |header: &httparse::Header<'_>| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        };
        let head = Head {
            method: request.method?.to_owned(),
            target: request.path?.to_owned(),
            headers: request.headers.iter().map(header).collect(),
        };
        let rest = buffer.split_off(length);
        return Some((head, rest));
    }
}

/// Checks everything that is required of a request for a data channel.
fn admit(head: &Head, service: &Service) -> Result<Arc<Session>, Refusal> {
    let refuse = |status, why: &str| Err(Refusal { status, why: why.to_owned() });
    let session = head.session().and_then(|id| {
        let id = String::from_utf8(form_decode(&id.replace('+', "%2B"))).ok()?;
        service.session(&id)
    });
    let Some(session) = session else { return refuse(404, "no such session") };
    check_upgrade(head, service, &session)?;
    let (given, expected) = (head.parts().1, session.query());
    if given != expected {
        let decoded = form_decode(&given.replace('+', "%2B"));
        if decoded == form_decode(&expected.replace('+', "%2B")) {
            session.violation("the StreamUrl's query was re-encoded");
        }
        return refuse(400, "not the StreamUrl that was given out last");
    }
    check_signature(head, service, &session)?;
    if !session.admits() {
        return refuse(410, "the session is over");
    }
    Ok(session)
}

fn check_upgrade(head: &Head, service: &Service, session: &Session) -> Result<(), Refusal> {
    let lower = |name: &str| head.header(name).unwrap_or_default().to_ascii_lowercase();
    let key = STANDARD.decode(head.header("sec-websocket-key").unwrap_or_default());
    let checks = [
        ("the method is not GET", head.method == "GET"),
        ("no `Upgrade: websocket`", lower("upgrade") == "websocket"),
        (
            "no `Connection: Upgrade`",
            lower("connection").split(',').any(|word| word.trim() == "upgrade"),
        ),
        ("Sec-WebSocket-Version is not 13", lower("sec-websocket-version") == "13"),
        ("Sec-WebSocket-Key is not 16 bytes", key.is_ok_and(|key| key.len() == 16)),
        ("a body", head.header("content-length").is_none_or(|length| length == "0")),
    ];
    if let Some((why, _)) = checks.iter().find(|(_, holds)| !holds) {
        session.violation(format!("upgrade: {why}"));
        return Err(Refusal { status: 400, why: (*why).to_owned() });
    }
    for name in ["sec-websocket-protocol", "sec-websocket-extensions"] {
        if let Some(value) = head.header(name) {
            session.violation(format!("upgrade: {name}: {value}"));
        }
    }
    let host = head.header("host").unwrap_or_default();
    let expected = match &service.settings.stream_url {
        Some(url) => url.ends_with(&format!("//{host}")),
        // The client's config may name another host, but not another port.
        None => host.ends_with(&format!(":{}", service.gateway.port())),
    };
    if !expected {
        session.violation("upgrade: Host is not that of the StreamUrl");
    }
    Ok(())
}

fn check_signature(head: &Head, service: &Service, session: &Session) -> Result<(), Refusal> {
    let refuse = |why: String| Err(Refusal { status: 403, why });
    let mode = service.opening();
    if head.header("authorization").is_none() {
        return match mode {
            OpeningMode::SignedOnly => {
                let why = "without signature".to_owned();
                Err(Refusal { status: service.settings.unsigned_refusal, why })
            }
            OpeningMode::UnsignedAccepted | OpeningMode::PermissionNotAsked => Ok(()),
        };
    }
    let received = head.received();
    let caller = service.keys.authenticate(&received, "ssmmessages", &service.settings.region);
    let principal = match caller {
        Ok(principal) => principal,
        Err(error) => return refuse(format!("{error:?}")),
    };
    if mode == OpeningMode::PermissionNotAsked {
        return Ok(());
    }
    let action = "ssmmessages:OpenDataChannel";
    service.authorize_on_session(&principal, action, &session.id).or_else(refuse)
}

fn refusal_of(failure: &Failure) -> Refusal {
    let status = match failure {
        Failure::Throttled => 429,
        Failure::Error { status, .. } => *status,
        _ => 500,
    };
    Refusal { status, why: "by plan".to_owned() }
}

/// How long a client may take to send the head of its request.
const HEAD: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const LONGEST: usize = 32 * 1024;
