//! OpenSSH's client as a path: alone, and through the official plugin.

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

/// A running `ssh -L`; ended when dropped, together with everything it has started.
pub(crate) struct SshL {
    child: Child,
    /// Its process id, and that of the group of everything it has started.
    group: Pid,
    pub(crate) port: u16,
    /// Time until it listens, from the start of ssh, or from StartSession if there is one.
    pub(crate) ready_after: Duration,
    _directory: TempDir,
}

impl SshL {
    /// `ssh -L` directly to sshd at `ssh_port`, or to a leg that leads to it.
    pub(crate) async fn open(world: &World, ssh_port: u16, target: u16) -> Outcome<Self> {
        Self::run(world, ssh_port, target, None).await
    }

    /// `ssh -L` through the official plugin, if the environment names one.
    ///
    /// The plugin is called as the AWS CLI calls it; its cost is included in that of ssh, whose child it
    /// is. The cost of the CLI itself, about a second, is not.
    pub(crate) async fn through_plugin(world: &World, target: u16) -> Outcome<Option<Self>> {
        let Some(plugin) = env::var_os(PLUGIN) else { return Ok(None) };
        let mut last = None;
        // ssh sends first: occasionally the agent discards that, and the session fails.
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
        // ssh passes the command to a shell, after expanding `%`.
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
        // Connecting would make the target send bytes that must be read later.
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
    /// Kills the whole group: the plugin does not exit at the end of its stdin, and would outlive ssh.
    fn drop(&mut self) {
        // Fails if all of them have already ended.
        let _ended = killpg(self.group, Signal::SIGKILL);
    }
}

/// Attempts to open a session through the plugin.
const ATTEMPTS: usize = 5;

/// Name of the plugin's path in the tables.
pub(crate) const PLUGIN_PATH: &str = "official plugin, ssh -L";

/// Environment variable with the path of the official session-manager-plugin.
const PLUGIN: &str = "SESSION_MANAGER_PLUGIN";
