//! Reads objects field by field and collects every mistake.
//!
//! Own code instead of a serde derive, for four properties that the customer sees in the message:
//!
//! - all mistakes are reported at once, while serde stops at the first;
//! - each is reported by its full path, such as `listen.allowed_uids[2]`;
//! - no value is repeated that could be a secret, while serde's messages quote values;
//! - an unknown field is reported with the nearest known name.
//!
//! The reading code asks for each field by name. Fields that are never asked for are unknown, so no list of known
//! names has to be kept in step with that code.

use std::collections::HashSet;

use serde_json::value::RawValue;

use crate::{
    mistake::Mistake,
    rules::Problem,
    value::{Entries, Value},
};

/// The fields of one JSON object.
pub(crate) struct Fields<'d> {
    /// Path of the object, empty at the top.
    path: String,
    /// Fields that have not been asked for yet.
    entries: Entries<'d>,
    findings: Findings,
}

/// The result of reading an object and the objects within it.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) mistakes: Vec<Mistake>,
    /// Path of every field that was asked for.
    pub(crate) known: Vec<String>,
    /// Every field that was given but not asked for: path of its object, and name.
    pub(crate) unknown: Vec<(String, String)>,
}

impl<'d> Fields<'d> {
    /// Starts with the entries of the outermost object.
    pub(crate) fn new(entries: Entries<'d>) -> Self {
        Self::at(String::new(), entries)
    }

    fn at(path: String, entries: Entries<'d>) -> Self {
        let mut fields = Self { path, entries: Vec::new(), findings: Findings::default() };
        let mut seen = HashSet::new();
        for (name, value) in entries {
            if seen.insert(name.clone()) {
                fields.entries.push((name, value));
            } else {
                let path = fields.path_of(&displayable_name(&name));
                let hint = format!("give `{path}` once");
                fields.mistake(path, "given more than once", hint);
            }
        }
        fields
    }

    /// Reads a field that must be given; `None` if it is missing, null or wrong.
    pub(crate) fn required<T>(
        &mut self,
        name: &str,
        rule: impl FnOnce(Value<'d>) -> Result<T, Problem>,
    ) -> Option<T> {
        let hint = format!("give `{}`", self.path_of(name));
        self.required_or(name, rule, &hint)
    }

    /// Like [`Self::required`], with `hint` if the field is missing.
    pub(crate) fn required_or<T>(
        &mut self,
        name: &str,
        rule: impl FnOnce(Value<'d>) -> Result<T, Problem>,
        hint: &str,
    ) -> Option<T> {
        if let Some(value) = self.take(name) {
            return self.check(name, rule(value));
        }
        self.mistake(self.path_of(name), "missing", hint.to_owned());
        None
    }

    /// Reads a field that may be missing or null; also `None` if it is wrong.
    pub(crate) fn optional<T>(
        &mut self,
        name: &str,
        rule: impl FnOnce(Value<'d>) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.take(name)?;
        self.check(name, rule(value))
    }

    /// Reads a list that may be missing or null. With `takes_one`, a single value counts as a list of one. An
    /// empty list is a mistake.
    pub(crate) fn list<T>(
        &mut self,
        name: &str,
        takes_one: bool,
        rule: impl Fn(Value<'d>) -> Result<T, Problem>,
    ) -> Option<Vec<T>> {
        let value = self.take(name)?;
        let Some(elements) = value.elements() else {
            let one = if takes_one { rule(value) } else { Err(Problem::kind("a list")) };
            return self.check(name, one.map(|one| vec![one]));
        };
        if elements.is_empty() {
            let problem = Problem::new("an empty list", "at least one value, or leave it out");
            return self.check(name, Err(problem));
        }
        let check =
            |(index, element)| self.check(&format!("{name}[{index}]"), rule(Value::new(element)));
        let checked: Vec<_> = elements.into_iter().enumerate().map(check).collect();
        checked.into_iter().collect()
    }

    /// Reads an object; `None` if it is wrong. If it is missing or null it is read as an empty object, so that the
    /// fields required in it are reported.
    pub(crate) fn section<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let entries = match self.take(name) {
            None => Vec::new(),
            Some(value) => self.entries_of(name, value)?,
        };
        self.read_section(name, entries, read)
    }

    /// Reads an object that may be missing or null; also `None` if it is wrong.
    pub(crate) fn optional_section<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(name)?;
        let entries = self.entries_of(name, value)?;
        self.read_section(name, entries, read)
    }

    /// Whether a field that has not been read yet is given and not null.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.entries.iter().any(|(other, raw)| other == name && !Value::new(raw).is_null())
    }

    /// Reports a field as wrong that passed its own rule, such as one of two that exclude each other.
    pub(crate) fn reject(&mut self, name: &str, problem: Problem) {
        self.check::<()>(name, Err(problem));
    }

    /// Ends reading; the fields that are left are unknown.
    pub(crate) fn finish(mut self) -> Findings {
        for (name, _) in self.entries {
            self.findings.unknown.push((self.path.clone(), name));
        }
        self.findings
    }

    fn read_section<T>(
        &mut self,
        name: &str,
        entries: Entries<'d>,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let mut section = Self::at(self.path_of(name), entries);
        let result = read(&mut section);
        let findings = section.finish();
        self.findings.mistakes.extend(findings.mistakes);
        self.findings.known.extend(findings.known);
        self.findings.unknown.extend(findings.unknown);
        result
    }

    fn entries_of(&mut self, name: &str, value: Value<'d>) -> Option<Entries<'d>> {
        let entries = value.entries().ok_or_else(|| Problem::kind("an object"));
        self.check(name, entries)
    }

    fn take(&mut self, name: &str) -> Option<Value<'d>> {
        self.findings.known.push(self.path_of(name));
        let index = self.entries.iter().position(|(other, _)| other == name)?;
        let (_, raw): (_, &'d RawValue) = self.entries.remove(index);
        Some(Value::new(raw)).filter(|value| !value.is_null())
    }

    fn check<T>(&mut self, name: &str, checked: Result<T, Problem>) -> Option<T> {
        checked
            .map_err(|Problem { what, expected }| {
                let path = self.path_of(name);
                let hint = format!("set `{path}` to {expected}");
                self.mistake(path, &what, hint);
            })
            .ok()
    }

    fn mistake(&mut self, path: String, what: &str, hint: String) {
        self.findings.mistakes.push(Mistake { path, what: what.to_owned(), hint });
    }

    fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

/// The path of the field `name` in the object at `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The name as written, if it looks like a field name; otherwise only its length, since a secret may have been
/// written in place of a name.
pub(crate) fn displayable_name(name: &str) -> String {
    let length = name.chars().count();
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c));
    if is_plain && (1..=MAX_NAME).contains(&length) {
        name.to_owned()
    } else {
        format!("<a name of {length} characters>")
    }
}

/// Longest name that is displayed, in characters: the contract's longest has 26, an AWS secret key has 40.
const MAX_NAME: usize = 32;
