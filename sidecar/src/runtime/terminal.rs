//! A failure as a person in front of a terminal reads it.

use std::io::{self, Write as _};

use runner_protocol::Failure;

/// Writes message, hint and code to stderr.
pub fn print(failure: &Failure) {
    say(&text(failure, is_coloured(&io::stderr())));
}

/// Writes a line to stderr; where that is gone there is nobody to tell.
pub fn say(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Whether to colour what goes to `stream`: it is a terminal, and `NO_COLOR` is not set
/// (<https://no-color.org>).
pub fn is_coloured(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn text(failure: &Failure, coloured: bool) -> String {
    let Failure { code, message, hint, .. } = failure;
    let (red, plain) = if coloured { ("\u{1b}[31m", "\u{1b}[0m") } else { ("", "") };
    format!("ssm-sidecar: {red}{code}{plain}: {message}\n  hint: {hint}")
}

#[cfg(test)]
mod tests {
    use runner_protocol::ErrorCode;

    use super::*;

    #[test]
    fn failure_is_told_with_its_hint() {
        let failure = Failure::new(ErrorCode::TargetUnreachable, "no", "do", "target");
        assert_eq!(text(&failure, false), "ssm-sidecar: target.unreachable: no\n  hint: do");
        assert!(text(&failure, true).contains("\u{1b}[31mtarget.unreachable\u{1b}[0m"));
    }
}
