//! OpenSSH's client as a path: by itself, and inside the official plugin.

use std::{
    env, fs::Permissions, os::unix::fs::PermissionsExt as _, process::Stdio, time::Duration,
};

use nix::unistd::Pid;
use tempfile::TempDir;
use tests::fixtures::{eventually, free_port};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

use super::{
    Outcome,
    acker::{self, REGION},
    process,
    world::{ACCESS_KEY_ID, INSTANCE, SECRET_ACCESS_KEY, World},
};

/// A running `ssh -L`, ended when dropped.
pub(crate) struct SshL {
    child: Child,
    pub(crate) port: u16,
    _directory: TempDir,
}

impl SshL {
    /// `ssh -L` straight to sshd at `ssh_port`, or to a leg that leads to it.
    pub(crate) async fn open(world: &World, ssh_port: u16, target: u16) -> Outcome<Self> {
        Self::run(world, ssh_port, target, None).await
    }

    /// `ssh -L` through the official plugin, where the environment says where that is.
    ///
    /// The plugin is called as the AWS CLI calls it; its cost is part of ssh's, whose child it is.
    pub(crate) async fn through_plugin(world: &World, target: u16) -> Outcome<Option<Self>> {
        let Some(plugin) = env::var_os(PLUGIN) else { return Ok(None) };
        let ssh_port = world.sshd.port();
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
        Self::run(world, ssh_port, target, Some(command.join(" "))).await.map(Some)
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
            .kill_on_drop(true);
        if let Some(proxy_command) = proxy_command {
            command.arg("-o").arg(format!("ProxyCommand={proxy_command}"));
        }
        let child = command.arg("127.0.0.1").spawn()?;
        let listens = || async { TcpStream::connect(("127.0.0.1", port)).await.is_ok() };
        if !eventually(Duration::from_secs(30), listens).await {
            return Err("`ssh -L` does not listen".into());
        }
        Ok(Self { child, port, _directory: directory })
    }

    pub(crate) fn cpu(&self) -> Duration {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        pid.map(Pid::from_raw).map(process::cpu).unwrap_or_default()
    }
}

/// Path of the official session-manager-plugin.
pub(crate) const PLUGIN: &str = "SESSION_MANAGER_PLUGIN";
