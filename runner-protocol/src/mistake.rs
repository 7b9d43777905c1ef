//! What is wrong with the fields of a config.

use std::fmt;

use crate::{
    failure::{ErrorCode, Failure},
    phase::Phase,
};

/// One wrong field of a config.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The field, such as `bastion.instance_id` or `listen.allowed_uids[2]`.
    pub path: String,
    /// What is wrong with it. Never its value, which could be a secret, unless that is a short number.
    pub what: String,
    /// What to do, in the imperative; names the field.
    pub hint: String,
}

/// All mistakes of a config, in the order of the contract's fields; unknown fields last. Never empty.
///
/// Displayed as `path: what; path: what`, the first 24 of them, and the number of further ones.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Returns `None` for an empty list.
    pub fn new(mistakes: Vec<Mistake>) -> Option<Self> {
        (!mistakes.is_empty()).then_some(Self(mistakes))
    }

    /// Appends a mistake.
    pub fn push(&mut self, mistake: Mistake) {
        self.0.push(mistake);
    }

    /// Every mistake, also those that are not displayed.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// The hints of the displayed mistakes, each hint once.
    pub fn hint(&self) -> String {
        let mut hints: Vec<&str> = Vec::new();
        for mistake in self.0.iter().take(MAX_SHOWN) {
            if !hints.contains(&mistake.hint.as_str()) {
                hints.push(&mistake.hint);
            }
        }
        hints.join("; ")
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { path, what, .. }) in self.0.iter().take(MAX_SHOWN).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{path}: {what}")?;
        }
        match self.0.len().checked_sub(MAX_SHOWN) {
            Some(more @ 1..) => write!(formatter, "; and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Mistakes {}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::new(ErrorCode::ConfigInvalid, mistakes.to_string(), mistakes.hint(), Phase::Config)
    }
}

/// Mistakes that are listed one by one: half of all fields, so that the line stays readable.
const MAX_SHOWN: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(count: usize) -> Mistakes {
        let mistake = |index| Mistake {
            path: format!("a.b{index}"),
            what: "missing".to_owned(),
            hint: if index < 2 { "give both".to_owned() } else { format!("give `a.b{index}`") },
        };
        Mistakes::new((0..count).map(mistake).collect()).unwrap()
    }

    #[test]
    fn all_mistakes_are_on_one_line_and_each_hint_once() {
        let failure = Failure::from(mistakes(3));
        assert_eq!(failure.message, "a.b0: missing; a.b1: missing; a.b2: missing");
        assert_eq!(failure.hint, "give both; give `a.b2`");
        assert_eq!(failure.code, ErrorCode::ConfigInvalid);
    }

    #[test]
    fn a_thousand_mistakes_do_not_make_an_endless_line() {
        let text = mistakes(1000).to_string();
        assert!(text.ends_with("a.b23: missing; and 976 more"), "{text}");
        assert!(mistakes(MAX_SHOWN).to_string().ends_with("a.b23: missing"));
    }

    #[test]
    fn no_mistake_is_no_list_of_mistakes() {
        assert_eq!(Mistakes::new(Vec::new()), None);
    }
}
