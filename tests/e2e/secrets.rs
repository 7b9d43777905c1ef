//! Nothing that a run leaves behind, and nothing that others may read while it runs, contains a secret.

use std::{fs, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::json;
use tempfile::TempDir;
use tests::fixtures::{KeyFormat, Sidecar, TcpServer, binary, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    privileges::Memory,
    world::{LIMIT, STOP, World, may_terminate, with_key},
};

/// Secrets planted where the runner gives them.
const SECRET: &str = "plantedSecretPlantedSecretPlantedSecret1";
const TOKEN: &str = "plantedTokenPlantedTokenPlantedToken";
const PASSPHRASE: &str = "planted passphrase planted";
const PROXY: &str = "plantedProxyPassword";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_run_leaves_no_secret_and_no_core() {
    // Both signals write a core by default. SIGSEGV sent from outside would be ignored, as the
    // runtime sees no fault.
    for signal in [Signal::SIGABRT, Signal::SIGFPE] {
        let lifetime = Duration::from_hours(1);
        let world = World::with(|builder| {
            builder.policy(may_terminate()).temporary_key(
                "ASIAPLANTEDPLANTED",
                SECRET,
                TOKEN,
                lifetime,
            )
        })
        .await;
        let server = TcpServer::echo().await.unwrap();
        let key = world.sshd.client_key().write(KeyFormat::OpenSsh, Some(PASSPHRASE)).unwrap();
        let config = world.config(server.port()).with(&with_key(&key)).with(&json!({
            "aws": {
                "access_key_id": "ASIAPLANTEDPLANTED",
                "secret_access_key": SECRET,
                "session_token": TOKEN,
            },
            "events": true,
        }));
        let directory = TempDir::new().unwrap();
        let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
        // With the core limit raised as far as possible.
        let script = r#"ulimit -Sc "$(ulimit -Hc)"; exec "$0""#;
        let mut sidecar = Sidecar::spawn_program("/bin/sh".into(), |command| {
            command
                .args(["-c", script])
                .arg(program)
                .current_dir(directory.path())
                .env("RUST_LOG", "trace")
                .env("HTTPS_PROXY", format!("http://user:{PROXY}@127.0.0.1:9"));
        })
        .await
        .unwrap();
        sidecar.write(config.pretty().as_bytes()).await.unwrap();
        let port = sidecar.ready(LIMIT).await.unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        let base64 = key.text.lines().filter(|line| !line.starts_with("-----"));
        let key_lines: Vec<_> = base64.filter(|line| line.len() > 20).collect();
        let mut secrets = vec![SECRET, TOKEN, PASSPHRASE];
        secrets.extend(&key_lines);
        let (monitor, worker) = (sidecar.pid().unwrap(), sidecar.worker().unwrap());
        for pid in [monitor, worker] {
            for file in ["cmdline", "environ", "status", "maps", "comm", "stat", "limits"] {
                // Without root, some files cannot be read at all.
                let Ok(text) = fs::read(format!("/proc/{pid}/{file}")) else { continue };
                let text = String::from_utf8_lossy(&text);
                for secret in &secrets {
                    assert!(!text.contains(secret), "{secret} in {file} of {pid}");
                }
                // It is given in the environment, and must be nowhere else.
                assert!(file == "environ" || !text.contains(PROXY), "in {file} of {pid}");
            }
        }
        if geteuid().is_root() {
            let (in_monitor, in_worker) = (Memory::of(monitor), Memory::of(worker));
            assert!(in_monitor.has(SECRET.as_bytes()), "the search finds nothing at all");
            assert!(in_worker.has(b"a test's connection"), "the search finds nothing at all");
            // The session token is sent to the worker in the signed headers of an opening.
            assert!(!in_worker.has(SECRET.as_bytes()), "the secret key in the worker's memory");
            // The worker uses that key; fragments of its text, left by the decoding library, are
            // expected there.
            for secret in key_lines.iter().copied().chain([PASSPHRASE]) {
                assert!(!in_monitor.has(secret.as_bytes()), "in the monitor's memory: {secret}");
            }
            assert!(!in_worker.has(PASSPHRASE.as_bytes()), "the passphrase in the worker's memory");
        }
        kill(worker, signal).unwrap();
        let exit = sidecar.exit(STOP).await.unwrap();
        for secret in secrets.iter().copied().chain([PROXY]) {
            assert!(!exit.text().contains(secret), "{signal}: {secret} in {}", exit.text());
        }
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 0, "{signal}: a core was left");
        world.finish().await;
    }
}

#[tokio::test]
async fn process_of_the_same_user_reads_nothing_of_either() {
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let world = World::start().await;
    let server = TcpServer::echo().await.unwrap();
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let [name, arguments @ ..] = &*unprivileged(&program.to_string_lossy()) else { unreachable!() };
    let starting = Sidecar::spawn_program(name.into(), |command| {
        command.args(arguments).env("PATH", PATH);
    });
    let mut sidecar = starting.await.unwrap();
    sidecar.write(world.config(server.port()).pretty().as_bytes()).await.unwrap();
    sidecar.ready(LIMIT).await.unwrap();
    // A process with ordinary settings, so that a refusal is due to the sidecar's processes.
    let [name, arguments @ ..] = &*unprivileged("sleep") else { unreachable!() };
    let sleeper = Command::new(name).args(arguments).arg("100").kill_on_drop(true).spawn().unwrap();
    let other = Pid::from_raw(i32::try_from(sleeper.id().unwrap()).unwrap());
    // Opening `mem` needs the same permission as attaching a debugger.
    for file in ["mem", "environ", "maps", "auxv", "fd/0"] {
        // With Yama, attaching is allowed only to a process's own children, so it is refused in any
        // case.
        if file != "mem" || yama.trim().is_empty() || yama.trim() == "0" {
            let looked = eventually(LIMIT, || may_read(other, file)).await;
            assert!(looked, "other processes cannot be read either: {file}");
        }
        for pid in [sidecar.pid().unwrap(), sidecar.worker().unwrap()] {
            assert!(!may_read(pid, file).await, "{file} of {pid}");
        }
    }
    sidecar.close_stdin();
    sidecar.exit(STOP).await.unwrap();
    world.finish().await;
}

/// Whether a process of this user, without any capability, can open a file or read a link of `/proc/PID`.
async fn may_read(pid: Pid, file: &str) -> bool {
    let path = format!("/proc/{pid}/{file}");
    let script = r#"if [ "${0#*/fd/}" != "$0" ]; then readlink "$0"; else exec 3<"$0"; fi"#;
    let [name, arguments @ ..] = &*unprivileged("sh") else { unreachable!() };
    let mut command = Command::new(name);
    command.args(arguments).args(["-c", script, &path]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.unwrap().success()
}

/// The command line that runs a program as this user without any capability.
fn unprivileged(program: &str) -> Vec<String> {
    let mut words = Vec::new();
    if geteuid().is_root() {
        words.extend(["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]);
    }
    words.push(program);
    words.into_iter().map(ToOwned::to_owned).collect()
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
