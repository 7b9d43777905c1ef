//! `schema`, `completions`, `man`: print a text.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;
use runner_protocol::ExitStatus;

use super::cli::Arguments;

/// Prints the JSON Schema of the config.
pub fn schema() -> ExitStatus {
    text(runner_protocol::schema())
}

/// Prints a completion script for `shell`.
pub fn completions(shell: Shell) -> ExitStatus {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "ssm-sidecar", &mut script);
    text(&String::from_utf8_lossy(&script))
}

/// Prints the manual page.
pub fn manual() -> ExitStatus {
    let mut page = Vec::new();
    match clap_mangen::Man::new(Arguments::command()).render(&mut page) {
        Ok(()) => text(&String::from_utf8_lossy(&page)),
        Err(_) => ExitStatus::Software,
    }
}

/// Prints `text` on stdout. A reader that has closed its end is no error.
pub(super) fn text(text: &str) -> ExitStatus {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Ok(()) => ExitStatus::Ok,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Ok,
        Err(_) => ExitStatus::OsErr,
    }
}
