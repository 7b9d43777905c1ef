//! `policy` prints exactly the permissions needed, as evaluated by the emulator's IAM.

use serde_json::{Value, json};
use tests::{
    emulator::{Break, Cut, Ending, OpeningMode, Plan, Policy, Record},
    fixtures::{Config, Sidecar, TcpServer, binary},
};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

use crate::world::{LIMIT, STOP, World};

/// What a session can do under a policy.
#[derive(Debug, Default, Eq, PartialEq)]
struct Worth {
    /// The code of the `failed` line, if the sidecar failed.
    failed: Option<String>,
    resumed: bool,
    terminated_by_api: bool,
}

#[tokio::test]
async fn policy_is_sufficient_and_each_statement_and_action_of_it_necessary() {
    let world = World::with(|builder| builder.opening(OpeningMode::SignedOnly)).await;
    let policy = print(&world.config(5432), &[]).await;
    let everything = Worth { failed: None, resumed: true, terminated_by_api: true };
    assert_eq!(worth(&policy).await, everything, "{policy:#}");

    let statements = policy["Statement"].as_array().unwrap();
    assert_eq!(statements.len(), 3);
    for (index, statement) in statements.iter().enumerate() {
        let without = without(&policy, index, None);
        assert_ne!(worth(&without).await, everything, "not needed: {statement:#}");
        let Some(actions) = statement["Action"].as_array() else { continue };
        for action in actions {
            let without = self::without(&policy, index, Some(action));
            let worth = worth(&without).await;
            let expected = match action.as_str().unwrap() {
                "ssm:ResumeSession" => Worth { resumed: false, ..everything_() },
                "ssm:TerminateSession" => Worth { terminated_by_api: false, ..everything_() },
                _ => Worth { failed: Some("aws.access_denied".to_owned()), ..Worth::default() },
            };
            let shown = Worth { terminated_by_api: expected.terminated_by_api, ..worth };
            assert_eq!(shown, expected, "without {action}");
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn role_gets_the_session_and_its_caller_the_role_alone() {
    let world = World::start().await;
    let arn = "arn:aws:iam::123456789012:role/transfer";
    let role = json!({ "aws": { "assume_role": { "role_arn": arn } } });
    let config = world.config(5432).with(&role);
    let of_role = print(&config, &[]).await;
    let instance = of_role["Statement"][0]["Resource"].as_str().unwrap();
    assert!(instance.starts_with("arn:aws:ec2:ap-northeast-1:123456789012:instance/i-"));
    assert!(!of_role.to_string().contains("sts:AssumeRole"));
    let of_caller = print(&config, &["--caller"]).await;
    let statements = of_caller["Statement"].as_array().unwrap();
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0]["Action"], "sts:AssumeRole");
    assert_eq!(statements[0]["Resource"], arn);
    world.finish().await;
}

#[tokio::test]
async fn japanese_readme_shows_what_is_printed() {
    let world = World::start().await;
    let printed = print(&world.config(5432), &[]).await;
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.ja.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let shown = readme.split("```json").find(|block| block.contains("\"Statement\"")).unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    assert_eq!(serde_json::from_str::<Value>(shown).unwrap(), printed);
    world.finish().await;
}

fn everything_() -> Worth {
    Worth { failed: None, resumed: true, terminated_by_api: true }
}

fn without(policy: &Value, index: usize, action: Option<&Value>) -> Value {
    let mut policy = policy.clone();
    let statements = policy["Statement"].as_array_mut().unwrap();
    match action {
        None => drop(statements.remove(index)),
        Some(action) => {
            statements[index]["Action"].as_array_mut().unwrap().retain(|each| each != action);
        }
    }
    policy
}

/// Opens a tunnel under `policy` where signed openings are required, breaks its path, and ends it.
async fn worth(policy: &Value) -> Worth {
    let policy = Policy::from_json(&policy.to_string()).unwrap();
    let world =
        World::with(|builder| builder.policy(policy).opening(OpeningMode::SignedOnly)).await;
    let server = TcpServer::echo().await.unwrap();
    let config =
        world.config(server.port()).with(&json!({ "events": true, "timeouts": { "ready_s": 10 } }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    if sidecar.ready(LIMIT).await.is_err() {
        let exit = sidecar.exit(LIMIT).await.unwrap();
        let code = exit.failure().unwrap()["code"].as_str().unwrap().to_owned();
        for session in world.emulator.journal().open_sessions() {
            world.emulator.control().terminate(&session, "nothing else could end it");
        }
        return Worth { failed: Some(code), ..Worth::default() };
    }
    world.emulator.control().set_faults(Plan::default().cut(Cut::after(0, Break::Reset)));
    sidecar.word("degraded", LIMIT).await.unwrap();
    world.emulator.control().set_faults(Plan::default());
    sidecar.word("recovered", LIMIT).await.unwrap();
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    let journal = world.emulator.journal();
    let resumed =
        journal.records().iter().any(|entry| matches!(entry.record, Record::SessionResumed { .. }));
    let terminated_by_api = journal.calls("TerminateSession").contains(&None)
        || journal.sessions().iter().any(|id| journal.ending(id) == Some(Ending::Api));
    for session in journal.open_sessions() {
        world.emulator.control().terminate(&session, "nothing else could end it");
    }
    world.finish().await;
    Worth { failed: None, resumed, terminated_by_api }
}

async fn print(config: &Config, options: &[&str]) -> Value {
    let path = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let mut child = Command::new(path)
        .arg("policy")
        .args(options)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.pretty().as_bytes()).await.unwrap();
    let output = timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
