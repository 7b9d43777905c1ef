//! The top-level error: every failure with its code and a hint that says what to change.

use std::error::Error as StdError;

use data_channel::ProtocolError;
use runner_protocol::{Blame, ErrorCode, Failure};
use ssh_client::OpenFailure;

use crate::{
    channel::driver::Ended,
    config::ConfigError,
    monitor::Lost,
    net::proxy::InvalidProxy,
    runtime::{hardening::Unprotected, phase::Phase},
    ssh::{OpenError, SshError},
    tunnel::{health::HealthError, lanes::LaneError, listener::ListenError},
};

/// Why the job failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file of `--config` cannot be read.
    #[error("cannot read the document from `{path}`")]
    File {
        /// As given.
        path: String,
        /// What the kernel said.
        #[source]
        cause: std::io::Error,
    },
    /// Stdin cannot be read.
    #[error("cannot read the document from stdin")]
    Stdin(#[source] std::io::Error),
    /// A protection that the document requires is missing.
    #[error(transparent)]
    Hardening(#[from] Unprotected),
    /// There is no listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The endpoint for probes cannot listen.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// `HTTPS_PROXY` cannot be used.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// A lane could not be opened, or the last one was lost for good.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The bastion did not connect to the target.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The time to `ready` is used up.
    #[error("not ready within {seconds} s")]
    NotReady {
        /// `timeouts.ready_s`.
        seconds: u64,
    },
    /// The host lets no worker be started.
    #[error("the worker process cannot be started")]
    NoWorker(#[source] std::io::Error),
    /// The worker has gone.
    #[error("internal error: {0}")]
    Worker(#[from] Lost),
    /// A defect of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Why the target was not reached.
#[derive(Debug, thiserror::Error)]
#[error("target {host}:{port} not reached from the bastion: {cause}")]
pub struct TargetError {
    /// `target.host`.
    pub host: String,
    /// `target.port`.
    pub port: u16,
    /// What happened.
    pub cause: TargetCause,
}

/// What kept the bastion from the target.
#[derive(Debug, thiserror::Error)]
pub enum TargetCause {
    /// sshd said no.
    #[error("{0}")]
    Open(OpenError),
    /// sshd said no and forwards all the same; which of its reasons it was it does not say.
    #[error("the bastion cannot connect to it, and does not say why")]
    Unexplained,
    /// Nobody said anything.
    #[error("no answer within {seconds} s")]
    TimedOut {
        /// `timeouts.connect_s`.
        seconds: u64,
    },
}

/// What a failure says to the customer besides its message.
struct Advice {
    code: ErrorCode,
    hint: String,
    /// Where it is not the code's.
    blame: Option<Blame>,
    aws_request_id: Option<String>,
}

impl Advice {
    fn new(code: ErrorCode, hint: impl Into<String>) -> Self {
        Self { code, hint: hint.into(), blame: None, aws_request_id: None }
    }
}

impl Error {
    /// The `failed` line's content; `phase` is the one that ran.
    pub fn into_failure(self, phase: Phase) -> Failure {
        let phase = match &self {
            Self::Config(_) | Self::File { .. } | Self::Stdin(_) => Phase::Config,
            _ => phase,
        };
        let message = match &self {
            Self::NotReady { .. } => format!("{self}: {}", awaited(phase)),
            _ => chain(&self),
        };
        let advice = self.advice(phase);
        let mut failure = Failure::new(advice.code, message, advice.hint, phase.name());
        failure.blame = advice.blame.unwrap_or(failure.blame);
        failure.aws_request_id = advice.aws_request_id;
        failure
    }

    fn advice(&self, phase: Phase) -> Advice {
        match self {
            Self::Config(error) => Advice::new(error.code(), error.hint()),
            Self::File { .. } => Advice::new(
                ErrorCode::ConfigInvalid,
                "give `--config` the path of a readable file with one JSON document",
            ),
            Self::Stdin(_) => Advice::new(
                ErrorCode::ConfigInvalid,
                "let stdin be a pipe with one JSON document, or name a file with `--config`",
            ),
            Self::Hardening(_) => Advice::new(
                ErrorCode::LocalHardening,
                "let the host give this protection, or set `hardening` to `best_effort`",
            ),
            Self::Listen(ListenError::Refused { .. }) => Advice::new(
                ErrorCode::LocalListen,
                "set `listen.port` to 0 or to a free port, `listen.address` to one of this host, \
                 or `listen.fd` to a listening socket",
            ),
            Self::Health(_) => Advice::new(
                ErrorCode::LocalListen,
                "set `health.listen` to an address of this host and a free port",
            ),
            Self::Listen(ListenError::Namespace { .. }) => Advice::new(
                ErrorCode::LocalNamespace,
                "check that `listen.netns` exists and that the sidecar may enter it (CAP_SYS_ADMIN), \
                 or pass a listening socket as `listen.fd`",
            ),
            Self::Proxy(error) => Advice::new(ErrorCode::AwsUnreachable, error.hint()),
            Self::Lane(error) => lane(error, phase),
            Self::Target(error) => target(error),
            Self::NotReady { .. } => not_ready(phase),
            Self::NoWorker(_) => Advice::new(
                ErrorCode::LocalHardening,
                "let the sidecar start a second process of itself: mount /proc, and leave room for one process",
            ),
            Self::Worker(lost) => Advice::new(ErrorCode::Internal, lost.hint()),
            Self::Internal(_) => Advice::new(ErrorCode::Internal, REPORT),
        }
    }
}

/// What had not come when the time was up.
const fn awaited(phase: Phase) -> &'static str {
    match phase {
        Phase::Config | Phase::StartSession => "StartSession was not answered",
        Phase::Session => "the data channel was not open",
        Phase::Ssh => "the bastion's sshd had not let us in",
        Phase::Target | Phase::Tunnel => "the target had not answered the bastion",
    }
}

fn not_ready(phase: Phase) -> Advice {
    let (code, hint) = match phase {
        Phase::Config | Phase::StartSession => (
            ErrorCode::TimeoutStartSession,
            "check the way to the SSM API (proxy, VPC endpoint), or raise `timeouts.ready_s`",
        ),
        Phase::Session => (
            ErrorCode::TimeoutSession,
            "check the way to the `ssmmessages` host, from here and from the instance, or raise \
             `timeouts.ready_s`",
        ),
        Phase::Ssh => (
            ErrorCode::TimeoutSsh,
            "check the load of the bastion and its sshd, or raise `timeouts.ready_s`",
        ),
        Phase::Target | Phase::Tunnel => (
            ErrorCode::TimeoutTarget,
            "check that the target's security group lets the bastion in, or raise `timeouts.ready_s`",
        ),
    };
    Advice::new(code, hint)
}

fn lane(error: &LaneError, phase: Phase) -> Advice {
    match error {
        LaneError::Api(error) => Advice {
            code: error.code(),
            hint: error.hint().to_owned(),
            blame: error.blame(),
            aws_request_id: error.aws_request_id().map(str::to_owned),
        },
        LaneError::Stream(error) => Advice::new(error.code(), error.hint()),
        LaneError::Channel(ended) => channel(ended),
        LaneError::Ssh(error) => ssh(error),
        LaneError::NoSshd { port } => Advice::new(
            ErrorCode::SshUnreachable,
            format!(
                "start sshd on the bastion and let it listen on port {port} at localhost, or set \
                 `bastion.ssh_port` to the port that it listens on"
            ),
        ),
        LaneError::NotSsh { port } => Advice::new(
            ErrorCode::SshProtocol,
            format!("set `bastion.ssh_port` to sshd's port: {port} is another server's"),
        ),
        LaneError::NotReplaced(_) => Advice::new(
            ErrorCode::SessionLost,
            "start the job again; if the path breaks often, allow `ssm:ResumeSession` and raise \
             `timeouts.reconnect_s`",
        ),
        LaneError::Overdue { .. } | LaneError::Stopping => not_ready(phase),
    }
}

fn channel(ended: &Ended) -> Advice {
    match ended {
        Ended::Closed(reason) if is_too_old(reason) => Advice::new(
            ErrorCode::SessionUnsupported,
            "update the SSM agent on the bastion to 3.1 or later",
        ),
        Ended::Closed(_) => Advice::new(
            ErrorCode::SessionEnded,
            "look in CloudTrail for who called TerminateSession, at the idle time-out and the maximum duration in the \
             Session Manager preferences, and whether the instance runs and its SSM agent reaches the `ssmmessages` \
             endpoint",
        ),
        Ended::Lost(_) => Advice::new(
            ErrorCode::SessionLost,
            "try again; allow `ssm:ResumeSession` so that a session survives a broken connection",
        ),
        Ended::Protocol(error) => match **error {
            ProtocolError::Unsupported { .. } => Advice::new(
                ErrorCode::SessionUnsupported,
                "switch KMS encryption off in the Session Manager preferences; if it is off, update the SSM agent on \
                 the bastion",
            ),
            ProtocolError::Damaged { .. }
            | ProtocolError::Handshake(_)
            | ProtocolError::Unexpected { .. } => Advice::new(
                ErrorCode::SessionProtocol,
                "update the SSM agent on the bastion; report this if it is up to date",
            ),
        },
        Ended::Terminated => Advice::new(ErrorCode::SessionEnded, "start the job again"),
    }
}

/// Whether the agent is older than port sessions: amazon-ssm-agent (seen with 2.3; `getStepExecutionOperation` in
/// `agent/framework/runpluginutil/run.go`) then says "Plugin with name Port is not supported by this version of ssm
/// agent, please update to latest version".
fn is_too_old(reason: &str) -> bool {
    reason.contains("is not supported by this version of ssm agent")
}

fn ssh(error: &SshError) -> Advice {
    use ssh_client::Error as Ssh;
    let error = match error {
        SshError::Protocol(error) => &**error,
        SshError::StreamEnded => {
            return Advice::new(
                ErrorCode::SessionLost,
                "try again; if it happens again, look at sshd's log on the bastion",
            );
        }
    };
    match error {
        Ssh::AuthRejected { user, .. } => Advice::new(
            ErrorCode::SshAuthRejected,
            format!(
                "put the public half of `bastion.ssh_private_key` into the authorized_keys of `{user}`, \
                 or set `bastion.ssh_user` to the user of this image (Amazon Linux and RHEL `ec2-user`, Ubuntu \
                 `ubuntu`, Debian `admin`, Rocky `rocky`)"
            ),
        ),
        Ssh::AuthIncomplete { .. } => Advice::new(
            ErrorCode::SshAuthRejected,
            "let sshd's AuthenticationMethods be `publickey` alone for this user",
        ),
        Ssh::HostKeyMismatch { .. } | Ssh::HostKeyUnproven { .. } => Advice::new(
            ErrorCode::SshHostKeyMismatch,
            "if the bastion was rebuilt on purpose, update `bastion.ssh_host_key`; if not, find out who \
             answers in its place",
        ),
        Ssh::Signing { .. } => Advice::new(
            ErrorCode::ConfigKeyUnreadable,
            "give `bastion.ssh_private_key` as an unhardened Ed25519, ECDSA or RSA key of 2,048 bits or more",
        ),
        Ssh::NoCommonAlgorithm { .. } => Advice::new(
            ErrorCode::SshProtocol,
            "let the bastion's sshd offer algorithms of OpenSSH 7.4 or later (curve25519-sha256, \
             aes256-gcm, rsa-sha2-256)",
        ),
        Ssh::KeepaliveTimeout { .. } => {
            Advice::new(ErrorCode::SessionLost, "check that the bastion is alive, then try again")
        }
        // What we ask of the state machine and of the library below it.
        Ssh::Crypto { .. } | Ssh::ChannelsExhausted { .. } | Ssh::Ended => {
            Advice::new(ErrorCode::Internal, REPORT)
        }
        Ssh::Disconnected { .. } => Advice::new(
            ErrorCode::SshProtocol,
            "read sshd's log on the bastion: it ended the connection for the reason given",
        ),
        Ssh::Integrity | Ssh::NotSsh { .. } | Ssh::Protocol { .. } => Advice::new(
            ErrorCode::SshProtocol,
            "check that `bastion.ssh_port` is sshd's; update OpenSSH on the bastion if it is",
        ),
    }
}

fn target(error: &TargetError) -> Advice {
    let TargetError { host, port, cause } = error;
    match cause {
        TargetCause::Open(OpenError::Refused {
            reason: OpenFailure::AdministrativelyProhibited,
            ..
        }) => Advice::new(
            ErrorCode::SshForwardingDenied,
            format!(
                "set `AllowTcpForwarding yes` (or `local`) in sshd_config on the bastion and let \
                     PermitOpen and the key's options allow {host}:{port}"
            ),
        ),
        TargetCause::Open(OpenError::Refused { description, .. }) if is_unresolved(description) => {
            Advice::new(
                ErrorCode::TargetUnresolved,
                format!(
                    "correct `target.host`, or the DNS settings of the bastion's VPC: the bastion cannot resolve \
                     `{host}`"
                ),
            )
        }
        TargetCause::Open(OpenError::Refused { description, .. }) if is_refused(description) => {
            Advice::new(
                ErrorCode::TargetUnreachable,
                format!(
                    "start the database, or correct `target.port`: {host} is there, but nothing listens on \
                     its port {port}"
                ),
            )
        }
        TargetCause::Open(OpenError::Refused { .. }) => Advice::new(
            ErrorCode::TargetUnreachable,
            format!(
                "check that the database listens on {host}:{port} and that its security group lets the \
                 bastion in"
            ),
        ),
        TargetCause::Open(OpenError::Lost(error)) => ssh(error),
        TargetCause::Unexplained => Advice::new(
            ErrorCode::TargetUnresolved,
            format!(
                "check on the bastion that `{host}` resolves (`getent hosts {host}`) and that PermitOpen and the \
                 key's options allow {host}:{port}: its old sshd gives one answer to all of these"
            ),
        ),
        TargetCause::TimedOut { .. } => Advice::new(
            ErrorCode::TimeoutTarget,
            format!(
                "let the bastion in by the security group of {host}:{port}, which drops what it does not allow; or \
                 raise `timeouts.connect_s`"
            ),
        ),
    }
}

/// Whether the target's host answered that nobody listens: OpenSSH (seen with 9.2; `channel_post_connecting`
/// in `channels.c`) sends the text of `strerror(ECONNREFUSED)`, the same in glibc, musl and the BSDs.
fn is_refused(description: &str) -> bool {
    description.to_lowercase().contains("connection refused")
}

/// Whether the bastion cannot resolve the target's name: OpenSSH (seen with 9.2; `connect_to_helper` in
/// `channels.c`) sends `CONNECT_FAILED` with the text of `gai_strerror`.
fn is_unresolved(description: &str) -> bool {
    let description = description.to_lowercase();
    [
        // glibc's EAI_NONAME ("Name or service not known"), the BSDs' ("… nor servname provided, or not known").
        "not known",
        // glibc's EAI_AGAIN ("Temporary failure in name resolution") and EAI_FAIL ("Non-recoverable failure in …").
        "name resolution",
        // glibc's EAI_NODATA ("No address associated with hostname").
        "no address",
        // musl's EAI_NONAME ("Name does not resolve").
        "does not resolve",
        // Servers other than OpenSSH, such as Java's.
        "unknown host",
    ]
    .iter()
    .any(|words| description.contains(words))
}

/// The error and its causes, each once, joined as people read them.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

/// What to do about a defect of ours.
pub(crate) const REPORT: &str =
    "report this with the log lines before it; trying again does no harm";

#[cfg(test)]
mod tests;
