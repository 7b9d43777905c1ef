//! One file for each subcommand.

pub mod check;
pub mod cli;
mod error;
pub mod exec;
pub mod policy;
pub mod print;
pub mod probe;
pub mod run;
mod supervise;
pub mod worker;
