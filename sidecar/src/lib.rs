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

pub mod run;

pub mod monitor;

pub mod link;

pub mod worker;

pub mod job;

pub mod cli;

pub mod advice;
pub mod check;
pub mod exec;
pub mod policy;
pub mod probe;

pub mod config;
pub mod footprint;
pub mod hardening;
pub mod lease;
pub mod lockdown;
pub mod output;
pub mod panics;
pub mod progress;
pub mod shutdown;
pub mod telemetry;

pub mod health;
pub mod metrics;

pub mod aws;
pub mod session;

pub mod http_proxy;
pub mod tls;
pub mod websocket;

pub mod driver;
pub mod ssh;
mod wakers;

pub mod forward;
pub mod lanes;
pub mod listen;
mod target;

pub mod error;

mod clock;
mod pauses;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
