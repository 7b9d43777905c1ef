//! Reads objects field by field and collects every mistake on the way.
//!
//! A reader asks for each field that it knows; what nobody has asked for is unknown. So there is no list of names
//! beside the code that could fall behind it.

use std::collections::HashSet;

use serde_json::value::RawValue;

use crate::{
    mistake::Mistake,
    rules::Problem,
    value::{Entries, Value},
};

/// The fields of one object of the document.
pub(crate) struct Fields<'d> {
    /// Path of the object, empty at the top.
    path: String,
    /// Those that nobody has asked for yet.
    entries: Entries<'d>,
    findings: Findings,
}

/// What was found out while reading.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) mistakes: Vec<Mistake>,
    /// Every field that was asked for, by its path.
    pub(crate) known: Vec<String>,
    /// Every field that was not: path of its object and name.
    pub(crate) unknown: Vec<(String, String)>,
}

impl<'d> Fields<'d> {
    /// Begins at the top.
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
                let path = fields.path_of(&shown(&name));
                let hint = format!("give `{path}` once");
                fields.mistake(path, "given more than once", hint);
            }
        }
        fields
    }

    /// Reads a field that must be there.
    pub(crate) fn required<T>(
        &mut self,
        name: &str,
        rule: impl FnOnce(Value<'d>) -> Result<T, Problem>,
    ) -> Option<T> {
        let hint = format!("give `{}`", self.path_of(name));
        self.required_or(name, rule, &hint)
    }

    /// As [`Self::required`], with what to say when it is not there.
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

    /// Reads a field that may be missing or null; `None` for a mistake, too.
    pub(crate) fn optional<T>(
        &mut self,
        name: &str,
        rule: impl FnOnce(Value<'d>) -> Result<T, Problem>,
    ) -> Option<T> {
        let value = self.take(name)?;
        self.check(name, rule(value))
    }

    /// Reads a list, or one value in place of a list of one. An empty list is a mistake.
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

    /// Reads an object; `None` for a mistake. One that is missing or null is read as an empty one.
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

    /// Reads an object that may be missing; `None` for a mistake, too.
    pub(crate) fn optional_section<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(name)?;
        let entries = self.entries_of(name, value)?;
        self.read_section(name, entries, read)
    }

    /// Whether a field that has not been read yet is there.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.entries.iter().any(|(other, raw)| other == name && !Value::new(raw).is_null())
    }

    /// Notes that a field is wrong for a reason that no rule of its own can see.
    pub(crate) fn wrong(&mut self, name: &str, problem: Problem) {
        self.check::<()>(name, Err(problem));
    }

    /// Ends the reading: what is left is unknown.
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

/// `name` in the object at `path`.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// A name as it stands in the document, if it can be nothing but a name: a secret may stand anywhere.
pub(crate) fn shown(name: &str) -> String {
    let length = name.chars().count();
    let plain = name.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c));
    if plain && (1..=MAX_NAME).contains(&length) {
        name.to_owned()
    } else {
        format!("<a name of {length} characters>")
    }
}

/// Longest name that is shown, in characters; the contract's longest has 26, an AWS secret key 40.
const MAX_NAME: usize = 32;
