//! Why the process stops, and how long each part of the stop may take.
//!
//! The contract allows [`CONTRACT`] from the stop to the exit. The monitor takes less than that, the worker
//! takes less than the monitor gives it, and each step of the worker takes less than the worker has. The
//! assertions at the end of this file hold the nesting at compile time.

use std::{borrow::Cow, time::Duration};

use serde::{Deserialize, Serialize};

/// Why the job stops.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum StopReason {
    /// The lease has ended.
    StdinClosed,
    /// The runner has closed its end of stdout, which ends the lease as well.
    StdoutClosed,
    /// The name of a signal, such as `SIGTERM`.
    Signal(Cow<'static, str>),
    /// A defect, in either process.
    Panic,
    /// The monitor has exited or was killed. Set in the worker when its socket is closed; never sent.
    MonitorGone,
}

impl StopReason {
    /// The reason as it stands in the summary.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::StdinClosed => "stdin closed",
            Self::StdoutClosed => "stdout closed",
            Self::Signal(name) => name,
            Self::Panic => "panic",
            Self::MonitorGone => "the monitor has gone",
        }
    }
}

/// From the stop to the exit (contract, "Starting it").
const CONTRACT: Duration = Duration::from_secs(5);

/// From the stop until the monitor kills the worker and reports [`internal`](runner_protocol::ErrorCode).
pub(crate) const MONITOR: Duration = Duration::from_millis(4400);

/// From the stop until the monitor terminates the sessions itself, in parallel to a worker that may be stuck.
pub(crate) const MONITOR_TAKES_OVER: Duration = Duration::from_secs(3);

/// From the worker's end to the monitor's exit: the sessions that a lost worker left are terminated in that time.
pub(crate) const AFTER_WORKER_LOST: Duration = Duration::from_secs(4);

/// From the worker's last message to its exit; then it is killed.
pub(crate) const WORKER_EXIT: Duration = Duration::from_millis(500);

/// Time for the runner to read the last lines on stdout.
pub(crate) const STDOUT_FLUSH: Duration = Duration::from_millis(500);

/// From the stop to the worker's last message.
pub(crate) const WORKER: Duration = Duration::from_millis(4200);

/// Time for an agent to acknowledge the TerminateSession flag and to close the channel.
pub(crate) const TERMINATE_FLAG: Duration = Duration::from_secs(2);

/// Time for all attempts to terminate one session by API, together.
pub(crate) const TERMINATE_API: Duration = Duration::from_secs(2);

/// How long a data channel may go on opening after the stop, so that its session can be ended through it.
pub(crate) const OPENING_CHANNEL: Duration = Duration::from_millis(1500);

/// From the end of the lease to the exit, as `exec` waits for the sidecar that it has started. Longer than
/// [`CONTRACT`]: a sidecar that keeps the contract is never killed.
pub(crate) const EXEC: Duration = Duration::from_secs(8);

const _: () = {
    const fn fits(parts: &[Duration], whole: Duration) -> bool {
        let mut sum = Duration::ZERO;
        let mut rest = parts;
        while let [part, others @ ..] = rest {
            sum = sum.saturating_add(*part);
            rest = others;
        }
        sum.as_millis() <= whole.as_millis()
    }
    assert!(fits(&[MONITOR, STDOUT_FLUSH], CONTRACT));
    assert!(fits(&[WORKER], MONITOR) && fits(&[WORKER, WORKER_EXIT], CONTRACT));
    assert!(fits(&[TERMINATE_FLAG, TERMINATE_API], WORKER));
    // A channel that opens late has time for its flag, but not for every attempt by API as well: the monitor makes its
    // own from `MONITOR_TAKES_OVER` on.
    assert!(fits(&[OPENING_CHANNEL, TERMINATE_FLAG], WORKER));
    assert!(fits(&[MONITOR_TAKES_OVER], WORKER) && !fits(&[MONITOR_TAKES_OVER], TERMINATE_FLAG));
    assert!(fits(&[AFTER_WORKER_LOST, STDOUT_FLUSH], CONTRACT));
    assert!(!fits(&[EXEC], CONTRACT));
};
