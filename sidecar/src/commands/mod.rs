//! One file for each subcommand.

pub mod cli;
pub mod error;
pub mod exec;
pub mod probe;
pub mod run;
