//! Text on stderr for a person.

use std::io::{self, Write as _};

use runner_protocol::Failure;

/// Writes code, message and hint to stderr.
pub(crate) fn print_failure(failure: &Failure) {
    print_line(&text(failure, is_coloured(&io::stderr())));
}

/// Writes a line to stderr. A closed stderr is ignored.
pub(crate) fn print_line(line: &str) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Whether output to `stream` is coloured: it is a terminal, and `NO_COLOR` is not set (<https://no-color.org>).
pub(crate) fn is_coloured(stream: &impl io::IsTerminal) -> bool {
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
    fn failure_is_printed_with_its_hint() {
        let failure = Failure::new(ErrorCode::TargetUnreachable, "no", "do", "target");
        assert_eq!(text(&failure, false), "ssm-sidecar: target.unreachable: no\n  hint: do");
        assert!(text(&failure, true).contains("\u{1b}[31mtarget.unreachable\u{1b}[0m"));
    }
}
