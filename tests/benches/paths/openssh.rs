//! OpenSSH's client as a path: by itself, and inside the official plugin.

use std::{
    env, ffi::OsStr, fs::Permissions, os::unix::fs::PermissionsExt as _, process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;
use tests::fixtures::{eventually, free_port};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::{
    Outcome,
    acker::{self, REGION},
    process::{self, Memory},
    world::{ACCESS_KEY_ID, INSTANCE, SECRET_ACCESS_KEY, World},
};

/// A running `ssh -L`, ended when dropped, with what it has started.
pub(crate) struct SshL {
    child: Child,
    /// Its process, and the group of all that it has started.
    group: Pid,
    pub(crate) port: u16,
    /// From the start of ssh, or of StartSession where there is one, to when it listens.
    pub(crate) ready_after: Duration,
    _directory: TempDir,
}

impl SshL {
    /// `ssh -L` straight to sshd at `ssh_port`, or to a leg that leads to it.
    pub(crate) async fn open(world: &World, ssh_port: u16, target: u16) -> Outcome<Self> {
        Self::run(world, ssh_port, target, None).await
    }

    /// `ssh -L` through the official plugin, where the environment says where that is.
    ///
    /// The plugin is called as the AWS CLI calls it; its cost is part of ssh's, whose child it is. What the CLI
    /// itself costs, about a second, is not.
    pub(crate) async fn through_plugin(world: &World, target: u16) -> Outcome<Option<Self>> {
        let Some(plugin) = env::var_os(PLUGIN) else { return Ok(None) };
        let mut last = None;
        // ssh speaks first: now and then the agent throws that away, and with it the session.
        for _ in 0..ATTEMPTS {
            match Self::through(&plugin, world, target).await {
                Ok(ssh) => return Ok(Some(ssh)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| "no attempt".into()))
    }

    async fn through(plugin: &OsStr, world: &World, target: u16) -> Outcome<Self> {
        let ssh_port = world.sshd.port();
        let began = Instant::now();
        let started = acker::start(world, ssh_port).await?;
        let url = started.stream_url.ok_or("no StreamUrl")?;
        let path = url.splitn(4, '/').nth(3).ok_or("no path in the StreamUrl")?;
        let response = serde_json::json!({
            "SessionId": started.session_id,
            "TokenValue": started.token_value,
            "StreamUrl": format!("{}/{path}", world.stream_url()),
        });
        let parameters = serde_json::json!({
            "Target": INSTANCE,
            "DocumentName": "AWS-StartSSHSession",
            "Parameters": { "portNumber": [ssh_port.to_string()] },
        });
        let arguments = [
            plugin.to_string_lossy().into_owned(),
            response.to_string(),
            REGION.to_owned(),
            "StartSession".to_owned(),
            String::new(),
            parameters.to_string(),
            world.api_url(),
        ];
        // ssh hands the command to a shell, after it has replaced `%`.
        let command: Vec<String> = arguments
            .iter()
            .map(|argument| format!("'{}'", argument.replace('\'', r"'\''").replace('%', "%%")))
            .collect();
        let starting = began.elapsed();
        let mut ssh = Self::run(world, ssh_port, target, Some(command.join(" "))).await?;
        ssh.ready_after += starting;
        Ok(ssh)
    }

    async fn run(
        world: &World,
        ssh_port: u16,
        target: u16,
        proxy_command: Option<String>,
    ) -> Outcome<Self> {
        let directory = TempDir::new()?;
        let key = directory.path().join("key");
        tokio::fs::write(&key, &world.sshd.client_key().private).await?;
        tokio::fs::set_permissions(&key, Permissions::from_mode(0o600)).await?;
        let port = free_port()?;
        let mut command = Command::new("ssh");
        command
            .args(["-N", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ExitOnForwardFailure=yes"])
            .args(["-o", "LogLevel=ERROR", "-L", &format!("127.0.0.1:{port}:127.0.0.1:{target}")])
            .args(["-p", &ssh_port.to_string(), "-l", world.sshd.user(), "-i"])
            .arg(&key)
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(proxy_command) = proxy_command {
            command.arg("-o").arg(format!("ProxyCommand={proxy_command}"));
        }
        let started = Instant::now();
        let child = command.arg("127.0.0.1").spawn()?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let group = group.ok_or("ssh has ended at once")?;
        let mut ssh =
            Self { child, group, port, ready_after: Duration::ZERO, _directory: directory };
        // To connect would have the target send what somebody has to wait for later.
        let listens = || async { process::listens(port) };
        tokio::select! {
            ended = ssh.child.wait() => return Err(format!("`ssh -L` ended: {}", ended?).into()),
            listens = eventually(Duration::from_secs(30), listens) => if !listens {
                return Err("`ssh -L` does not listen".into());
            }
        }
        ssh.ready_after = started.elapsed();
        Ok(ssh)
    }

    pub(crate) fn cpu(&self) -> Duration {
        process::cpu(self.group)
    }

    pub(crate) fn memory(&self) -> Memory {
        process::memory(self.group)
    }
}

impl Drop for SshL {
    /// The plugin outlives its ssh: the end of its stdin ends nothing.
    fn drop(&mut self) {
        // Where all have ended, nobody is left to hear it.
        let _ended = killpg(self.group, Signal::SIGKILL);
    }
}

/// For a session through the plugin.
const ATTEMPTS: usize = 5;

/// What the tables call the path through it.
pub(crate) const PLUGIN_PATH: &str = "official plugin, ssh -L";

/// Path of the official session-manager-plugin.
const PLUGIN: &str = "SESSION_MANAGER_PLUGIN";
