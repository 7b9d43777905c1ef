//! The reference page of codes, `README.md`, and the enum hold together.

use runner_protocol::ErrorCode;

const PAGE: &str = include_str!("../README.md");

#[test]
fn page_lists_every_code_with_its_status_retry_and_blame() {
    let rows: Vec<Vec<&str>> = PAGE
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let listed: Vec<_> = rows.iter().map(|row| row[..4].join(" ")).collect();
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
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 7, "{line}");
        for cell in &cells[4..] {
            assert!(cell.len() >= 8 && cell.ends_with('.'), "`{cell}` in {line}");
        }
    }
}
