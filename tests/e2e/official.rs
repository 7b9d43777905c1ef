//! The official chain against the emulator as it is by hand: AWS CLI, session-manager-plugin, ssh.
//!
//! Runs only where `SESSION_MANAGER_PLUGIN` names a plugin; the AWS CLI must be in the path then.

use std::{
    env, ffi::OsStr, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tests::{
    emulator::{AgentSettings, Ending},
    fixtures::{eventually, pattern},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::timeout,
};

use crate::world::{ACCESS_KEY_ID, INSTANCE, LIMIT, SECRET_ACCESS_KEY, World};

#[tokio::test]
async fn official_chain_carries_megabytes_each_way() {
    let Some(plugin) = env::var_os("SESSION_MANAGER_PLUGIN") else { return };
    // By hand, 2 of 75 starts lose what ssh sends first; here none.
    let agent = AgentSettings::default().complete_delay_share(0.0);
    let world = World::with(|builder| builder.agent(agent)).await;
    let directory = TempDir::new().unwrap();
    let mut ssh = ssh(&world, &plugin, directory.path()).arg("cat").spawn().unwrap();
    let (mut stdin, mut stdout) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let mut stderr = ssh.stderr.take().unwrap();
    let sent = pattern(3_000_000);
    let (mut received, mut words) = (Vec::new(), String::new());
    let write = async {
        // An error here shows in what is received.
        drop(stdin.write_all(&sent).await);
        drop(stdin);
    };
    let carried = async {
        tokio::join!(write, stdout.read_to_end(&mut received), stderr.read_to_string(&mut words))
    };
    let ((), read, told) = timeout(BULK, carried).await.expect("in time");
    read.and(told).unwrap();
    assert!(received == sent, "{} of {} bytes came back; {words}", received.len(), sent.len());

    let journal = world.emulator.journal();
    let session = journal.sessions().remove(0);
    let closed = || async { journal.ending(&session) == Some(Ending::ServerClosed) };
    assert!(eventually(LIMIT, closed).await, "{:?}", journal.ending(&session));
    assert_eq!((journal.sessions().len(), journal.pauses()), (1, 0));
    // A plugin that was built from source calls itself 1.2.0.0.
    let mut violations = journal.violations();
    violations.retain(|text| !text.contains("ClientVersion"));
    assert!(violations.is_empty(), "{violations:#?}");
}

/// `ssh` to the world's bastion, through the AWS CLI and the plugin.
fn ssh(world: &World, plugin: &OsStr, directory: &Path) -> Command {
    // The CLI starts the plugin by this name.
    std::os::unix::fs::symlink(plugin, directory.join("session-manager-plugin")).unwrap();
    let key = directory.join("key");
    fs::write(&key, &world.sshd.client_key().private).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let port = world.sshd.port();
    let proxy = format!(
        "ProxyCommand=aws ssm start-session --endpoint-url {} --region ap-northeast-1 --target \
         {INSTANCE} --document-name AWS-StartSSHSession --parameters portNumber={port}",
        world.emulator.api_url()
    );
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new("ssh");
    command
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", &proxy])
        .args(["-l", world.sshd.user(), "-i"])
        .arg(&key)
        .arg("127.0.0.1")
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Time limit for the transfer, at the pace of agent and plugin on a loaded machine.
const BULK: Duration = Duration::from_mins(1);
