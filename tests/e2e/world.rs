//! The environment of the sidecar in a test, and what every test asserts at its end.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tests::{
    emulator::{Builder, Emulator, OWN_SESSIONS, Policy},
    fixtures::{Config, Exit, KeyFile, MariaDb, Postgres, Sidecar, Sshd, eventually},
};
use tokio::sync::OnceCell;

use crate::golden;

/// The instance that is the bastion.
pub(crate) const INSTANCE: &str = "i-0123456789abcdef0";

/// The customer's keys.
pub(crate) const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// Time limit for a step of a test, on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Time limit from a stop request to the sidecar's exit.
pub(crate) const STOP: Duration = Duration::from_secs(5);

/// An emulator and a bastion.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) emulator: Emulator,
    pub(crate) sshd: Arc<Sshd>,
}

impl World {
    /// The default world: an instance with the bastion that all tests share, the least-privilege policy,
    /// real pacing.
    pub(crate) async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    /// The default world with changes to the emulator.
    pub(crate) async fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        static SHARED: OnceCell<Arc<Sshd>> = OnceCell::const_new();
        let sshd = SHARED.get_or_init(|| async { Arc::new(Sshd::start().await.unwrap()) }).await;
        Self::around(Arc::clone(sshd), change).await
    }

    /// A world with the test's own bastion.
    pub(crate) async fn around(sshd: Arc<Sshd>, change: impl FnOnce(Builder) -> Builder) -> Self {
        let builder = Emulator::builder()
            .instance(INSTANCE)
            .access_key(ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            .policy(Policy::least_privilege(INSTANCE));
        Self { emulator: change(builder).build().await.unwrap(), sshd }
    }

    /// The config for a target on 127.0.0.1, as seen from the bastion.
    pub(crate) fn config(&self, target_port: u16) -> Config {
        Config::new("a test's connection").with(&json!({
            "aws": {
                "access_key_id": ACCESS_KEY_ID,
                "secret_access_key": SECRET_ACCESS_KEY,
                "endpoint_url": self.emulator.api_url(),
            },
            "bastion": {
                "instance_id": INSTANCE,
                "ssh_port": self.sshd.port(),
                "ssh_user": self.sshd.user(),
                "ssh_private_key": self.sshd.client_key().private,
                "ssh_host_key": self.sshd.host_key_fingerprint("ed25519").unwrap(),
            },
            "target": { "host": "127.0.0.1", "port": target_port },
        }))
    }

    /// Starts a sidecar and waits until it is ready.
    pub(crate) async fn tunnel(&self, target_port: u16) -> Tunnel {
        Tunnel::open(&self.config(target_port)).await
    }

    /// The same with changes to the config.
    pub(crate) async fn tunnel_with(&self, target_port: u16, changes: &Value) -> Tunnel {
        Tunnel::open(&self.config(target_port).with(changes)).await
    }

    /// Asserts what holds at the end of every test: each session that was started has been terminated, and
    /// the protocol was not violated.
    pub(crate) async fn finish(self) {
        let journal = self.emulator.journal();
        let ended = eventually(STOP, || async { journal.open_sessions().is_empty() }).await;
        assert!(ended, "sessions left open: {:?}", journal.open_sessions());
        let violations = journal.violations();
        assert!(violations.is_empty(), "protocol violations: {violations:#?}");
    }
}

/// A sidecar that is ready.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) sidecar: Sidecar,
    pub(crate) port: u16,
}

impl Tunnel {
    pub(crate) async fn open(config: &Config) -> Self {
        let mut sidecar = Sidecar::spawn(config).await.unwrap();
        let port = sidecar.ready(LIMIT).await.unwrap();
        Self { sidecar, port }
    }

    /// Closes the sidecar's stdin and asserts that it ends as promised.
    pub(crate) async fn close(mut self) -> Exit {
        self.sidecar.close_stdin();
        let exit = self.sidecar.exit(STOP).await.unwrap();
        assert_eq!(exit.status.code(), Some(0), "{}", exit.text());
        assert_eq!(exit.failure(), None);
        exit
    }
}

/// The expected failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) code: &'static str,
    pub(crate) status: i32,
    pub(crate) phase: &'static str,
    pub(crate) blame: &'static str,
}

impl Failure {
    /// Asserts that a sidecar ended with this failure, and reported it in one line without secrets, which
    /// equals `golden/failed/CODE/CAUSE.json` in every word; returns the line's JSON.
    pub(crate) fn assert(self, cause: &str, exit: &Exit, config: &Config) -> Value {
        let text = exit.text();
        assert_eq!(exit.status.code(), Some(self.status), "exit status; {text}");
        let failed: Vec<_> = exit.stdout.iter().filter(|line| line.starts_with("failed")).collect();
        assert_eq!(failed.len(), 1, "one `failed` line; {text}");
        assert_eq!(exit.stdout.last(), failed.first().copied(), "`failed` is last; {text}");

        let line = exit.failure().unwrap();
        let expected = json!({
            "code": self.code,
            "phase": self.phase,
            "blame": self.blame,
            "retryable": self.status == 75,
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(line.get(field), Some(value), "`{field}` of {line}");
        }
        golden::assert_failed(cause, exit, config);
        assert_no_secret(&text, config);
        line
    }
}

/// Starts a sidecar that must fail, and asserts that it does. `cause` distinguishes the causes of one code.
pub(crate) async fn assert_fails(config: &Config, failure: Failure, cause: &str) -> Value {
    assert_fails_within(config, failure, cause, LIMIT).await
}

/// As [`assert_fails`], for a failure that is a time-out.
pub(crate) async fn assert_fails_within(
    config: &Config,
    failure: Failure,
    cause: &str,
    limit: Duration,
) -> Value {
    let sidecar = Sidecar::spawn(config).await.unwrap();
    let exit = sidecar.exit(limit).await.unwrap();
    failure.assert(cause, &exit, config)
}

/// Asserts that `text` contains none of the config's secrets, and no piece of one.
pub(crate) fn assert_no_secret(text: &str, config: &Config) {
    let secrets = [
        "/aws/secret_access_key",
        "/aws/session_token",
        "/bastion/ssh_private_key",
        "/bastion/ssh_private_key_passphrase",
    ];
    for pointer in secrets {
        let Some(secret) = config.value().pointer(pointer).and_then(Value::as_str) else {
            continue;
        };
        // Each line of a private key is a secret; its first and last line are public.
        let pieces = secret.lines().filter(|line| !line.starts_with("-----") && line.len() >= 8);
        for piece in pieces {
            assert!(!text.contains(piece), "`{pointer}` shows in: {text}");
        }
    }
}

/// The least-privilege policy, and permission to terminate one's own sessions.
pub(crate) fn may_terminate() -> Policy {
    Policy::least_privilege(INSTANCE).allowing("ssm:TerminateSession", OWN_SESSIONS)
}

/// A PostgreSQL server shared by all tests.
pub(crate) async fn postgres_server() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED.get_or_init(|| async { Postgres::start().await.unwrap() }).await
}

/// A MariaDB server shared by all tests.
pub(crate) async fn mariadb_server() -> &'static MariaDb {
    static SHARED: OnceCell<MariaDb> = OnceCell::const_new();
    SHARED.get_or_init(|| async { MariaDb::start().await.unwrap() }).await
}

/// The config's fields for a login with this key file.
pub(crate) fn with_key(key: &KeyFile) -> Value {
    json!({ "bastion": {
        "ssh_private_key": key.text,
        "ssh_private_key_passphrase": key.passphrase,
    } })
}
