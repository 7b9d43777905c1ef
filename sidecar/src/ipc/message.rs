//! The messages between monitor and worker, as JSON in frames.
//!
//! The worker parses what the network sends, and may be compromised: the monitor checks each of its messages against
//! records of its own. The worker trusts the monitor.

use std::{fmt, time::Duration};

use runner_protocol::Failure;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::Frame;
use crate::{
    runtime::{
        event::Event, hardening::MissingProtection, phase::Phase, resources::MissingResource,
        stop::StopReason,
    },
    session::{ApiError, Resumed, Started},
};

/// From the monitor to the worker.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum ToWorker {
    /// The first message. The next frame is the config, without what only the monitor needs.
    Start(StartMessage),
    /// Answers the [`ToMonitor::Request`] of this id. A connection travels with it as a descriptor.
    Response { id: u64, response: Response },
    /// End every session, then exit.
    Stop(StopReason),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct StartMessage {
    pub(crate) task: WorkerTask,
    /// Time since the monitor's process began; zero for a check.
    pub(crate) elapsed: Duration,
}

/// What the worker is to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum WorkerTask {
    /// Open the tunnel and serve it. With the message come descriptors in this order: the clients' listener, and
    /// the further ones that are named here.
    Run {
        /// A netlink socket (`sock_diag`) to look up the user of a client.
        sock_diag: bool,
        /// The listener of the health endpoint.
        health: bool,
    },
    /// Try each step in turn, and print what was found on stdout.
    Check(OutputFormat),
}

/// How the steps of a check are printed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
pub enum OutputFormat {
    /// For people; coloured on a terminal, unless `NO_COLOR` is set.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Response {
    Started(Result<Started, ApiError>),
    Resumed(Result<Resumed, ApiError>),
    Terminated(Result<(), ApiError>),
    /// Names and values of headers.
    Signed(Result<Vec<(String, String)>, ApiError>),
    Caller(Result<String, ApiError>),
    /// The connection comes as a descriptor of the frame; the error says why there is none.
    Connected(Result<(), ConnectFailure>),
}

/// Why there is no TCP connection.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum ConnectFailure {
    /// The monitor's host lacks something.
    Resources(MissingResource),
    /// Any other cause, in words.
    Other(String),
}

/// From the worker to the monitor.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum ToMonitor {
    /// The first message: the worker is sandboxed, except for these protections.
    Sandboxed(Vec<MissingProtection>),
    /// A request for what the worker cannot do itself. `id` is the worker's choice, and comes back in the response.
    Request { id: u64, request: Request },
    /// The session is over; it needs no TerminateSession.
    SessionEnded { session_id: String },
    /// A phase of the start has begun.
    Phase(Phase),
    /// The tunnel is up, on this port.
    TunnelReady(u16),
    /// An event; the worker sends it only with `"events": true`.
    Event(Event),
    /// The last message of a tunnel: it has ended and with it every session, with or without a failure.
    Finished(Option<Failure>),
    /// The last message of a check: the status to exit with, and the failure that was printed.
    Checked { status: u8, failure: Option<Failure> },
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Request {
    /// Start a session to the config's instance and port.
    StartSession,
    /// Resume a session that this worker has started.
    ResumeSession { session_id: String },
    /// Terminate a session that this worker has started.
    TerminateSession { session_id: String },
    /// Sign the opening of the data channel at this URI, which belongs to a session that this worker has started.
    SignOpening { uri: String },
    /// Open a TCP connection to the first hop towards this URI: the proxy where one is used, else its host. The URI is
    /// that of such a data channel, or the expected stream host.
    Connect { uri: String },
    /// Return the ARN of the credentials' owner (`sts:GetCallerIdentity`).
    Caller,
}

/// Serializes a message.
///
/// # Errors
///
/// None for the types above.
pub(crate) fn encode(message: &(impl Serialize + fmt::Debug)) -> serde_json::Result<Frame> {
    // Large enough for every message with a token, so that growing leaves no piece of one behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(INITIAL_BYTES));
    serde_json::to_writer(&mut *bytes, message)?;
    Ok(Frame { bytes, ..Frame::default() })
}

/// Deserializes a message.
///
/// # Errors
///
/// When the frame is not a `T`.
pub(crate) fn decode<T: DeserializeOwned>(frame: &Frame) -> serde_json::Result<T> {
    serde_json::from_slice(&frame.bytes)
}

/// Initial capacity of a message's buffer.
const INITIAL_BYTES: usize = 8 << 10;
