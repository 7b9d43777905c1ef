//! `exec`: a command with the tunnel up, as run by a person or by a container's entry point.

use std::{path::PathBuf, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;
use tests::{
    emulator::{ApiFault, Break, Cut, Failure as Fault, Plan},
    fixtures::{Config, Postgres, TcpServer, binary, eventually, free_port},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::world::{LIMIT, SECRET_ACCESS_KEY, World, assert_no_secret, postgres_server};

#[tokio::test]
async fn command_has_the_port_and_its_own_stdin_stdout_and_status() {
    let world = World::start().await;
    let server = TcpServer::banner(b"from the target\n").await.unwrap();
    let config = world.config(server.port());
    let script = r#"read -r line; [ "$1" = "port=$SSM_SIDECAR_PORT" ] || exit 9
        exec 3<>"/dev/tcp/127.0.0.1/$SSM_SIDECAR_PORT"; read -r answer <&3
        echo "$line, $answer"; echo complaint >&2; exit 7"#;
    let mut exec = Exec::start(&config, &["bash", "-c", script, "bash", "port={port}"]).await;
    exec.child.stdin.take().unwrap().write_all(b"from stdin\n").await.unwrap();
    let output = exec.output().await;
    assert_eq!(output.stdout, "from stdin, from the target\n", "{}", output.stderr);
    assert!(output.stderr.contains("complaint"), "{}", output.stderr);
    assert_eq!(output.status, 7);
    world.finish().await;
}

#[tokio::test]
async fn query_by_psql_through_exec() {
    let world = World::start().await;
    let postgres = postgres_server().await;
    let psql = crate::clients::psql(0);
    let password = format!("PGPASSWORD={}", Postgres::PASSWORD);
    let mut words = vec!["env", "PGSSLMODE=disable", &password, "psql"];
    let arguments = psql.as_std().get_args().map(|word| word.to_str().unwrap());
    words.extend(arguments.map(|word| if word == "0" { "{port}" } else { word }));
    words.extend(["-c", "SELECT 6 * 7"]);
    let exec = Exec::start(&world.config(postgres.port()), &words).await;
    let output = exec.output().await;
    assert!(output.stdout.contains("42"), "{} {}", output.stdout, output.stderr);
    assert_eq!(output.status, 0);
    world.finish().await;
}

#[tokio::test]
async fn no_secret_reaches_the_command() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let script = "env; cat /proc/$$/cmdline /proc/$PPID/cmdline; ls -l /proc/$$/fd";
    let output = Exec::start(&config, &["sh", "-c", script]).await.output().await;
    assert!(output.stdout.contains("SSM_SIDECAR_PORT="), "{}", output.stdout);
    assert_no_secret(&(output.stdout.clone() + &output.stderr), &config);
    assert!(!output.stdout.contains(SECRET_ACCESS_KEY));
    // Only the standard streams are open in it, and what this test has inherited itself.
    let inherited: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_str().unwrap().to_owned())
        .collect();
    let open = output.stdout.lines().filter_map(|line| line.split_once(" -> "));
    let pipes = open.filter(|(_, target)| target.starts_with("pipe:"));
    let own = pipes.filter(|(_, target)| !inherited.iter().any(|each| each == target)).count();
    assert!(own <= 3, "the lease leaks: {}", output.stdout);
    world.finish().await;
}

#[tokio::test]
async fn signals_reach_the_command_and_its_death_by_one_sets_the_status() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let script = "trap 'echo caught; exit 3' TERM; echo up; while :; do read -r -t 1 x || :; done";
    let mut exec = Exec::start(&config, &["bash", "-c", script]).await;
    assert_eq!(exec.line().await, "up");
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.line().await, "caught");
    assert_eq!(exec.output().await.status, 3);

    let mut exec = Exec::start(&config, &["sh", "-c", "echo up; exec sleep 600"]).await;
    assert_eq!(exec.line().await, "up");
    exec.signal(Signal::SIGINT);
    assert_eq!(exec.output().await.status, 130);
    world.finish().await;
}

#[tokio::test]
async fn failure_before_ready_is_told_on_stderr_and_the_command_never_runs() {
    let world = World::start().await;
    let closed = free_port().unwrap();
    let config = world.config(closed);
    let output = Exec::start(&config, &["echo", "ran"]).await.output().await;
    assert_eq!((output.stdout.as_str(), output.status), ("", 69));
    for word in ["target.unreachable", "hint: ", &closed.to_string()] {
        assert!(output.stderr.contains(word), "no `{word}` in {}", output.stderr);
    }
    world.finish().await;
}

#[tokio::test]
async fn command_that_cannot_be_started_is_told_as_shells_do() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    for (program, status) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let output = Exec::start(&config, &[program]).await.output().await;
        assert_eq!(output.status, status, "{}", output.stderr);
        assert!(output.stderr.contains(program), "{}", output.stderr);
    }
    world.finish().await;
}

#[tokio::test]
async fn lost_tunnel_ends_the_command_with_the_failures_status() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port()).with(&json!({ "timeouts": { "reconnect_s": 2 } }));
    let mut exec = Exec::start(&config, &["sh", "-c", "echo up; exec sleep 600"]).await;
    assert_eq!(exec.line().await, "up");
    let gone = ApiFault::new(Fault::ConnectionClosed);
    world.emulator.control().set_faults(Plan::default().api(gone).cut(Cut::after(0, Break::Reset)));
    let output = exec.output().await;
    assert_eq!(output.status, 75, "{}", output.stderr);
    assert!(output.stderr.contains("session.lost"), "{}", output.stderr);
    for session in world.emulator.journal().open_sessions() {
        world.emulator.control().terminate(&session, "ended by a test");
    }
    world.finish().await;
}

#[tokio::test]
async fn signal_before_ready_ends_the_start() {
    let world = World::start().await;
    let silent = TcpServer::banner(b"SSH-2.0-silent\r\n").await.unwrap();
    let config = world.config(5432).with(&json!({ "bastion": { "ssh_port": silent.port() } }));
    let exec = Exec::start(&config, &["echo", "ran"]).await;
    let journal = world.emulator.journal();
    let started = eventually(LIMIT, || async { !journal.open_sessions().is_empty() });
    assert!(started.await, "no session");
    exec.signal(Signal::SIGTERM);
    let output = exec.output().await;
    assert_eq!((output.stdout.as_str(), output.status), ("", 143));
    world.finish().await;
}

#[tokio::test]
async fn process_1_reaps_orphaned_processes() {
    let allowed = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !allowed {
        // A PID namespace needs privileges that not every host grants.
        eprintln!("skipped: no new namespace of processes here");
        return;
    }
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    // The subshell ends first, so its child is adopted by process 1, which must leave no zombie.
    let script = r#"[ "$PPID" = 1 ] || exit 9; (sleep 0.3 &); sleep 0.2
        for _ in $(seq 100); do
            kinds=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c '(sleep) [SRZ]')
            [ "$kinds" = 0 ] && echo reaped && exit 0; sleep 0.05 </dev/null & wait $!
        done; exit 8"#;
    let prefix = ["unshare", "--pid", "--fork", "--mount-proc"];
    let output = Exec::start_behind(&prefix, &config, &["bash", "-c", script]).await;
    let output = output.output().await;
    assert_eq!((output.stdout.as_str(), output.status), ("reaped\n", 0), "{}", output.stderr);
    world.finish().await;
}

#[tokio::test]
async fn killed_exec_leaves_no_session() {
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let config = world.config(server.port());
    let mut exec = Exec::start(&config, &["sh", "-c", "echo up; exec sleep 2"]).await;
    assert_eq!(exec.line().await, "up");
    exec.signal(Signal::SIGKILL);
    assert_eq!(exec.output().await.status, -1);
    world.finish().await;
}

/// A running `exec`.
struct Exec {
    child: Child,
    stdout: BufReader<tokio::process::ChildStdout>,
    _directory: TempDir,
}

struct Output {
    stdout: String,
    stderr: String,
    /// -1 if it was ended by a signal.
    status: i32,
}

impl Exec {
    async fn start(config: &Config, command: &[&str]) -> Self {
        Self::start_behind(&["env"], config, command).await
    }

    /// Starts `exec` through another program, such as `unshare`.
    async fn start_behind(prefix: &[&str], config: &Config, command: &[&str]) -> Self {
        let path: PathBuf = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("config.json");
        std::fs::write(&file, config.pretty()).unwrap();
        let mut child = Command::new(prefix[0])
            .args(&prefix[1..])
            .arg(path)
            .args(["exec", "--config"])
            .arg(&file)
            .arg("--")
            .args(command)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, _directory: directory }
    }

    /// The next line of the command's output.
    async fn line(&mut self) -> String {
        let mut line = String::new();
        timeout(LIMIT, self.stdout.read_line(&mut line)).await.unwrap().unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn output(self) -> Output {
        let Self { child, mut stdout, _directory } = self;
        let mut text = String::new();
        let whole = async {
            let read = tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text);
            let (read, output) = tokio::join!(read, child.wait_with_output());
            read.unwrap();
            output.unwrap()
        };
        let output = timeout(LIMIT + Duration::from_secs(30), whole).await.unwrap();
        Output {
            stdout: text,
            stderr: String::from_utf8(output.stderr).unwrap(),
            status: output.status.code().unwrap_or(-1),
        }
    }
}
