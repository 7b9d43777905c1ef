//! Runners in other languages: an orchestrator in Python, a shell script and Java, from `tests/runners/`.

use std::{fs, path::PathBuf, process::Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::fixtures::{binary, free_port};
use tokio::{process::Command, time::timeout};

use crate::{
    clients,
    world::{LIMIT, World, mariadb_server, postgres_server},
};

#[tokio::test]
async fn python_orchestrator_runs_jobs_at_once() {
    let world = World::start().await;
    let psql = arguments(&clients::psql(0), &["-c", "SELECT 'from postgres'"]);
    let mariadb =
        arguments(&clients::mariadb("mariadb", 0), &["-N", "-e", "SELECT 'from mariadb'"]);
    let closed = free_port().unwrap();
    let job = |name: &str, port: u16, command: &[String]| {
        let config = world.config(port).with(&json!({ "name": name }));
        json!({ "document": config.value(), "command": command })
    };
    let jobs = json!([
        job("one", postgres_server().await.port(), &psql),
        job("two", mariadb_server().await.port(), &mariadb),
        job("three", closed, &psql),
    ]);
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("jobs.json");
    fs::write(&file, jobs.to_string()).unwrap();

    let mut command = Command::new("python3");
    command.arg(runner("runner.py")).arg(sidecar().await).arg(&file);
    let output = run(command).await;
    let stdout = String::from_utf8(output.stdout).unwrap();
    let outcomes: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcome = |name: &str| {
        let found = outcomes.iter().find(|outcome| outcome["name"] == name);
        found.unwrap_or_else(|| panic!("no outcome of `{name}` in {stdout}"))
    };
    for (name, answer) in [("one", "from postgres"), ("two", "from mariadb")] {
        let expected = json!({
            "name": name, "command_status": 0, "output": answer, "status": 0, "advice": "done",
        });
        assert_eq!(outcome(name), &expected);
    }
    let failed = outcome("three");
    assert_eq!(failed["code"], "target.unreachable");
    assert_eq!(failed["advice"], "tell the customer");
    assert_eq!(output.status.code(), Some(1), "one job failed");
    world.finish().await;
}

#[tokio::test]
async fn shell_runs_a_command_through_the_tunnel() {
    runs_a_command(|| Command::new(runner("runner.sh"))).await;
}

#[tokio::test]
async fn java_runs_a_command_through_the_tunnel() {
    runs_a_command(java).await;
}

#[tokio::test]
async fn shell_sees_why_there_is_no_tunnel() {
    sees_why_there_is_no_tunnel(Command::new(runner("runner.sh"))).await;
}

#[tokio::test]
async fn java_sees_why_there_is_no_tunnel() {
    sees_why_there_is_no_tunnel(java()).await;
}

/// A runner of one command exits with the command's status and passes its output on.
async fn runs_a_command(runner: impl Fn() -> Command) {
    let world = World::start().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("connection.json");
    fs::write(&file, world.config(postgres_server().await.port()).pretty()).unwrap();
    let query = arguments(&clients::psql(0), &["-c", "SELECT 'through the tunnel'"]);
    let query: Vec<_> = query.iter().map(|argument| quote(argument)).collect();
    let query = query.join(" ").replace("{port}", r#"'"$SSM_SIDECAR_PORT"'"#);

    for (script, status, printed) in
        [(query.as_str(), 0, "through the tunnel\n"), ("exit 3", 3, "")]
    {
        let mut command = runner();
        command.arg(sidecar().await).arg(&file).args(["sh", "-c", script]);
        let output = run(command).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), printed, "{stderr}");
    }
    world.finish().await;
}

async fn sees_why_there_is_no_tunnel(mut runner: Command) {
    let world = World::start().await;
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("connection.json");
    fs::write(&file, world.config(free_port().unwrap()).pretty()).unwrap();
    runner.arg(sidecar().await).arg(&file).arg("true");
    let output = run(runner).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(stderr.contains("target.unreachable"), "{stderr}");
    world.finish().await;
}

/// Java compiles the single file before running it.
fn java() -> Command {
    let mut command = Command::new("java");
    command.arg(runner("Runner.java"));
    command
}

/// Runs a runner to completion, with the databases' passwords in its environment.
async fn run(mut command: Command) -> Output {
    let clients = [clients::psql(0), clients::mariadb("mariadb", 0)];
    for (name, value) in clients.iter().flat_map(|client| client.as_std().get_envs()) {
        command.env(name, value.unwrap());
    }
    timeout(2 * LIMIT, command.kill_on_drop(true).output()).await.unwrap().unwrap()
}

/// The arguments of a client's command followed by `more`, with `{port}` in place of port 0.
fn arguments(command: &Command, more: &[&str]) -> Vec<String> {
    let command = command.as_std();
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    let text = all.map(|argument| argument.to_str().unwrap().to_owned());
    let ported = text.map(|argument| if argument == "0" { "{port}".to_owned() } else { argument });
    ported.chain(more.iter().map(|&argument| argument.to_owned())).collect()
}

/// An argument, quoted for a shell.
fn quote(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}

async fn sidecar() -> PathBuf {
    tokio::task::spawn_blocking(binary).await.unwrap().unwrap()
}

fn runner(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "runners", name].iter().collect()
}
