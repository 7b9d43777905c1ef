//! The level of the log, as `RUST_LOG` sets it.

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{OURS, is_ours};

/// Why a `RUST_LOG` is not followed: it would leave the log silent without a word.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum IgnoredLevel {
    #[error("{} is neither a level nor a target of this program", quoted(.0))]
    Word(String),
    #[error("{} is not a level", quoted(.0))]
    Level(String),
    #[error("{} cannot be read", quoted(.0))]
    Malformed(String),
    /// It may be meant for the program that has started this one.
    #[error("{} has no level for this program, such as `ssm_sidecar=debug`", quoted(.0))]
    OthersAlone(String),
}

/// Reads `level` or `target=level`, separated by commas; `None` where the text is empty.
///
/// # Errors
///
/// [`IgnoredLevel`] where a part means nothing, or none is about this program.
pub(super) fn read(text: &str) -> Result<Option<Targets>, IgnoredLevel> {
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut about_us = false;
    for part in parts() {
        about_us |= match part.split_once('=') {
            Some((target, level)) if is_level(level) => is_about_us(target),
            Some((_, level)) => return Err(IgnoredLevel::Level(level.to_owned())),
            None if is_level(part) || is_about_us(part) => true,
            None => return Err(IgnoredLevel::Word(part.to_owned())),
        };
    }
    if parts().next().is_none() {
        return Ok(None);
    }
    if !about_us {
        return Err(IgnoredLevel::OthersAlone(text.to_owned()));
    }
    let targets = parts().collect::<Vec<_>>().join(",").parse();
    targets.map(Some).map_err(|_| IgnoredLevel::Malformed(text.to_owned()))
}

fn is_level(text: &str) -> bool {
    // The parser takes an empty one as `error`.
    !text.is_empty() && text.parse::<LevelFilter>().is_ok()
}

/// Whether a filter for `target` lets lines of ours through: `Targets` compares beginnings.
fn is_about_us(target: &str) -> bool {
    is_ours(target) || OURS.iter().any(|ours| !target.is_empty() && ours.starts_with(target))
}

fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(MAX_SHOWN).collect();
    format!("`{}`", shown.escape_debug())
}

/// Characters of the variable that a message repeats.
const MAX_SHOWN: usize = 60;

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn level_is_set_for_all_or_by_target() {
        let enabled = |text: &str, target| {
            read(text).unwrap().map(|targets| targets.would_enable(target, &Level::DEBUG))
        };
        for (text, target, expected) in [
            ("debug", "ssm_sidecar", Some(true)),
            ("DEBUG", "ssm_sidecar", Some(true)),
            ("info", "ssm_sidecar", Some(false)),
            ("warn, ssm_sidecar::run=debug,", "ssm_sidecar::run", Some(true)),
            ("warn,ssm_sidecar::run=debug", "ssm_sidecar::lanes", Some(false)),
            ("ssm_sidecar=trace", "data_channel", Some(false)),
            ("runner=trace,debug", "ssm_sidecar", Some(true)),
            ("data_channel", "data_channel", Some(true)),
            ("ssm=debug", "ssm_sidecar", Some(true)),
            ("off", "ssm_sidecar", Some(false)),
            (" , ", "ssm_sidecar", None),
            ("", "ssm_sidecar", None),
        ] {
            assert_eq!(enabled(text, target), expected, "{text} for {target}");
        }
    }

    #[test]
    fn what_would_silence_the_log_unasked_is_ignored_with_the_reason() {
        for (text, expected) in [
            ("loud", "`loud` is neither a level nor a target of this program"),
            ("warning", "`warning` is neither a level nor a target of this program"),
            ("info,\u{1b}[2J", "`\\u{1b}[2J` is neither a level nor a target of this program"),
            ("ssm_sidecar=loud", "`loud` is not a level"),
            ("ssm_sidecar=", "`` is not a level"),
            (
                "ssm-sidecar=debug",
                "`ssm-sidecar=debug` has no level for this program, such as `ssm_sidecar=debug`",
            ),
        ] {
            let reason = read(text).unwrap_err().to_string();
            assert_eq!(reason, expected, "{text}");
        }
        let long = read(&"x".repeat(1000)).unwrap_err().to_string();
        assert!(long.len() < 150, "{long}");
    }
}
