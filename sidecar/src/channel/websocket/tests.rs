use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures_util::{StreamExt as _, future::BoxFuture};
use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::handshake::server::{ErrorResponse, Request as Upgrade, Response as Accepted},
};

use super::*;
use crate::{
    net::{
        proxy::{Proxy, testing::StubProxy},
        tls::{RootCertificates, testing::Authority},
    },
    session::{ApiError, ApiErrorKind, Resumed, Started},
};

const PATH: &str = "/v1/data-channel/s-1?role=publish_subscribe&cell-number=AA+b/c==";

/// Signs with a fixed value, or not at all.
#[derive(Debug)]
struct Signer(Option<&'static str>);

impl SessionApi for Signer {
    fn start(&self) -> BoxFuture<'_, Result<Started, ApiError>> {
        unreachable!("these tests start no session")
    }

    fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Resumed, ApiError>> {
        unreachable!("these tests resume no session")
    }

    fn terminate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), ApiError>> {
        unreachable!("these tests terminate no session")
    }

    fn sign_opening<'a>(&'a self, _: &'a Uri) -> BoxFuture<'a, Result<SignedHeaders, ApiError>> {
        let outcome = match self.0 {
            Some(word) => Ok(vec![(header::AUTHORIZATION, HeaderValue::from_static(word))]),
            None => Err(ApiError::new(ApiErrorKind::Credentials, "no keys", "")),
        };
        Box::pin(std::future::ready(outcome))
    }

    fn caller(&self) -> BoxFuture<'_, Result<String, ApiError>> {
        unreachable!("these tests ask for no caller")
    }

    fn session_ended(&self, _: &str) {}
}

/// Path and query, then the signature, of each upgrade.
type Upgrades = Mutex<Vec<(String, Option<String>)>>;

pub(in crate::channel) type Peer = WebSocketStream<Box<dyn Transport>>;

/// Accepts each WebSocket on loopback and hands them to the test.
struct StubGateway {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    upgrades: Arc<Upgrades>,
    peers: mpsc::Receiver<Peer>,
    _tasks: JoinSet<()>,
}

impl StubGateway {
    /// Answers each upgrade by `judge`, given its signature.
    async fn start(tls: Option<TlsAcceptor>, judge: fn(Option<&str>) -> StatusCode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upgrades = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&upgrades);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let (sender, peers) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Relaxed);
                let stream: Box<dyn Transport> = match &tls {
                    None => Box::new(stream),
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => continue,
                    },
                };
                if let Ok(peer) = accept(stream, judge, &seen).await {
                    sender.send(peer).await.unwrap();
                }
            }
        });
        Self { address, connections, upgrades, peers, _tasks: tasks }
    }

    fn url(&self) -> String {
        format!("ws://{}{PATH}", self.address)
    }

    fn signatures(&self) -> Vec<Option<String>> {
        self.upgrades.lock().iter().map(|(_, signature)| signature.clone()).collect()
    }
}

#[expect(clippy::result_large_err, reason = "the shape of tungstenite's callback")]
async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    judge: fn(Option<&str>) -> StatusCode,
    seen: &Upgrades,
) -> Result<WebSocketStream<S>, tungstenite::Error> {
    let callback = |request: &Upgrade, accepted: Accepted| {
        let signature = request.headers().get(header::AUTHORIZATION);
        let signature = signature.map(|value| value.to_str().unwrap().to_owned());
        let status = judge(signature.as_deref());
        seen.lock().push((request.uri().to_string(), signature));
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(accepted);
        }
        let mut refusal = ErrorResponse::new(None);
        *refusal.status_mut() = status;
        Err(refusal)
    };
    accept_hdr_async(stream, callback).await
}

fn takes_all(_: Option<&str>) -> StatusCode {
    StatusCode::SWITCHING_PROTOCOLS
}

fn takes_unsigned(signature: Option<&str>) -> StatusCode {
    if signature.is_some() { StatusCode::FORBIDDEN } else { StatusCode::SWITCHING_PROTOCOLS }
}

fn refuses(_: Option<&str>) -> StatusCode {
    StatusCode::FORBIDDEN
}

fn on_loopback() -> StreamEndpoint {
    testing::endpoint(None, true)
}

async fn open(
    endpoint: &StreamEndpoint,
    api: &dyn SessionApi,
    url: &str,
    opening: String,
) -> Result<WebSocket, WebSocketOpenError> {
    super::open(endpoint, api, url, opening, Preconnect::none()).await
}

async fn open_at(gateway: &StubGateway, signer: Signer) -> Result<WebSocket, WebSocketOpenError> {
    open(&on_loopback(), &signer, &gateway.url(), "opening".to_owned()).await
}

/// An open WebSocket and its other end.
pub(in crate::channel) async fn open_pair() -> (WebSocket, Peer) {
    let mut gateway = StubGateway::start(None, takes_all).await;
    let socket = open_at(&gateway, Signer(Some("sig"))).await.unwrap();
    let mut peer = gateway.peers.recv().await.unwrap();
    assert_eq!(peer.next().await.unwrap().unwrap(), Message::text("opening"));
    (socket, peer)
}

#[tokio::test]
async fn opening_is_signed_and_its_url_arrives_byte_for_byte() {
    let mut gateway = StubGateway::start(None, takes_all).await;
    let socket = open_at(&gateway, Signer(Some("sig"))).await.unwrap();
    assert_eq!(socket.signature(), OpeningSignature::Signed);
    let upgrades = gateway.upgrades.lock().clone();
    assert_eq!(upgrades, [(PATH.to_owned(), Some("sig".to_owned()))]);
    let mut peer = gateway.peers.recv().await.unwrap();
    assert_eq!(peer.next().await.unwrap().unwrap(), Message::text("opening"));
}

#[tokio::test]
async fn refused_signature_is_followed_by_one_unsigned_opening() {
    let gateway = StubGateway::start(None, takes_unsigned).await;
    let socket = open_at(&gateway, Signer(Some("sig"))).await.unwrap();
    assert_eq!(socket.signature(), OpeningSignature::UnsignedAfterRefusal);
    assert_eq!(gateway.signatures(), [Some("sig".to_owned()), None]);
}

#[tokio::test]
async fn opening_that_is_refused_both_ways_names_the_permission() {
    let gateway = StubGateway::start(None, refuses).await;
    let error = open_at(&gateway, Signer(Some("sig"))).await.unwrap_err();
    assert_eq!(gateway.signatures(), [Some("sig".to_owned()), None]);
    assert_eq!(error.code(), ErrorCode::AwsAccessDenied);
    assert!(error.hint().contains("`ssmmessages:OpenDataChannel`"), "{}", error.hint());
    assert!(!error.is_transient());
}

#[tokio::test]
async fn other_refusals_are_not_repeated() {
    fn not_found(_: Option<&str>) -> StatusCode {
        StatusCode::NOT_FOUND
    }
    let gateway = StubGateway::start(None, not_found).await;
    let error = open_at(&gateway, Signer(Some("sig"))).await.unwrap_err();
    assert!(matches!(
        error,
        WebSocketOpenError::Refused { status: 404, signature_refused: false, .. }
    ));
    assert_eq!(gateway.signatures().len(), 1);

    let gateway = StubGateway::start(None, refuses).await;
    let error = open_at(&gateway, Signer(None)).await.unwrap_err();
    assert!(matches!(
        error,
        WebSocketOpenError::Refused { status: 403, signature_refused: false, .. }
    ));
    assert_eq!(gateway.signatures(), [None]);
}

#[tokio::test]
async fn opening_goes_on_unsigned_when_it_cannot_be_signed() {
    let gateway = StubGateway::start(None, takes_all).await;
    let socket = open_at(&gateway, Signer(None)).await.unwrap();
    assert_eq!(socket.signature(), OpeningSignature::NotSigned);
    assert_eq!(gateway.signatures(), [None]);
}

#[tokio::test]
async fn host_that_is_not_the_services_is_never_dialled() {
    let gateway = StubGateway::start(None, takes_all).await;
    let endpoint = StreamEndpoint { allow_loopback: false, ..on_loopback() };
    let outcome = open(&endpoint, &Signer(None), &gateway.url(), String::new()).await;
    assert!(matches!(outcome, Err(WebSocketOpenError::Url(InvalidStreamUrl::Foreign { .. }))));
    assert!(gateway.signatures().is_empty());
}

#[tokio::test]
async fn gateway_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}{PATH}", listener.local_addr().unwrap());
    let endpoint = StreamEndpoint { timeout: Duration::from_millis(50), ..on_loopback() };
    let error = open(&endpoint, &Signer(None), &url, String::new()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TimeoutSession);
}

#[tokio::test]
async fn gateway_that_is_not_reached_is_named() {
    // Bound but not listening.
    let taken = TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("ws://{}{PATH}", taken.local_addr().unwrap());
    let error = open(&on_loopback(), &Signer(None), &url, String::new()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::AwsUnreachable);
    assert!(error.hint().contains("127.0.0.1"), "{}", error.hint());
}

/// The stream host of a config that names one, behind TLS with a private authority.
async fn behind_tls() -> (StubGateway, StreamEndpoint) {
    let authority = Authority::new();
    let acceptor = authority.acceptor("stream.example");
    let gateway = StubGateway::start(Some(acceptor), takes_all).await;
    let mut endpoint = testing::endpoint(Some("wss://stream.example:8443"), false);
    endpoint.connector.roots = RootCertificates::from_pem(authority.pem());
    (gateway, endpoint)
}

const PUBLIC_URL: &str = "wss://ssmmessages.ap-northeast-1.amazonaws.com/v1/data-channel/s-1\
                          ?role=publish_subscribe&cell-number=AA+b/c==";

#[tokio::test]
async fn tunnel_through_the_proxy_is_requested_with_its_password() {
    let (gateway, mut endpoint) = behind_tls().await;
    let proxy = StubProxy::start(Some(gateway.address)).await;
    let url = format!("http://user:p%40ss@{}", proxy.address);
    endpoint.connector.proxy = Proxy::new(Some(&url), None).unwrap();
    open(&endpoint, &Signer(Some("sig")), PUBLIC_URL, "opening".to_owned()).await.unwrap();
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1);
    assert!(heads[0].starts_with("CONNECT stream.example:8443 HTTP/1.1\r\n"), "{heads:?}");
    // base64 of `user:p@ss`
    let password = "\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n";
    assert!(heads[0].contains(password), "{heads:?}");
    let upgrades = gateway.upgrades.lock().clone();
    assert_eq!(upgrades, [(PATH.to_owned(), Some("sig".to_owned()))]);
}

#[tokio::test]
async fn refusal_of_the_proxy_is_distinguished_from_the_services() {
    let (_gateway, mut endpoint) = behind_tls().await;
    let proxy = StubProxy::start(None).await;
    endpoint.connector.proxy =
        Proxy::new(Some(&format!("http://{}", proxy.address)), None).unwrap();
    let error = open(&endpoint, &Signer(None), PUBLIC_URL, String::new()).await.unwrap_err();
    assert!(matches!(error, WebSocketOpenError::Connect(ConnectError::Proxy { .. })), "{error:?}");
    assert_eq!(error.code(), ErrorCode::LocalProxy);
    let hint = error.hint();
    assert!(hint.starts_with("put the proxy's user and password into `HTTPS_PROXY`"), "{hint}");
}

#[tokio::test]
async fn excepted_host_does_not_use_the_proxy() {
    let proxy = StubProxy::start(None).await;
    let url = format!("http://{}", proxy.address);
    // Names below `invalid` never resolve (RFC 6761): a direct connection fails.
    let mut endpoint = testing::endpoint(Some("wss://stream.invalid"), true);
    endpoint.connector.proxy = Proxy::new(Some(&url), Some("invalid")).unwrap();
    let outcome = open(&endpoint, &Signer(None), PUBLIC_URL, String::new()).await;
    assert!(
        matches!(outcome, Err(WebSocketOpenError::Connect(ConnectError::Unreachable { .. }))),
        "{outcome:?}"
    );
    assert!(proxy.heads().is_empty());
}

#[tokio::test]
async fn certificate_of_a_private_authority_needs_its_root() {
    for trusted in [true, false] {
        let authority = Authority::new();
        let acceptor = authority.acceptor("localhost");
        let gateway = StubGateway::start(Some(acceptor), takes_all).await;
        let trust = if trusted { authority.pem() } else { b"" };
        let mut endpoint = on_loopback();
        endpoint.connector.roots = RootCertificates::from_pem(trust);
        let url = format!("wss://localhost:{}{PATH}", gateway.address.port());
        let outcome = open(&endpoint, &Signer(None), &url, String::new()).await;
        if trusted {
            outcome.unwrap();
            continue;
        }
        let error = outcome.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the certificate of `localhost` is not trusted: its issuer is unknown"
        );
        assert!(error.hint().contains("`SSL_CERT_FILE`"), "{}", error.hint());
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn frames_of_both_kinds_are_messages() {
    let (mut socket, mut peer) = open_pair().await;
    peer.send(Message::binary(&b"\x00\x01"[..])).await.unwrap();
    peer.send(Message::text("text")).await.unwrap();
    peer.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    for expected in [
        Frame::Message(Bytes::from_static(b"\x00\x01")),
        Frame::Message(Bytes::from_static(b"text")),
        Frame::Ping(Bytes::from_static(b"there?")),
    ] {
        assert_eq!(socket.next().await.unwrap().unwrap(), expected);
    }
    socket.flush().await.unwrap();
    assert_eq!(peer.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));

    peer.close(Some(CloseFrame { code: 1000.into(), reason: "Bye".into() })).await.unwrap();
    let end = Frame::Close { code: 1000, reason: "Bye".to_owned() };
    assert_eq!(socket.next().await.unwrap().unwrap(), end);
    drop(peer);
    assert!(socket.next().await.is_none());
}

#[tokio::test]
async fn fed_frames_are_sent_with_the_flush() {
    let (mut socket, mut peer) = open_pair().await;
    socket.feed(Frame::Message(Bytes::from_static(b"one"))).await.unwrap();
    socket.feed(Frame::Ping(Bytes::from_static(b"keepalive"))).await.unwrap();
    assert!(futures_util::poll!(peer.next()).is_pending(), "nothing was written yet");
    socket.flush().await.unwrap();
    assert_eq!(peer.next().await.unwrap().unwrap(), Message::binary(&b"one"[..]));
    let ping = Message::Ping(Bytes::from_static(b"keepalive"));
    assert_eq!(peer.next().await.unwrap().unwrap(), ping);
}

#[tokio::test]
async fn message_that_is_too_large_ends_the_socket() {
    let (mut socket, mut peer) = open_pair().await;
    let large = Message::binary(vec![0; MAX_MESSAGE + 1]);
    let received = tokio::select! {
        sent = peer.send(large) => panic!("taken: {sent:?}"),
        received = socket.next() => received,
    };
    assert!(matches!(received, Some(Err(SocketError(tungstenite::Error::Capacity(_))))));
}

#[tokio::test]
async fn connection_closed_without_a_close_frame_is_an_error() {
    let (mut socket, peer) = open_pair().await;
    drop(peer);
    assert!(matches!(socket.next().await, Some(Err(_))));
}

fn at(gateway: &StubGateway) -> StreamEndpoint {
    testing::endpoint(Some(&format!("ws://{}", gateway.address)), true)
}

#[tokio::test]
async fn connection_made_while_the_session_starts_carries_the_opening() {
    let gateway = StubGateway::start(None, takes_all).await;
    let endpoint = at(&gateway);
    let mut preconnect = Preconnect::new(&endpoint);
    let start = async {
        while gateway.connections.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        "started"
    };
    assert_eq!(preconnect.drive_while(start).await, "started");
    let opening = "opening".to_owned();
    super::open(&endpoint, &Signer(Some("sig")), PUBLIC_URL, opening, preconnect).await.unwrap();
    assert_eq!(gateway.connections.load(Relaxed), 1);
    assert_eq!(gateway.signatures(), [Some("sig".to_owned())]);
}

#[tokio::test]
async fn early_connection_that_is_closed_or_to_another_host_is_replaced() {
    // Accepts and closes.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = StubGateway::start(None, takes_all).await;
    let elsewhere = testing::endpoint(Some(&format!("ws://{address}")), true);
    let mut preconnect = Preconnect::new(&elsewhere);
    preconnect.drive_while(async { drop(listener.accept().await.unwrap()) }).await;
    super::open(&at(&gateway), &Signer(None), PUBLIC_URL, String::new(), preconnect).await.unwrap();
    assert_eq!(gateway.connections.load(Relaxed), 1);

    let (near, far) = tokio::io::duplex(64);
    drop(far);
    let (endpoint, uri) = (at(&gateway), gateway.url().parse().unwrap());
    upgrade(&endpoint, &uri, SignedHeaders::new(), Some(Box::new(near))).await.unwrap();
    assert_eq!(gateway.connections.load(Relaxed), 2);
}
