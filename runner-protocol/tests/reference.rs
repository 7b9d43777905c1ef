//! `README.md`, the enum of codes and the schema agree.

#![cfg(test)]

use std::collections::BTreeMap;

use runner_protocol::ErrorCode;
use serde_json::Value;

const PAGE: &str = include_str!("../README.md");

#[test]
fn page_lists_every_code_with_its_status_retry_and_blame() {
    let listed: Vec<_> = rows("## Codes").iter().map(|row| row[..4].join(" ")).collect();
    let expected = ErrorCode::ALL.map(|code| {
        let blame = serde_json::to_string(&code.blame()).unwrap();
        let retry = if code.is_retryable() { "yes" } else { "no" };
        let status = code.exit_status().code();
        format!("`{code}` {status} {retry} {}", blame.trim_matches('"'))
    });
    assert_eq!(listed, expected);
}

#[test]
fn page_says_of_every_code_its_cause_and_what_each_side_does() {
    for row in rows("## Codes") {
        assert_eq!(row.len(), 7, "{row:?}");
        for cell in &row[4..] {
            assert!(cell.len() >= 8 && cell.ends_with('.'), "`{cell}` in {row:?}");
        }
    }
}

#[test]
fn page_lists_every_field_of_the_schema_with_its_default() {
    let listed: BTreeMap<_, _> = rows("## The config")
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[2].trim_matches('`').to_owned()))
        .collect();
    let fields = fields();
    let names: Vec<_> = fields.keys().collect();
    assert_eq!(listed.keys().collect::<Vec<_>>(), names);
    for (path, field) in &fields {
        if let Some(default) = field.get("default") {
            assert_eq!(listed[path], default.to_string().trim_matches('"'), "{path}");
        }
    }
}

/// The cells of each row of the table in this section whose first cell is code.
fn rows(section: &str) -> Vec<Vec<&'static str>> {
    let lines = PAGE.lines().skip_while(|line| *line != section).skip(1);
    lines
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap();
            cells.split('|').map(str::trim).collect()
        })
        .collect()
}

/// The schema of each field that is not an object, by its path.
fn fields() -> BTreeMap<String, Value> {
    fn walk(object: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
        for (name, property) in object["properties"].as_object().unwrap() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if property.get("properties").is_some() {
                walk(property, &path, found);
            } else {
                found.insert(path, property.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&serde_json::from_str(runner_protocol::schema()).unwrap(), "", &mut found);
    found
}
