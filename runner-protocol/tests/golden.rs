//! Every code, status and line against the files in `golden/`. A change there breaks the contract, except that the
//! names of exit statuses are only those of this crate.

use runner_protocol::{Blame, ErrorCode, ExitStatus, Failure, Line, PhaseTimes, Summary};

/// `code status retryable blame`, one code a line.
const CODES: &str = include_str!("golden/codes.txt");

/// One line of each kind, as a sidecar writes it.
const LINES: &str = include_str!("golden/lines.txt");

/// `name number`, one exit status a line.
const STATUSES: &str = include_str!("golden/statuses.txt");

#[test]
fn codes_statuses_and_blame_are_those_of_the_contract() {
    let row = |code: ErrorCode| {
        let blame = serde_json::to_string(&code.blame()).unwrap();
        let (status, retryable) = (code.exit_status().code(), code.is_retryable());
        format!("{code} {status} {retryable} {}\n", blame.trim_matches('"'))
    };
    assert_eq!(ErrorCode::ALL.map(row).concat(), CODES);
}

#[test]
fn exit_statuses_are_those_of_the_contract() {
    let row = |status: ExitStatus| format!("{status:?} {}\n", status.code());
    assert_eq!(ExitStatus::ALL.map(row).concat(), STATUSES);
}

#[test]
fn each_line_is_written_as_in_the_contract() {
    let written: Vec<_> = lines().iter().map(ToString::to_string).collect();
    let expected: Vec<_> = LINES.lines().collect();
    assert_eq!(written, expected);
}

#[test]
fn each_line_is_read_back_as_it_was_written() {
    let read: Vec<_> = LINES.lines().map(Line::parse).collect();
    let expected: Vec<_> = lines().into_iter().map(Some).collect();
    assert_eq!(read, expected);
}

#[test]
fn failed_line_of_each_code_is_read_back() {
    for code in ErrorCode::ALL {
        let failure = Failure::new(code, "message", "hint", "phase");
        assert_eq!(failure.exit_status(), code.exit_status());
        let line = Line::Failed(failure);
        assert!(line.to_string().starts_with(&format!(r#"failed {{"code":"{code}","message":"#)));
        assert_eq!(Line::parse(&line.to_string()), Some(line));
    }
}

fn lines() -> Vec<Line> {
    let rejected = Failure::new(
        ErrorCode::SshAuthRejected,
        "the bastion refused the key of `ec2-user`",
        "add the public key to `~/.ssh/authorized_keys`\nof that user",
        "ssh",
    );
    let throttled = Failure {
        blame: Blame::Operator,
        aws_request_id: Some("0f6c7d1e-0000-4000-8000-000000000000".to_owned()),
        ..Failure::new(ErrorCode::AwsThrottled, "m", "h", "start_session")
    };
    let phases =
        [("config", 1), ("start_session", 312), ("session", 240), ("ssh", 410), ("target", 35)];
    let summary = Summary {
        job_id: None,
        reason: "stdin closed".to_owned(),
        bytes_to_target: 12,
        bytes_from_target: 4096,
        connections: 2,
        sessions: 1,
        resumes: 0,
        retransmissions: 3,
        phases_ms: PhaseTimes(phases.map(|(name, took)| (name.to_owned(), took)).to_vec()),
    };
    let with_id = Summary { job_id: Some("transfer-20311".to_owned()), ..summary.clone() };
    vec![
        Line::Ready(40123),
        Line::Failed(rejected),
        Line::Failed(throttled),
        Line::Phase("start_session".to_owned()),
        Line::HostKey("SHA256:c1iiOEnnHsd4OaSkkLd0x4/9ifxrgmVOuv3mFmxhrXE".to_owned()),
        Line::Degraded("the data channel is lost".to_owned()),
        Line::Recovered,
        Line::Closed(summary),
        Line::Closed(with_id),
    ]
}
