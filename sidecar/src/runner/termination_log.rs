//! The failure of a container, where Kubernetes reads it.

use std::{fs::OpenOptions, io::Write as _};

use runner_protocol::Failure;
use tracing::debug;

/// Writes `failure` as JSON to `/dev/termination-log`, where that file exists.
pub(crate) fn write(failure: &Failure) {
    if let Ok(json) = serde_json::to_string(failure)
        && let Err(error) = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(PATH)
            .and_then(|mut file| file.write_all(json.as_bytes()))
    {
        debug!(%error, "no termination message");
    }
}

/// Kubernetes shows its content as the reason of a container's end (`terminationMessagePath`).
const PATH: &str = "/dev/termination-log";
