use std::time::Duration;

use runner_protocol::{Blame, Failure, Phase};

use super::*;

#[test]
fn smallest_config_gets_every_default() {
    let config = config(&Draft::default()).unwrap();
    assert_eq!((config.name.as_str(), config.job_id), ("a \"test\"", None));
    assert!(matches!(config.aws.identity, Identity::Static(_)));
    assert_eq!(config.aws.region, "ap-northeast-1");
    assert_eq!((config.aws.endpoint_url, config.aws.is_loopback), (None, false));
    assert_eq!((config.bastion.ssh_port, config.bastion.ssh_user.as_str()), (22, "ec2-user"));
    assert_eq!(config.bastion.pins, []);
    assert_eq!(config.target.port, 5432);
    assert_eq!(config.allowed_uids, None);
    assert_eq!(config.timeouts.ready, Duration::from_mins(1));
    let tunnel = Tunnel {
        sessions: 1,
        compression: ssh_client::Compression::Auto,
        message_bytes: 1024,
        max_connections: 64,
    };
    assert_eq!(config.tunnel, tunnel);
}

#[test]
fn every_field_reaches_its_consumer() {
    let config = config(&Draft {
        aws: r#", "endpoint_url": "http://127.0.0.1:4566/ssm", "stream_endpoint_url": "wss://gate.example:8443", "region": "eu-west-1""#,
        bastion: r#", "ssh_port": 2222, "ssh_user": "admin""#,
        host_key: &format!(r#"["{FINGERPRINT}", "{PUBLIC_KEY}"]"#),
        rest: r#", "job_id": "7", "events": true, "listen": {"allowed_uids": [7]},
            "tunnel": {"compression": "off", "sessions": 4, "message_bytes": 4096, "max_connections": 9}"#,
        ..Draft::default()
    })
    .unwrap();
    let uri = |uri: &Option<Uri>| uri.as_ref().unwrap().to_string();
    assert_eq!(uri(&config.aws.endpoint_url), "http://127.0.0.1:4566/ssm");
    assert_eq!(uri(&config.aws.stream_endpoint_url), "wss://gate.example:8443/");
    assert_eq!((config.aws.is_loopback, config.aws.region.as_str()), (true, "eu-west-1"));
    assert_eq!((config.bastion.ssh_port, config.bastion.ssh_user.as_str()), (2222, "admin"));
    let [HostKeyPin::Fingerprint(_), HostKeyPin::Key(_)] = config.bastion.pins.as_slice() else {
        panic!("{:?}", config.bastion.pins);
    };
    let tunnel = Tunnel {
        sessions: 4,
        compression: ssh_client::Compression::Off,
        message_bytes: 4096,
        max_connections: 9,
    };
    assert_eq!(config.tunnel, tunnel);
    assert_eq!(config.job_id.as_deref(), Some("7"));
    assert_eq!(config.allowed_uids, Some(vec![7]));
}

#[test]
fn wrong_private_keys_are_distinguished() {
    let with = |key, passphrase| Draft { key, passphrase, ..Draft::default() };
    let damaged = KEY.replace("b3BlbnNzaC1rZXktdjE", "b3BlbnNzaC1rZXktdjF");
    let cases = [
        ("plain", with(KEY, None), None),
        ("encrypted", with(ENCRYPTED_KEY, Some("right passphrase")), None),
        ("no passphrase", with(ENCRYPTED_KEY, None), Some(ErrorCode::ConfigPassphraseRequired)),
        (
            "empty passphrase",
            with(ENCRYPTED_KEY, Some("")),
            Some(ErrorCode::ConfigPassphraseRequired),
        ),
        (
            "wrong passphrase",
            with(ENCRYPTED_KEY, Some("hunter2")),
            Some(ErrorCode::ConfigPassphraseWrong),
        ),
        ("no key", with("hunter2", None), Some(ErrorCode::ConfigKeyUnreadable)),
        ("public half", with(PUBLIC_KEY, None), Some(ErrorCode::ConfigKeyUnreadable)),
        ("damaged", with(&damaged, None), Some(ErrorCode::ConfigKeyUnreadable)),
    ];
    for (name, draft, expected) in cases {
        let failure = config(&draft).err().map(|error| failed(&error));
        assert_eq!(failure.as_ref().map(|failure| failure.code), expected, "case: {name}");
        let Some(failure) = failure else { continue };
        assert!(failure.message.starts_with("bastion.ssh_private_key: "), "{}", failure.message);
        assert!(failure.hint.contains("`bastion.ssh_private_key"), "{}", failure.hint);
        assert_eq!((failure.phase.as_str(), failure.blame), ("config", Blame::Customer));
        assert!(!format!("{failure:?}").contains("hunter2"), "case: {name}");
    }
}

#[test]
fn wrong_host_keys_are_named_by_their_place() {
    let cases = [
        (r#""SHA256:short""#, "bastion.ssh_host_key: "),
        (&format!(r#"["{FINGERPRINT}", "hunter2"]"#), "bastion.ssh_host_key[1]: "),
        (r#"["ssh-ed25519 hunter2", "{}"]"#, "bastion.ssh_host_key[0]: "),
        (&format!(r#""@revoked * {PUBLIC_KEY}""#), "bastion.ssh_host_key: the marker `@revoked`"),
        (
            &format!(r#""@cert-authority * {PUBLIC_KEY}""#),
            "bastion.ssh_host_key: the marker `@cert-authority`",
        ),
        (
            &format!(r#""vm {PUBLIC_KEY}\n@revoked vm {PUBLIC_KEY}""#),
            "bastion.ssh_host_key: the marker",
        ),
    ];
    for (host_key, path) in cases {
        let error = config(&Draft { host_key, ..Draft::default() }).unwrap_err();
        let failure = failed(&error);
        assert_eq!(failure.code, ErrorCode::ConfigInvalid);
        assert!(failure.message.starts_with(path), "{}", failure.message);
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
}

#[test]
fn wrong_host_key_and_wrong_private_key_are_reported_at_once() {
    let draft = Draft { host_key: r#""MD5:00""#, key: "no key", ..Draft::default() };
    let failure = failed(&config(&draft).unwrap_err());
    assert_eq!(failure.code, ErrorCode::ConfigInvalid);
    for path in ["bastion.ssh_host_key: ", "bastion.ssh_private_key: "] {
        assert!(failure.message.contains(path), "{}", failure.message);
    }
}

#[test]
fn refused_config_keeps_its_own_code_and_hint() {
    let rest = r#", "version": 2"#;
    let failure = failed(&config(&Draft { rest, ..Draft::default() }).unwrap_err());
    assert_eq!(failure.code, ErrorCode::ConfigVersion);
    let rest = r#", "ssh_tunnel": {}"#;
    let failure = failed(&config(&Draft { rest, ..Draft::default() }).unwrap_err());
    assert_eq!(failure.code, ErrorCode::ConfigInvalid);
    assert!(failure.hint.contains("`ssh_tunnel`"), "{}", failure.hint);
}

#[test]
fn debug_of_settings_shows_no_secret() {
    let passphrase = Some("right passphrase");
    let draft = Draft { key: ENCRYPTED_KEY, passphrase, ..Draft::default() };
    let shown = format!("{:?}", config(&draft).unwrap());
    for secret in ["AKIDUMMY", "hunter2", "right passphrase", "b3BlbnNza"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// The parts of a draft that tests vary.
struct Draft<'a> {
    /// Further fields of `aws`.
    aws: &'a str,
    /// Further fields of `bastion`.
    bastion: &'a str,
    key: &'a str,
    passphrase: Option<&'a str>,
    /// The JSON of `bastion.ssh_host_key`.
    host_key: &'a str,
    /// Further fields at the top.
    rest: &'a str,
}

impl Default for Draft<'_> {
    fn default() -> Self {
        Self { aws: "", bastion: "", key: KEY, passphrase: None, host_key: "null", rest: "" }
    }
}

/// The settings of a config with `rest` after its other fields.
pub(crate) fn settings(rest: &str) -> Settings {
    config(&Draft { rest, ..Draft::default() }).unwrap()
}

fn failed(error: &SettingsError) -> Failure {
    error.to_failure(Phase::Config)
}

fn config(draft: &Draft<'_>) -> Result<Settings, SettingsError> {
    let Draft { aws, bastion, key, passphrase, host_key, rest } = draft;
    let text = format!(
        r#"{{
            "name": "a \"test\"",
            "aws": {{ "access_key_id": "AKIDUMMY", "secret_access_key": "hunter2-secret"{aws} }},
            "bastion": {{
                "instance_id": "i-0123456789abcdef0",
                "ssh_private_key": {key},
                "ssh_private_key_passphrase": {passphrase},
                "ssh_host_key": {host_key}{bastion}
            }},
            "target": {{ "engine": "postgresql", "host": "database.internal" }}{rest}
        }}"#,
        key = serde_json::json!(key),
        passphrase = serde_json::json!(passphrase),
    );
    Settings::from_config(Config::from_json(&text)?)
}

/// Created for these tests.
pub(crate) const KEY: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW
QyNTUxOQAAACA4MvPGGHTp8qgEOvAQzCHRx6aF3l7YihEHguRh2rJvPAAAAIh6FAQvehQE
LwAAAAtzc2gtZWQyNTUxOQAAACA4MvPGGHTp8qgEOvAQzCHRx6aF3l7YihEHguRh2rJvPA
AAAECnekFDflT51uR9HbQOw7I6cCIl8QZ4dmMsT7xauzg8pDgy88YYdOnyqAQ68BDMIdHH
poXeXtiKEQeC5GHasm88AAAABHRlc3QB
-----END OPENSSH PRIVATE KEY-----
";

/// Created for these tests; its passphrase is `right passphrase`.
const ENCRYPTED_KEY: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABBxgGae6V
vgOjuDLyDUFP5SAAAAAgAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIEQiUCug2wKfiM98
J8Mu2Nf9kpGpfIsaLTuYz6KfKQ0KAAAAkC24yflLfNcEKHNKKJ612xSvxiOJ+yVUnJ4+FD
3dScJq0bUQ8HV0VEKNDoJ13vpBb5rqbEyWj+kcTC6O1T7/Z8rRL3Q2JfzYNXnakXYZzn4T
q73wLG8bFyJK0B+uLMFIDmqR6pSNHNFEo5oB/jvhDaVbmMtRh39dBX3owP7UXC4aT63iZx
RMNxrS+tqGAoKyzg==
-----END OPENSSH PRIVATE KEY-----
";

const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDgy88YYdOnyqAQ68BDMIdHHpoXeXtiKEQeC5GHasm88 test";

const FINGERPRINT: &str = "SHA256:c1iiOEnnHsd4OaSkkLd0x4/9ifxrgmVOuv3mFmxhrXE";
