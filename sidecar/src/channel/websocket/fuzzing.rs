//! Fuzz targets: any `StreamUrl`, and any bytes from the service.

use std::task::{Context, Poll, Waker};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

/// Resolves a `StreamUrl`. The first byte selects the config fields that matter.
///
/// # Panics
///
/// If a URI is accepted whose host is neither the service's nor the config's, or whose path and query changed.
pub fn stream_url(data: &[u8]) {
    let Some((choice, url)) = data.split_first() else { return };
    let Ok(url) = std::str::from_utf8(url) else { return };
    let endpoint = ENDPOINTS.get(usize::from(choice >> 1) % ENDPOINTS.len()).copied().flatten();
    let allow_loopback = choice & 1 == 1;
    let resolved = STREAM_ENDPOINT.with(|stream_endpoint| {
        let stream_endpoint_url = endpoint.and_then(|endpoint| endpoint.parse().ok());
        resolve(
            url,
            &StreamEndpoint { stream_endpoint_url, allow_loopback, ..stream_endpoint.clone() },
        )
    });
    let Ok(uri) = resolved else { return };
    let tail = uri.path_and_query().map(http::uri::PathAndQuery::as_str).unwrap_or_default();
    assert!(url.ends_with(tail), "path and query are not as they came: {uri}");
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let loopback = crate::net::proxy::is_loopback(&host);
    let named = endpoint.is_some_and(|endpoint| endpoint.contains(&host));
    let theirs = host.contains(&format!(".{REGION}.")) && host.contains("ssmmessages");
    assert!(named || theirs || (loopback && allow_loopback), "foreign: {uri}");
    assert!(loopback || uri.scheme_str() == Some("wss"), "without TLS: {uri}");
}

/// Reads `data` as what the service sends. With an odd first byte these are frames, with an even one the answer to the
/// upgrade and then frames.
///
/// # Panics
///
/// If a message is larger than the limit.
pub fn frames(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
        return;
    };
    runtime.block_on(async {
        let (ours, mut theirs) = duplex(bytes.len() + 64 * 1024);
        // Fits: the buffer is larger.
        drop(theirs.write_all(bytes).await);
        let inner = if choice & 1 == 1 {
            let ours: Box<dyn Transport> = Box::new(ours);
            WebSocketStream::from_raw_socket(ours, Role::Client, Some(config())).await
        } else {
            drop(theirs.shutdown().await);
            let request = request(&Uri::from_static("ws://h/p?q"), SignedHeaders::new());
            let Ok(request) = request else { return };
            let ours: Box<dyn Transport> = Box::new(ours);
            match client_async_with_config(request, ours, Some(config())).await {
                Ok((inner, _)) => inner,
                Err(_) => return,
            }
        };
        drain(WebSocket { inner, signature: OpeningSignature::NotSigned }, theirs).await;
    });
}

/// Reads all frames, and what is written in answer to them.
async fn drain(mut socket: WebSocket, mut theirs: DuplexStream) {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match socket.poll_next_unpin(&mut context) {
            Poll::Ready(Some(Ok(Frame::Message(message)))) => {
                assert!(message.len() <= MAX_MESSAGE, "{} bytes in a message", message.len());
            }
            Poll::Ready(Some(Ok(_))) => (),
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => break,
        }
    }
    drop(socket);
    let mut answers = Vec::new();
    drop(theirs.read_to_end(&mut answers).await);
}

const REGION: &str = "ap-northeast-1";

const ENDPOINTS: [Option<&str>; 4] =
    [None, Some("https://stream.example.com"), Some("http://127.0.0.1:9/x"), Some("ws://b")];

thread_local! {
    /// Built once, since that takes long.
    static STREAM_ENDPOINT: StreamEndpoint = testing::endpoint(None, false);
}
