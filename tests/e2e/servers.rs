//! Servers as people run them today: MySQL itself, the OpenSSH of later Debian releases, Dropbear, `PgBouncer`,
//! and the way to AWS that a company's network gives, over TLS through a proxy.
//!
//! Each test tells on stderr which version it has tried; `tests/run` lists them at its end.

mod bastions;
mod databases;
mod proxied;

use std::io::Write as _;

use tests::fixtures::{Exit, Installation};

/// Tells which version was tried, past the test harness, which keeps to itself what a passing test prints.
fn tried(what: &str) {
    drop(writeln!(std::io::stderr(), "tried: {what}"));
}

/// What sshd said it was, from the log of a sidecar that has ended.
fn sshd_of(exit: &Exit) -> String {
    let logs = exit.logs();
    let sshd = logs.iter().find_map(|line| line.get("sshd")?.as_str());
    sshd.expect("a lane was open").to_owned()
}

fn installation(release: Option<&str>) -> Installation {
    release.map_or_else(Installation::default, |release| Installation::debian(release).unwrap())
}
