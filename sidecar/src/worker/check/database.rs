//! What a database reveals before the login.
//!
//! MySQL greets with its version. PostgreSQL waits for the client: it answers `SSLRequest` with one letter, and sends
//! its version only after the login. There is no login here.

use std::{future::poll_fn, time::Duration};

use runner_protocol::config::Engine;
use tokio::time::timeout;

use crate::ssh::Channel;

/// Identifies the database. Without an engine nothing is sent, and only MySQL's greeting is recognised.
///
/// # Errors
///
/// What the server does instead, as the rest of a sentence that begins with its host and port.
pub(super) async fn ask(channel: &Channel, engine: Option<Engine>) -> Result<String, String> {
    match engine {
        Some(Engine::PostgreSql) => {
            poll_fn(|context| channel.poll_write(context, &SSL_REQUEST))
                .await
                .map_err(|error| format!("is lost: {error}"))?;
            let answer = read(channel, 1, ANSWER_TIMEOUT).await;
            postgres(&answer)
        }
        Some(Engine::MySql) => {
            let greeting = read(channel, GREETING, ANSWER_TIMEOUT).await;
            mysql(&greeting).unwrap_or_else(|| Err("does not greet as MySQL does".to_owned()))
        }
        None => {
            let greeting = read(channel, GREETING, GREETING_TIMEOUT).await;
            mysql(&greeting)
                .unwrap_or_else(|| Ok("not asked: `target.engine` is not given".to_owned()))
        }
    }
}

/// Reads until there are `enough` bytes or a whole packet, `limit` has passed, or the connection ends.
async fn read(channel: &Channel, enough: usize, limit: Duration) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = async {
        while bytes.len() < enough && !is_whole_packet(&bytes) {
            match poll_fn(|context| channel.poll_read(context)).await {
                Ok(Some(more)) => {
                    channel.consumed(more.len());
                    bytes.extend_from_slice(&more);
                }
                Ok(None) | Err(_) => return,
            }
        }
    };
    // What was read until then counts.
    let _silent = timeout(limit, reading).await.is_err();
    bytes
}

/// A MySQL packet: three bytes of length, one of sequence, the payload.
fn is_whole_packet(bytes: &[u8]) -> bool {
    match bytes {
        [a, b, c, _, payload @ ..] => {
            payload.len() >= usize::from(*a) + (usize::from(*b) << 8) + (usize::from(*c) << 16)
        }
        _ => false,
    }
}

/// Parses the first packet of a server; `None` if it is not MySQL's (`Protocol::HandshakeV10`, `ERR_Packet`).
fn mysql(bytes: &[u8]) -> Option<Result<String, String>> {
    let [_, _, _, 0, kind, rest @ ..] = bytes else { return None };
    match kind {
        10 => {
            let version = rest.split(|byte| *byte == 0).next()?;
            let version = std::str::from_utf8(version).ok()?;
            // MariaDB's prefix for old replicas.
            let version = version.strip_prefix("5.5.5-").unwrap_or(version);
            let name = if version.contains("MariaDB") { "MariaDB" } else { "MySQL" };
            Some(Ok(format!("{name} {version}")))
        }
        0xff => {
            let text = String::from_utf8_lossy(rest.get(2..)?);
            Some(Err(format!("answers: {}", text.chars().take(200).collect::<String>())))
        }
        _ => None,
    }
}

fn postgres(answer: &[u8]) -> Result<String, String> {
    match answer.first() {
        Some(b'S') => Ok("PostgreSQL, with TLS; its version is known only after login".to_owned()),
        Some(b'N') => {
            Ok("PostgreSQL, without TLS; its version is known only after login".to_owned())
        }
        // An ErrorResponse, as when too many clients are connected.
        Some(b'E') => Err("refuses connections at present".to_owned()),
        Some(_) => Err("does not answer as PostgreSQL does".to_owned()),
        None => Err("says nothing to PostgreSQL's first question".to_owned()),
    }
}

/// Length 8 and the code 80877103 (PostgreSQL protocol, `SSLRequest`).
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Longer than any greeting, in bytes.
const GREETING: usize = 1024;

/// Time for an answer; a server that looks up its clients' names may be slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a greeting where the engine is not known.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_of_servers() {
        let greeting = b"\x4a\0\0\0\x0a8.0.36\0\x01\x02";
        assert_eq!(mysql(greeting), Some(Ok("MySQL 8.0.36".to_owned())));
        let maria = b"\x4a\0\0\0\x0a5.5.5-10.11.6-MariaDB-0\0\x01";
        assert_eq!(mysql(maria), Some(Ok("MariaDB 10.11.6-MariaDB-0".to_owned())));
        let error = b"\x10\0\0\0\xff\x69\x04Host 'x' is blocked";
        assert_eq!(mysql(error), Some(Err("answers: Host 'x' is blocked".to_owned())));
        for other in [&b"SSH-2.0-x\r\n"[..], b"", b"\0\0\0", b"\0\0\0\0"] {
            assert_eq!(mysql(other), None, "{other:?}");
        }
        assert!(postgres(b"S").is_ok() && postgres(b"N").is_ok());
        assert!(postgres(b"E").is_err() && postgres(b"x").is_err() && postgres(b"").is_err());
    }
}
