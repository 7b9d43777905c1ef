//! The promises, tested from outside on the real binary, one file each.
//!
//! Every test starts the sidecar as a runner does, in its own world ([`world::World`]): an emulator of AWS
//! with the least-privilege policy and the real agent's pacing, a real sshd, a real database. At its end it
//! asserts that the protocol was not violated and that no session was left open.

// Clippy permits `unwrap`, `expect`, `panic` and indexing only in code that is marked as a test.
#![cfg(test)]

#[cfg(target_os = "linux")]
mod adversaries;
mod bulk;
mod check;
mod clients;
mod config;
mod demo;
mod echo;
mod endings;
mod events;
mod exec;
mod failures;
mod failures_aws;
mod faulty_path;
#[cfg(target_os = "linux")]
mod forwarding;
mod golden;
mod health;
mod help;
mod hourly_close;
mod isolation;
mod keys;
mod lanes;
#[cfg(target_os = "linux")]
mod launch;
mod logins;
mod logs;
mod long_life;
mod official;
#[cfg(target_os = "linux")]
mod orchestrator;
mod permissions;
mod policy;
mod privileges;
mod readme;
#[cfg(target_os = "linux")]
mod resources;
mod resume;
mod runners;
#[cfg(target_os = "linux")]
mod secrets;
#[cfg(target_os = "linux")]
mod servers;
mod shutdown;
mod slow_parties;
mod tls_names;
mod world;
