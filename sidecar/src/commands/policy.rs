//! `policy`: prints the least-privilege IAM policy for a config.

use runner_protocol::ExitStatus;

use super::{cli, error::Error, print};
use crate::{
    runner::config_reader::read_blocking,
    runtime::{hardening, phase::Phase, terminal},
    session::iam_policy::Scope,
};

/// Runs the command of the command line. Blocks.
pub fn command(arguments: &cli::Policy) -> ExitStatus {
    hardening::disable_dump();
    let config = match read_blocking(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            let failure = Error::from(error).into_failure(Phase::Config);
            terminal::print_failure(&failure);
            return failure.exit_status();
        }
    };
    let scope = Scope::from_config(&config);
    let policy =
        if arguments.caller { scope.caller_policy() } else { Some(scope.session_policy()) };
    let Some(policy) = policy else {
        terminal::print_line(
            "ssm-sidecar policy: the config has no `aws.assume_role`, so its keys need no more than `policy` prints",
        );
        return ExitStatus::Usage;
    };
    print::text(&format!("{policy:#}"))
}
