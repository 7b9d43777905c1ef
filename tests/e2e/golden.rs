//! Complete output of the sidecar in files: `golden/check/` and `golden/failed/`.
//!
//! What differs from run to run (times, ports, keys, versions) is masked. `UPDATE_GOLDEN=1` rewrites the
//! files; read the difference before committing it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::{User, geteuid};
use runner_protocol::{ErrorCode, Failure};
use serde_json::Value;
use tests::fixtures::{Config, Exit};

/// Compares `text` with the file at `path` below `golden/`.
pub(crate) fn assert_same(path: &str, text: &str) {
    let path = folder().join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{}", path.display());
}

/// Compares the `failed` line of `exit`, with all its fields, to `failed/CODE/CAUSE.json`.
pub(crate) fn assert_failed(cause: &str, exit: &Exit, config: &Config) {
    let words = cause.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let cause = words.collect::<Vec<_>>().join("_").to_lowercase();
    let line = exit.stdout.last().unwrap();
    let mut failure: Failure = serde_json::from_str(line.strip_prefix("failed ").unwrap()).unwrap();
    let written = format!("failed {}", serde_json::to_string(&failure).unwrap());
    assert_eq!(*line, written, "the fields, in the order of the contract");
    failure.message = mask(config, &failure.message);
    failure.hint = mask(config, &failure.hint);
    failure.aws_request_id = failure.aws_request_id.map(|_| "…".to_owned());
    let text = serde_json::to_string_pretty(&failure).unwrap() + "\n";
    assert_same(&format!("failed/{}/{cause}.json", failure.code), &text);
}

/// Masks what differs from run to run.
pub(crate) fn mask(config: &Config, text: &str) -> String {
    let port = |pointer: &str| {
        let port = config.value().pointer(pointer).and_then(Value::as_u64);
        // Ports chosen by the system.
        port.filter(|port| (10_000..=65_535).contains(port)).map(|port| port.to_string())
    };
    let user = User::from_uid(geteuid()).unwrap().unwrap().name;
    // Which of these are offered depends on sshd's version.
    let mut text = text.replace(",ext-info-s", "").replace(",kex-strict-s-v00@openssh.com", "");
    for (value, name) in [
        (port("/target/port"), "TARGET_PORT"),
        (port("/bastion/ssh_port"), "SSH_PORT"),
        (port("/listen/port"), "LISTEN_PORT"),
        (Some(format!("`{user}`")), "`USER`"),
        (Some(format!("~{user}/")), "~USER/"),
        (Some(format!("chage -l {user}`")), "chage -l USER`"),
    ] {
        if let Some(value) = value {
            text = text.replace(&value, name);
        }
    }
    let words: Vec<_> = text.split(' ').map(mask_word).collect();
    words.join(" ")
}

fn mask_word(word: &str) -> String {
    let masks = [
        ("SHA256:", "SHA256:…"),
        ("SSH-2.0-OpenSSH", "SSH-2.0-OpenSSH…"),
        ("transfer-0", "transfer-0…"),
        ("127.0.0.1:", "127.0.0.1:PORT"),
    ];
    for (prefix, mask) in masks {
        if let Some(at) = word.find(prefix) {
            let end: String = word.chars().rev().take_while(|c| ":,;`".contains(*c)).collect();
            let end: String = end.chars().rev().collect();
            return format!("{}{mask}{end}", word.get(..at).unwrap_or_default());
        }
    }
    if word.starts_with("Debian-") || word.starts_with("Ubuntu-") {
        return "…".to_owned();
    }
    if word.contains(".rs:") {
        return "PLACE".to_owned();
    }
    if word.contains("-MariaDB") { "VERSION".to_owned() } else { word.to_owned() }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/golden")
}

#[test]
fn every_code_has_a_line_that_says_what_happened_and_what_to_change() {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder().join("failed")).unwrap() {
        let code = entry.unwrap();
        let name = code.file_name().into_string().unwrap();
        for line in fs::read_dir(code.path()).unwrap() {
            let path = line.unwrap().path();
            let failure: Failure =
                serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(failure.code.as_str(), name, "{}", path.display());
            for text in [&failure.message, &failure.hint] {
                let is_whole = !text.is_empty() && *text == text.trim() && !text.contains('\n');
                assert!(is_whole && !text.ends_with('.'), "{}: {text:?}", path.display());
            }
            assert_ne!(failure.message, failure.hint, "{}", path.display());
            found.push(failure.code);
        }
    }
    let missing: Vec<_> = ErrorCode::ALL.iter().filter(|code| !found.contains(code)).collect();
    assert!(missing.is_empty(), "no golden line with {missing:?}");
}
