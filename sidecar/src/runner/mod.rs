//! The contract with the runner at run time: stdin, stdout, signals, the termination log.

pub(crate) mod config_reader;
pub(crate) mod signals;
pub(crate) mod stdin;
pub(crate) mod stdout;
pub(crate) mod termination_log;
