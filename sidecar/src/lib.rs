//! Reaches a database in a private subnet through an AWS Systems Manager session.
//!
//! The rooms by layer. A room imports only rooms of layers below its own; `tests/layers` checks that, and prints the
//! imports (`cargo test -p tests --test layers -- --nocapture`).
//!
//! ```text
//! L8   commands                    one file for each subcommand
//! L7   worker     monitor          the two processes; they share only ipc's messages
//! L6   tunnel                      listener, forwarding, lanes, health, metrics; no AWS SDK, no ipc
//! L5   runner     ipc              stdin, stdout, signals | the socket between the processes
//! L4   aws   channel   ssh         AWS SDK | WebSocket and data channel | SSH connection
//! L3   session    config           sessions and the seam to AWS | the decoded config
//! L2   net                         TCP, proxy, TLS
//! L1   runtime                     time, tasks, stopping, failures, protections, logs
//! ```
//!
//! `ARCHITECTURE.md` describes the processes, the data flow and the ends of sessions. `runner-protocol` holds the
//! contract with the runner; `data-channel` and `ssh-client` hold the two protocols as state machines without IO.

pub mod commands;

mod monitor;
mod worker;

mod tunnel;

mod ipc;
mod runner;

mod aws;
mod channel;
mod ssh;

mod config;
mod session;

mod net;

mod runtime;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
