//! The example with twenty customers keeps its promises.

use std::{process::Stdio, time::Duration};

use tests::fixtures::{Namespace, binary, example};
use tokio::{process::Command, time::timeout};

#[tokio::test]
async fn twenty_transfers_at_once_reach_their_own_database_and_nothing_else() {
    if Namespace::new().is_err() {
        println!("skipped: no network namespace can be made here");
        return;
    }
    let program = tokio::task::spawn_blocking(|| {
        Ok::<_, std::io::Error>((example("orchestrator")?, binary()?))
    });
    let (orchestrator, sidecar) = program.await.unwrap().unwrap();
    let mut command = Command::new(orchestrator);
    command.env("SSM_SIDECAR_BIN", sidecar).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    let lines = |words: &str| text.lines().filter(|line| line.contains(words)).count();
    // All of them, and then all except the three that are to fail.
    assert_eq!(lines("all rows, status 0"), 20 + 17, "{text}");
    for (words, times) in [
        ("20 of 20 transferred", 1),
        ("380 of 380 refused", 1),
        ("840 of 840 refused", 1),
        ("failed: ssh.auth_rejected, status 77", 1),
        ("failed: aws.access_denied, status 77", 1),
        ("dropped by its runner", 1),
        ("sessions left: 0; processes left: 0", 2),
    ] {
        assert_eq!(lines(words), times, "`{words}` in {text}");
    }
}

/// It takes seven seconds on an idle machine.
const LIMIT: Duration = Duration::from_mins(3);
