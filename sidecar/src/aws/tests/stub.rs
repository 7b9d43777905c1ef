//! SSM and STS on loopback, as far as these tests need them.

use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc};

use http::Uri;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use Reply::Answer;

/// One request as the service sees it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines();
        let found = lines.filter_map(|line| line.split_once(": ")).find(|(each, _)| *each == name);
        found.map_or("", |(_, value)| value)
    }

    /// The key that has signed it.
    pub(super) fn key(&self) -> &str {
        let (_, credential) = self.header("authorization").split_once("Credential=").unwrap();
        credential.split('/').next().unwrap()
    }

    pub(super) fn operation(&self) -> &str {
        match self.header("x-amz-target").strip_prefix("AmazonSSM.") {
            Some(operation) => operation,
            None if self.body.starts_with("Action=AssumeRole&") => "AssumeRole",
            None if self.body.starts_with("Action=GetCallerIdentity&") => "GetCallerIdentity",
            None => panic!("neither SSM nor STS: {self:?}"),
        }
    }
}

/// What the service answers.
pub(super) enum Reply {
    /// Status and body.
    Answer(u16, String),
    /// Nothing: the connection breaks.
    Break,
}

/// Plays SSM and STS on loopback.
pub(super) struct StubService {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl StubService {
    pub(super) async fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, "", reply).await
    }

    pub(super) async fn start_with(
        tls: Option<TlsAcceptor>,
        headers: &'static str,
        reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&seen);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                match &tls {
                    None => answer(stream, headers, &reply, &notes).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            answer(stream, headers, &reply, &notes).await;
                        }
                    }
                }
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(super) fn url(&self) -> Uri {
        format!("http://{}", self.address).parse().unwrap()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(super) fn operations(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.operation().to_owned()).collect()
    }
}

/// Answers one request and closes the connection.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    headers: &str,
    reply: &impl Fn(&Seen) -> Reply,
    notes: &Mutex<Vec<Seen>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut seen = Seen { head, body: String::new() };
    let mut body = vec![0; seen.header("content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    seen.body = String::from_utf8(body).unwrap();
    let reply = reply(&seen);
    notes.lock().push(seen);
    let Answer(status, body) = reply else { return };
    let answer = format!(
        "HTTP/1.1 {status} Whatever\r\n{headers}x-amzn-requestid: req-1\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}
