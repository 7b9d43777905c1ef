//! Whole lines that no test from outside can provoke. The others are in `tests/e2e/golden/failed/`.

use std::io;

use super::*;
use crate::runtime::failure::InternalError;

/// Code, message and hint of `error`.
fn line(error: impl Into<Error>) -> (ErrorCode, String, String) {
    let Failure { code, message, hint, .. } = error.into().into_failure(Phase::Config);
    (code, message, hint)
}

#[test]
fn host_that_refuses() {
    let cases = [
        (
            Error::no_worker(io::Error::from_raw_os_error(2)),
            ErrorCode::LocalHardening,
            "the worker process cannot be started: No such file or directory (os error 2)",
            "let the sidecar start a second process of itself: mount /proc",
        ),
        (
            Error::no_worker(io::Error::from_raw_os_error(11)),
            ErrorCode::LocalResources,
            "this host gives the sidecar no second process: Resource temporarily unavailable (os error 11)",
            "raise the limit of processes and threads (`ulimit -u`, `pids.max` of the container, systemd's \
             `TasksMax`); in a container, update its runtime if its seccomp filter refuses `clone3`",
        ),
        (
            WorkerFailure::NoResources.into(),
            ErrorCode::LocalResources,
            "this host gives the worker process no thread or no descriptor",
            "raise the limits of processes and threads (`ulimit -u`, `pids.max` of the container, systemd's \
             `TasksMax`) and of open files (`ulimit -n`)",
        ),
        (
            ListenError::Refused {
                at: "127.0.0.1:7".to_owned(),
                cause: io::Error::from_raw_os_error(24),
            }
            .into(),
            ErrorCode::LocalResources,
            "cannot listen on 127.0.0.1:7: Too many open files (os error 24)",
            "raise the limit of open files (`ulimit -n`), here and of the whole host",
        ),
        (
            ReadError::Stdin(io::Error::from_raw_os_error(21)).into(),
            ErrorCode::ConfigInvalid,
            "cannot read the config from stdin: Is a directory (os error 21)",
            "let stdin be a pipe with one JSON config, or name a file with `--config`",
        ),
        (
            InvalidProxy::Kind.into(),
            ErrorCode::LocalProxy,
            "the proxy setting is not the URL of an HTTP proxy",
            "set `HTTPS_PROXY` to `http://[user:password@]host:port` (or `https://…`), or unset it; other \
             kinds of proxy, such as SOCKS, are not supported",
        ),
    ];
    for (error, code, message, hint) in cases {
        let shown = format!("{error:?}");
        assert_eq!(line(error), (code, message.to_owned(), hint.to_owned()), "{shown}");
    }
}

#[test]
fn internal_errors() {
    let cases: [(Error, &str); 4] = [
        (InternalError::new("the listener ended").into(), "internal error: the listener ended"),
        (
            WorkerFailure::Exited(crate::monitor::ExitInfo::default()).into(),
            "internal error: the worker process has ended",
        ),
        (WorkerFailure::Stuck.into(), "internal error: the worker process did not end in time"),
        (
            WorkerFailure::Protocol("a second first message".to_owned()).into(),
            "internal error: the worker process broke its protocol: a second first message",
        ),
    ];
    for (error, message) in cases {
        let hint = Failure::REPORT_HINT.to_owned();
        assert_eq!(line(error), (ErrorCode::Internal, message.to_owned(), hint));
    }
}
