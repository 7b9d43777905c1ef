//! The contract with the runner at run time: stdin, stdout.

pub mod config_reader;
pub mod stdin;
pub mod stdout;
