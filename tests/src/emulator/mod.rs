//! A strict and hostile emulator of everything between the sidecar and the bastion's sshd: the SSM API and
//! STS, the message gateway, and the SSM agent on an instance.
//!
//! It is written from the protocol's specification and shares no code with the sidecar. It verifies each
//! signature, evaluates an IAM policy, checks every byte of the client where the real agent is lenient, and
//! treats faulty clients as the real parts do. Whatever the client must not do is recorded as a
//! [`Record::Violation`]; everything else that was seen is in the [`Journal`] too.
//!
//! ```text
//! client ──HTTP──▶ api ──▶ { iam, credentials(sigv4) }, sts ──▶ service(sessions)
//!        ──WebSocket──▶ gateway(upgrade, opening) ──▶ connection(audit, flow_control, link) ⇄ session ⇄ agent ──▶ sshd
//! ```
//!
//! An agent dials `localhost`, so a real sshd, or any other server that listens there, acts as the bastion.

mod agent;
mod api;
mod audit;
mod builder;
mod call;
mod clock;
mod codec;
mod connection;
mod control;
mod credentials;
mod faults;
mod flow_control;
pub mod forgery;
mod gateway;
mod iam;
mod journal;
mod link;
mod opening;
mod payload;
mod service;
mod session;
mod settings;
mod sigv4;
mod sts;
mod websocket;

pub use builder::Builder;
pub use control::Control;
pub use credentials::Role;
pub(crate) use faults::Rng;
pub use faults::{Action, AgentFailure, ApiFault, Break, Cut, Failure, Link, Plan};
pub use flow_control::{FlowClose, FlowControl, Limit};
pub use iam::{OWN_SESSIONS, Policy, PolicyError};
pub use journal::{Ending, Entry, Journal, Missed, Record, SessionStats};
pub use settings::{AgentBreak, AgentSettings, OpeningMode, Pacing};

use std::{fmt, sync::Arc};

use service::Service;

/// A running emulator. Dropping it ends all of its tasks and connections.
///
/// If dropped by a panicking test, it prints the plan of its faults and its journal to stderr.
pub struct Emulator {
    service: Arc<Service>,
    api_url: String,
}

impl Emulator {
    /// Starts to describe an emulator.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// URL of the SSM API and STS, such as `http://127.0.0.1:40123`.
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// URL of the message gateway, such as `ws://127.0.0.1:40124`.
    pub fn stream_url(&self) -> String {
        format!("ws://{}", self.service.gateway)
    }

    /// The journal of everything seen so far; it continues to grow.
    pub fn journal(&self) -> Journal {
        self.service.journal.clone()
    }

    /// A handle for interference at run time.
    pub fn control(&self) -> Control {
        Control::new(&self.service)
    }
}

impl Drop for Emulator {
    #[expect(clippy::print_stderr, reason = "a failing test has to show how to repeat it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:#?}\n{:?}", self.service.plan(), self.service.journal);
        }
        self.service.tasks.stop();
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Emulator")
            .field("api_url", &self.api_url)
            .field("stream_url", &self.stream_url())
            .field("plan", &self.service.plan())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
