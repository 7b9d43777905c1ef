//! A proxy for tests: opens every tunnel to one address, and records the requests.

use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Listens on loopback until it is dropped.
pub(crate) struct StubProxy {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl StubProxy {
    /// Opens tunnels to `destination`, whatever host CONNECT names; without a destination, answers 407.
    pub(crate) async fn start(destination: Option<SocketAddr>) -> Self {
        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
        Self::answering(destination, refusal).await
    }

    /// Without a destination, gives this answer.
    pub(crate) async fn answering(destination: Option<SocketAddr>, refusal: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                tunnels.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    seen.lock().push(String::from_utf8(head).unwrap());
                    let Some(destination) = destination else {
                        return stream.write_all(refusal.as_bytes()).await.unwrap();
                    };
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    let mut far = TcpStream::connect(destination).await.unwrap();
                    // Ends when either side closes; the result does not matter.
                    drop(copy_bidirectional(&mut stream, &mut far).await);
                });
            }
        });
        Self { address, heads, _tasks: tasks }
    }

    /// The requests so far, each with its headers.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}
