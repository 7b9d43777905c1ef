//! What monitor and worker say to each other.
//!
//! The worker may be in somebody else's hands one day: what it sends is a wish, which the monitor judges by
//! what it knows itself. What the monitor sends is believed.

use std::{borrow::Cow, fmt};

use runner_protocol::Failure;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::Frame;
use crate::{
    commands::cli::OutputFormat,
    runtime::hardening::Unprotected,
    session::{ApiError, Resumed, Started},
};

/// From the monitor.
#[derive(Debug, Deserialize, Serialize)]
pub enum ToWorker {
    /// Comes first; the frame behind it is the document, without what only the monitor needs.
    Begin(Begin),
    /// The answer to a [`ToMonitor::Call`]; where it is a connection, that goes along.
    Answer {
        /// Of the call.
        number: u64,
        /// What came of it.
        answer: Answer,
    },
    /// End every session, and then yourself.
    Stop(Stop),
}

/// What the worker is to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Begin {
    /// Tunnel or check.
    pub task: Task,
    /// For how long the monitor has been running.
    pub elapsed_ms: u64,
}

/// A worker's task.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum Task {
    /// Open the tunnel and serve it, at the listener that goes along; further descriptors come in this order.
    Run {
        /// How long the service leaves a data channel open.
        channel_life_s: u64,
        /// Whether the socket goes along that tells who has connected.
        diagnosis: bool,
        /// Whether the listener for probes goes along.
        health: bool,
    },
    /// Try each step in turn, and tell them on stdout.
    Check(OutputFormat),
}

/// What a stop was asked by.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Stop {
    /// The lease has ended.
    StdinClosed,
    /// So has it when nobody reads any more.
    StdoutClosed,
    /// Such as `SIGTERM`.
    Signal(Cow<'static, str>),
    /// A defect, in either process.
    Panic,
    /// The monitor has gone, however it did; never sent.
    MonitorGone,
}

impl Stop {
    /// In words, for the summary.
    pub fn reason(&self) -> &str {
        match self {
            Self::StdinClosed => "stdin closed",
            Self::StdoutClosed => "stdout closed",
            Self::Signal(name) => name,
            Self::Panic => "panic",
            Self::MonitorGone => "the monitor has gone",
        }
    }
}

/// What came of a call.
#[derive(Debug, Deserialize, Serialize)]
pub enum Answer {
    /// To [`Call::Start`].
    Started(Result<Started, ApiError>),
    /// To [`Call::Resume`].
    Resumed(Result<Resumed, ApiError>),
    /// To [`Call::Terminate`].
    Terminated(Result<(), ApiError>),
    /// To [`Call::Sign`]: names and values of headers.
    Signed(Result<Vec<(String, String)>, ApiError>),
    /// To [`Call::Caller`].
    Caller(Result<String, ApiError>),
    /// To [`Call::Dial`]: or why there is no connection.
    Dialled(Result<(), String>),
}

/// From the worker.
#[derive(Debug, Deserialize, Serialize)]
pub enum ToMonitor {
    /// Comes first: it is locked up, but for these protections.
    Hello(Vec<Unprotected>),
    /// A wish.
    Call {
        /// Chosen by the worker, for the answer.
        number: u64,
        /// Which.
        call: Call,
    },
    /// A session is over already; nobody needs to end it.
    Over {
        /// Its id.
        session: String,
    },
    /// A phase of the start has begun.
    Phase(String),
    /// A line for stdout.
    Line(String),
    /// The tunnel has ended, and with it every session: as it should, or by a failure. The last message.
    Ended(Option<Failure>),
    /// So has the check. The last message.
    Checked {
        /// To exit with.
        status: u8,
        /// What it was told to have failed by.
        failure: Option<Failure>,
    },
}

/// What the worker cannot do by itself.
#[derive(Debug, Deserialize, Serialize)]
pub enum Call {
    /// Start a session to the document's instance and port.
    Start,
    /// Resume a session that this worker has started.
    Resume {
        /// Its id.
        session: String,
    },
    /// End a session that this worker has started.
    Terminate {
        /// Its id.
        session: String,
    },
    /// Sign the opening of the data channel of such a session.
    Sign {
        /// Where.
        uri: String,
    },
    /// Connect to the host of such a data channel, or to the proxy on the way.
    Dial {
        /// Of the data channel, or the host alone where they are expected.
        uri: String,
    },
    /// Ask AWS whose the credentials are.
    Caller,
}

/// Writes a message.
///
/// # Errors
///
/// None for the types above.
pub fn encode(message: &(impl Serialize + fmt::Debug)) -> serde_json::Result<Frame> {
    // Room for every message but the longest, so that no piece of a token is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
    serde_json::to_writer(&mut *bytes, message)?;
    Ok(Frame { bytes, ..Frame::default() })
}

/// Reads a message.
///
/// # Errors
///
/// Where it is none.
pub fn decode<T: DeserializeOwned>(frame: &Frame) -> serde_json::Result<T> {
    serde_json::from_slice(&frame.bytes)
}

const ROOM: usize = 8 << 10;
