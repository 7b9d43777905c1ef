//! Whole lines that no test from outside can provoke. The others are in `tests/e2e/golden/failed/`.

use std::sync::Arc;

use data_channel::ProtocolError;
use runner_protocol::Failure;
use ssh_client::OpenFailure;

use super::*;
use crate::{
    channel::{
        ChannelEnd,
        websocket::{InvalidStreamUrl, WebSocketOpenError},
    },
    net::{dial::ConnectError, proxy::TunnelError as ProxyError},
    session::ApiError,
    ssh::{ChannelOpenError, SshError},
    tunnel::{
        lanes::{HangUp, Stage},
        target::TargetCause,
    },
};

/// Code, message and hint of `error` in `phase`.
fn line(error: impl Into<TunnelError>, phase: Phase) -> (ErrorCode, String, String) {
    let Failure { code, message, hint, .. } = error.into().to_failure(phase);
    (code, message, hint)
}

fn ssh_error(error: ssh_client::Error) -> TunnelError {
    LaneError::from(SshError::from(error)).into()
}

fn refused(reason: OpenFailure, description: &str) -> TunnelError {
    let cause = TargetCause::Refused(ChannelOpenError::Refused {
        reason,
        description: description.to_owned(),
    });
    let (host, user) = ("db.internal".to_owned(), "ec2-user".to_owned());
    TargetError { host, port: 5432, cause, user, banner: None }.into()
}

fn assert_lines<const N: usize>(cases: [(TunnelError, Phase, ErrorCode, &str, &str); N]) {
    for (error, phase, code, message, hint) in cases {
        let shown = format!("{error:?}");
        assert_eq!(line(error, phase), (code, message.to_owned(), hint.to_owned()), "{shown}");
    }
}

#[test]
fn internal_errors() {
    for (error, message) in [
        (
            ssh_error(ssh_client::Error::Crypto { what: "key derivation" }),
            "cryptographic operation failed: key derivation",
        ),
        (ssh_error(ssh_client::Error::Ended), "SSH connection has ended"),
        (
            ssh_error(ssh_client::Error::ChannelsExhausted { limit: 65 }),
            "65 channels are open already",
        ),
        (LaneError::from(ApiError::aborted()).into(), "the call was given up"),
    ] {
        let hint = Failure::REPORT_HINT.to_owned();
        assert_eq!(line(error, Phase::Tunnel), (ErrorCode::Internal, message.to_owned(), hint));
    }
}

#[test]
fn connection_to_the_stream_host() {
    let host = || "ssmmessages.eu-west-1.amazonaws.com".to_owned();
    let proxy = |cause| {
        let (proxy, destination) = ("proxy.example".to_owned(), format!("{}:443", host()));
        WebSocketOpenError::from(ConnectError::Proxy { host: proxy, destination, cause })
    };
    let status = |status, signature_refused| WebSocketOpenError::Refused {
        host: host(),
        status,
        signature_refused,
    };
    let again = "try again; look for a proxy on the way that does not let WebSockets pass";
    let cases = [
        (
            proxy(ProxyError::NotTls),
            ErrorCode::LocalProxy,
            "the proxy `proxy.example` does not open a tunnel to `ssmmessages.eu-west-1.amazonaws.com:443`: what \
             answers there does not speak TLS",
            "write `http://` in place of `https://` in `HTTPS_PROXY`, if the proxy does not expect TLS",
        ),
        (
            ConnectError::Unreachable {
                host: "proxy.example".to_owned(),
                is_proxy: true,
                cause: "Connection refused".to_owned(),
            }
            .into(),
            ErrorCode::AwsUnreachable,
            "the proxy `proxy.example` cannot be reached: Connection refused",
            "start the proxy, or correct its host and port in `HTTPS_PROXY`",
        ),
        (
            // A port is no status.
            ConnectError::Unreachable { host: host(), is_proxy: false, cause: "407".to_owned() }
                .into(),
            ErrorCode::AwsUnreachable,
            "`ssmmessages.eu-west-1.amazonaws.com` cannot be reached: 407",
            "allow outgoing HTTPS to `ssmmessages.eu-west-1.amazonaws.com`, or name a proxy in `HTTPS_PROXY`; \
             for a private endpoint set `aws.stream_endpoint_url`",
        ),
        (
            status(403, false),
            ErrorCode::AwsAccessDenied,
            "`ssmmessages.eu-west-1.amazonaws.com` refuses the data channel: HTTP 403",
            "give credentials that can sign the opening, and allow them `ssmmessages:OpenDataChannel`; if \
             `ssmmessages` is reached through a VPC endpoint, allow it in that endpoint's policy, too",
        ),
        (
            status(403, true),
            ErrorCode::AwsAccessDenied,
            "`ssmmessages.eu-west-1.amazonaws.com` refuses the data channel: HTTP 403",
            "allow `ssmmessages:OpenDataChannel` on one's own sessions (`ssm-sidecar policy` prints the \
             statement), and check that credentials and clock are right",
        ),
        (
            status(429, false),
            ErrorCode::AwsThrottled,
            "`ssmmessages.eu-west-1.amazonaws.com` refuses the data channel: HTTP 429",
            "start fewer sessions at once in this account, and try again later",
        ),
        (
            status(503, false),
            ErrorCode::AwsInternal,
            "`ssmmessages.eu-west-1.amazonaws.com` refuses the data channel: HTTP 503",
            "try again; see the AWS Health Dashboard",
        ),
        (
            status(400, false),
            ErrorCode::SessionLost,
            "`ssmmessages.eu-west-1.amazonaws.com` refuses the data channel: HTTP 400",
            again,
        ),
        (
            InvalidStreamUrl::Plain.into(),
            ErrorCode::SessionProtocol,
            "the StreamUrl asks for a connection without TLS",
            "set `aws.stream_endpoint_url` if the host is yours, and check `aws.endpoint_url` if it is not",
        ),
    ];
    for (error, code, message, hint) in cases {
        let expected = (code, message.to_owned(), hint.to_owned());
        assert_eq!(line(LaneError::from(error), Phase::Session), expected);
    }
}

#[test]
fn end_of_the_data_channel() {
    let ended = |end: ChannelEnd| LaneError::from(end).into();
    let preferences = "look in CloudTrail for who called TerminateSession, at the idle time-out and the maximum duration in the \
             Session Manager preferences, and whether the instance runs and its SSM agent reaches the `ssmmessages` \
             endpoint";
    assert_lines([
        (
            ended(ChannelEnd::Closed(String::new())),
            Phase::Tunnel,
            ErrorCode::SessionEnded,
            "the service ended the session",
            preferences,
        ),
        (
            // Of two lines, as the agent sends them.
            ended(ChannelEnd::Closed("port 22 not supported\nby me".to_owned())),
            Phase::Tunnel,
            ErrorCode::SessionEnded,
            "the service ended the session: `port 22 not supported\\nby me`",
            preferences,
        ),
        (
            ended(ChannelEnd::Terminated),
            Phase::Session,
            ErrorCode::SessionEnded,
            "the session was terminated",
            "start the job again",
        ),
        (
            ended(ChannelEnd::Lost("no attempt was answered in time".to_owned())),
            Phase::Session,
            ErrorCode::SessionLost,
            "the data channel was lost: no attempt was answered in time",
            "try again; look at the network between this host and AWS if this recurs",
        ),
        (
            ended(ChannelEnd::NotResumable("denied".to_owned())),
            Phase::Session,
            ErrorCode::SessionLost,
            "the data channel was lost, and its session may not be resumed: denied",
            "try again; allow `ssm:ResumeSession`, as `ssm-sidecar policy` prints it, so that a session survives the loss \
             of its connection",
        ),
        (
            ended(ChannelEnd::Protocol(Arc::new(ProtocolError::Unexpected {
                message: "flag",
                state: "awaiting the handshake request",
            }))),
            Phase::Session,
            ErrorCode::SessionProtocol,
            "the agent sent an unexpected flag while awaiting the handshake request",
            "update the SSM agent on the bastion; report this if it is up to date",
        ),
    ]);
}

#[test]
fn end_of_the_ssh_connection() {
    let log = "read sshd's log on the bastion: it ended the connection for the reason given";
    assert_lines([
        (
            LaneError::from(SshError::StreamEnded).into(),
            Phase::Ssh,
            ErrorCode::SessionLost,
            "the byte stream to sshd ended",
            "try again; if it happens again, look at sshd's log on the bastion",
        ),
        (
            ssh_error(ssh_client::Error::Disconnected {
                reason: 2,
                text: "Packet corrupt".to_owned(),
            }),
            Phase::Ssh,
            ErrorCode::SshProtocol,
            "server disconnected: `Packet corrupt` (reason 2)",
            log,
        ),
        (
            ssh_error(ssh_client::Error::Integrity),
            Phase::Tunnel,
            ErrorCode::SshProtocol,
            "packet failed its integrity check",
            "check that `bastion.ssh_port` is sshd's; update OpenSSH on the bastion if it is",
        ),
        (
            ssh_error(ssh_client::Error::KeepaliveTimeout {
                silent: std::time::Duration::from_secs(80),
            }),
            Phase::Tunnel,
            ErrorCode::SessionLost,
            "server has been silent for 80 s",
            "check that the bastion is alive, then try again",
        ),
        (
            ssh_error(ssh_client::Error::HostKeyUnproven { fingerprint: "SHA256:x".to_owned() }),
            Phase::Ssh,
            ErrorCode::SshHostKeyMismatch,
            "server's signature does not match its host key `SHA256:x`",
            "if the bastion was rebuilt on purpose, update `bastion.ssh_host_key`; if not, find out who answers \
             in its place",
        ),
        (
            ssh_error(ssh_client::Error::Signing {
                algorithm: "rsa-sha2-512".to_owned(),
                why: "the key is too short".to_owned(),
            }),
            Phase::Ssh,
            ErrorCode::ConfigKeyUnreadable,
            "private key cannot sign with rsa-sha2-512: the key is too short",
            "give `bastion.ssh_private_key` as an unhardened Ed25519, ECDSA or RSA key of 2,048 bits or more",
        ),
    ]);
}

/// A login of `admin` that was refused.
fn login(tried: &str, accepted: Option<&str>, rsa_bits: Option<u32>) -> ssh_client::Login {
    let (user, accepted) = ("admin".to_owned(), accepted.map(str::to_owned));
    ssh_client::Login { user, tried: tried.to_owned(), accepted, rsa_bits }
}

/// Asserts the code, the whole message, and words of the hint.
fn assert_told<const N: usize>(cases: [(TunnelError, ErrorCode, &str, &[&str]); N]) {
    for (error, code, message, words) in cases {
        let (found, said, hint) = line(error, Phase::Ssh);
        assert_eq!((found, said.as_str()), (code, message));
        for word in words {
            assert!(hint.contains(word), "`{word}` is not in: {hint}");
        }
    }
}

#[test]
fn refused_logins() {
    let methods = || vec!["publickey".to_owned()];
    let rejected = |login| {
        let login = Box::new(login);
        ssh_error(ssh_client::Error::AuthRejected { login, methods: methods() })
    };
    let ended = |reason, text: &str| {
        let login = Box::new(login("ssh-ed25519", None, None));
        ssh_error(ssh_client::Error::LoginEnded { login, reason, text: text.to_owned() })
    };
    assert_told([
        (
            rejected(login("ssh-ed25519", None, None)),
            ErrorCode::SshAuthRejected,
            "server rejected user `admin` with a key for ssh-ed25519; it would accept: publickey",
            &["authorized_keys of `admin`", "from=", "127.0.0.1", "PubkeyAcceptedAlgorithms"],
        ),
        (
            rejected(login("rsa-sha2-512", None, Some(2048))),
            ErrorCode::SshAuthRejected,
            "server rejected user `admin` with a key for rsa-sha2-512; it would accept: publickey",
            &["RequiredRSASize (this key has 2048 bits)"],
        ),
        (
            // As OpenSSH 9.6 and later under a FIPS policy.
            rejected(login("ssh-ed25519", Some("ecdsa-sha2-nistp256,rsa-sha2-512"), None)),
            ErrorCode::SshAuthRejected,
            "server rejected user `admin` with a key for ssh-ed25519, which it does not take, only \
             `ecdsa-sha2-nistp256,rsa-sha2-512`; it would accept: publickey",
            &["FIPS", "PubkeyAcceptedAlgorithms"],
        ),
        (
            ended(2, "Too many authentication failures"),
            ErrorCode::SshAuthRejected,
            "server rejected user `admin` with a key for ssh-ed25519 and disconnected: `Too many authentication \
             failures` (reason 2)",
            &["authorized_keys of `admin`"],
        ),
        (
            ended(11, "Attack attempt detected"),
            ErrorCode::SshAuthRejected,
            "server rejected user `admin` with a key for ssh-ed25519 and disconnected: `Attack attempt detected` \
             (reason 11)",
            &["sshd's log", "authorized_keys of `admin`"],
        ),
        (
            ended(12, "Too many users"),
            ErrorCode::SshBusy,
            "server rejected user `admin` with a key for ssh-ed25519 and disconnected: `Too many users` (reason 12)",
            &["127.0.0.1"],
        ),
    ]);
}

#[test]
fn negotiations_that_fail_name_the_option_of_sshd() {
    for (kind, words) in [
        ("key exchange method", "KexAlgorithms"),
        ("host key algorithm", "HostKeyAlgorithms"),
        ("cipher", "Ciphers"),
        ("MAC", "MACs"),
        ("compression", "`tunnel.compression` to `\"auto\"`"),
    ] {
        let (ours, theirs) = ("a".to_owned(), "b,c".to_owned());
        let message = format!("no common {kind}: client offers `a`, server offers `b,c`");
        let error = ssh_error(ssh_client::Error::NoCommonAlgorithm { kind, ours, theirs });
        assert_told([(error, ErrorCode::SshProtocol, &message, &[words])]);
    }
}

#[test]
fn sshd_that_hangs_up() {
    let end = |stage, words: Option<&str>, seconds| {
        let (words, user) = (words.map(str::to_owned), "admin".to_owned());
        let after = std::time::Duration::from_secs(seconds);
        LaneError::from(HangUp { stage, words, after, port: 22, user }).into()
    };
    let everybody = "through SSM all logins come from 127.0.0.1";
    assert_told([
        (
            end(Stage::BeforeIdentification, Some("Not allowed at this time"), 0),
            ErrorCode::SshBusy,
            "the server on port 22 of the bastion hung up before its identification: `Not allowed at this time`",
            &[everybody, "MaxStartups", "PerSourcePenalties", "/etc/hosts.deny"],
        ),
        (
            end(Stage::BeforeIdentification, None, 0),
            ErrorCode::SshBusy,
            "the server on port 22 of the bastion hung up before its identification, without a word",
            &[everybody, "`bastion.ssh_port`"],
        ),
        (
            end(Stage::KeyExchange, None, 0),
            ErrorCode::SshBusy,
            "sshd hung up during the key exchange, without a word",
            &["sshd's log"],
        ),
        (
            // As pam_unix.
            end(
                Stage::Login,
                Some("Your account has expired; please contact your system administrator."),
                0,
            ),
            ErrorCode::SshAuthRejected,
            "sshd hung up during the login of `admin`: `Your account has expired; please contact your system \
             administrator.`",
            &["`chage -l admin`", "the key was accepted"],
        ),
        (
            // As systemd's, by pam_nologin.
            end(Stage::Login, Some("System is booting up. Please come back later."), 0),
            ErrorCode::SshBusy,
            "sshd hung up during the login of `admin`: `System is booting up. Please come back later.`",
            &["/etc/nologin"],
        ),
        (
            end(Stage::Login, None, 30),
            ErrorCode::SshBusy,
            "sshd hung up during the login of `admin`, after 30 s, without a word",
            &["LoginGraceTime", "AuthorizedKeysCommand"],
        ),
        (
            end(Stage::Login, None, 0),
            ErrorCode::SshAuthRejected,
            "sshd hung up during the login of `admin`, without a word",
            &["sshd's log", "PAM"],
        ),
    ]);
    for reason in
        ["ended by a test", "document process failed unexpectedly", "Your session timed out"]
    {
        let after = std::time::Duration::ZERO;
        let (stage, words, user) = (Stage::Login, None, String::new());
        let hang_up = HangUp { stage, words, after, port: 22, user };
        let error = LaneError::from(ChannelEnd::Closed(reason.to_owned())).or_hung_up(hang_up);
        assert!(matches!(error, LaneError::Channel(_)), "`{reason}` is not sshd's end: {error}");
    }
}

#[test]
fn forwarding_that_an_expired_password_switches_off() {
    let cause = || {
        TargetCause::Refused(ChannelOpenError::Refused {
            reason: OpenFailure::AdministrativelyProhibited,
            description: "open failed".to_owned(),
        })
    };
    for (banner, words) in [
        (None, "an expired password of `admin` switches forwarding off, too (`chage -l admin`)"),
        (Some("Authorized use only"), "set `AllowTcpForwarding yes`"),
        (
            // As pam_unix 1.5 says it.
            Some("You are required to change your password immediately (administrator enforced)."),
            "it said at the login: `You are required to change your password immediately",
        ),
    ] {
        let (host, user, banner) = ("db".to_owned(), "admin".to_owned(), banner.map(str::to_owned));
        let error = TargetError { host, port: 1, cause: cause(), user, banner };
        let (code, _, hint) = line(error, Phase::Target);
        assert_eq!(code, ErrorCode::SshForwardingDenied);
        assert!(hint.contains(words) && hint.contains("chage"), "{hint}");
    }
}

#[test]
fn texts_of_the_bastion_about_the_target() {
    for (words, code) in [
        ("Connection refused", ErrorCode::TargetUnreachable),
        ("No route to host", ErrorCode::TargetUnreachable),
        ("Name or service not known", ErrorCode::TargetUnresolved),
        ("Temporary failure in name resolution", ErrorCode::TargetUnresolved),
        ("nodename nor servname provided, or not known", ErrorCode::TargetUnresolved),
        ("No address associated with hostname", ErrorCode::TargetUnresolved),
        ("Name does not resolve", ErrorCode::TargetUnresolved),
    ] {
        assert_eq!(
            line(refused(OpenFailure::ConnectFailed, words), Phase::Target).0,
            code,
            "{words}"
        );
    }
    let message = "target db.internal:5432 not reached from the bastion: the bastion refused the connection: ";
    let elsewhere = "check that the database listens on db.internal:5432 and that its security group lets the bastion in";
    for (reason, words, whole) in [
        (OpenFailure::ConnectFailed, "No route to host", "connect failed: No route to host"),
        (OpenFailure::ResourceShortage, "", "resource shortage: "),
        (OpenFailure::UnknownChannelType, "what?", "unknown channel type: what?"),
        (OpenFailure::Other(9), "tired", "reason 9: tired"),
    ] {
        let (code, said, hint) = line(refused(reason, words), Phase::Target);
        assert_eq!((code, said), (ErrorCode::TargetUnreachable, format!("{message}{whole}")));
        assert_eq!(hint, elsewhere);
    }
}
