//! The promises, tested from outside on the real binary, one file each.
//!
//! Every test starts the sidecar as a runner does, in its own world ([`world::World`]): an emulator of AWS
//! with the least-privilege policy and the real agent's pacing, a real sshd, a real database. At its end it
//! asserts that the protocol was not violated and that no session was left open.

#[cfg(test)]
#[cfg(target_os = "linux")]
mod adversaries;
#[cfg(test)]
mod bulk;
#[cfg(test)]
mod check;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod config;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod documents;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod events;
#[cfg(test)]
mod exec;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod failures_aws;
#[cfg(test)]
mod faulty_path;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod footprint;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod health;
#[cfg(test)]
mod help;
#[cfg(test)]
mod hourly_close;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod lanes;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod launch;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod long_life;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod orchestrator;
#[cfg(test)]
mod permissions;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod privileges;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod runners;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod secrets;
#[cfg(test)]
mod shutdown;
#[cfg(test)]
mod slow_parties;
#[cfg(test)]
mod tls_names;
#[cfg(test)]
mod world;
