//! Reaches a database in a private subnet through an AWS Systems Manager session.
//!
//! ```text
//! runner ──stdin: JSON, then an open pipe = the job's lease──▶ monitor ──start, resume, end, sign──▶ AWS API
//!                                                                │ document without the keys of AWS, connections
//! ─────────────────────────── link: a socket between two processes ───────────────────────────
//!                                                             worker, job
//!                                                                │
//! transfer ◀─TCP─▶ forward ◀─direct-tcpip─▶ ssh ◀─bytes─▶ driver(data-channel) ◀─frames─▶ websocket ◀─▶ AWS
//!                    └──────────────── lanes: one SSM session + its SSH connection each ────────┘
//! ```
//!
//! The modules stand in the order in which data flows. [`run`] is the process that the runner starts, top to
//! bottom, [`job`] what its worker does; `runner-protocol` holds the contract with the runner, `data-channel`
//! and `ssh-client` the two protocols as state machines without IO.

// The two processes, as a job passes through them.

pub mod run;

pub mod monitor;

pub mod link;

pub mod worker;

pub mod job;

// A connection, from the transfer to AWS.

pub mod listen;

pub mod forward;

pub mod lanes;
mod target;

pub mod ssh;

pub mod driver;

pub mod websocket;

pub mod http_proxy;
pub mod tls;

// Its session, at the API.

pub mod session;

pub mod aws;

// The other commands.

pub mod advice;
pub mod check;
pub mod cli;
pub mod exec;
pub mod policy;
pub mod probe;

// What a job is told, what it says, and how it ends.

pub mod config;
pub mod error;
pub mod lease;
pub mod output;
pub mod panics;
pub mod progress;
pub mod shutdown;

// What it gives up.

pub mod footprint;
pub mod hardening;
pub mod lockdown;

// How it is watched.

pub mod health;
pub mod metrics;
pub mod telemetry;

mod clock;
mod pauses;
mod wakers;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
