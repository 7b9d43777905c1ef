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

pub mod commands;

pub mod monitor;
pub mod worker;

pub mod tunnel;

pub mod ipc;
pub mod runner;

pub mod aws;
pub mod channel;
pub mod ssh;

pub mod config;
pub mod session;

pub mod net;

pub mod runtime;

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
