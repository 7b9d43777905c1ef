//! Clients of an echo server.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::LIMIT;

/// Sends `ping` and returns the answer; `None` at the end of the connection, on an error, or after `limit`.
pub(crate) async fn ping(stream: &mut TcpStream, limit: Duration) -> Option<[u8; 4]> {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.ok()?;
    timeout(limit, stream.read_exact(&mut answer)).await.ok()?.ok()?;
    Some(answer)
}

/// Whether a few bytes are echoed; false at the end of the connection or on an error, a panic on silence.
pub(crate) async fn echoes(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    let exchange = async {
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut answer).await
    };
    timeout(2 * LIMIT, exchange).await.expect("an answer or an end").is_ok() && &answer == b"hello"
}
