//! Fuzz target: a proxy's answer to CONNECT.

use super::connect::{MAX_HEAD, read_head, status};

/// Reads `data` as a proxy's answer to CONNECT.
///
/// # Panics
///
/// If a complete head is refused, if a byte behind it is read, or if a status is found in an answer that is not HTTP/1.
pub fn answer(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return };
    runtime.block_on(async {
        let mut rest = data;
        let head = read_head(&mut rest).await;
        let end = data.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        let Ok(head) = head else {
            let is_http = data.starts_with(b"HTTP/1.");
            assert!(!is_http || end.is_none_or(|end| end > MAX_HEAD), "an answer was not taken");
            return;
        };
        assert_eq!(end, Some(data.len() - rest.len()), "the tunnel's first byte");
        if let Some(status) = status(&head) {
            assert!((100..600).contains(&status), "status {status}");
            assert!(data.starts_with(b"HTTP/1."), "not HTTP");
        }
    });
}
