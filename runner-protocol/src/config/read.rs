//! Parses the config's text into a [`Config`], section by section.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use super::{
    AssumeRole, Aws, Bastion, Compression, Config, ConfigError, Engine, Hardening, Health,
    Identity, Keys, Listen, Target, Timeouts, Tunnel, VERSION,
};
use crate::{
    fields::Fields,
    framing::{ConfigReader, Malformed},
    mistake::Mistakes,
    rules::{self, Problem, integer, seconds, word},
    unknown,
    value::{self, Value},
};

impl Config {
    /// Reads a whole config. Only white space may stand before its opening and after its closing brace.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all mistakes at once.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::from_slice(text.as_bytes())
    }

    /// Reads a whole config from bytes, such as the content of a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all mistakes at once.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut reader = ConfigReader::new();
        let framed = reader.push(bytes)?.ok_or_else(|| reader.end())?;
        if !framed.rest.trim_ascii().is_empty() {
            return Err(Malformed::Trailing.into());
        }
        parse(&framed.text)
    }
}

/// Parses a text that begins and ends with the braces of the config.
fn parse(text: &str) -> Result<Config, ConfigError> {
    let entries = value::entries(text).map_err(|error| {
        let value::SyntaxError { what, line, column } = error;
        Malformed::Syntax { what, line, column }
    })?;
    if let Some((_, raw)) = entries.iter().find(|(name, _)| name == "version")
        && let Value::Number(digits) = Value::new(raw)
        && digits.parse() != Ok(VERSION)
    {
        let shown = if digits.len() <= 10 { digits } else { "a long number" };
        return Err(ConfigError::Version(shown.to_owned()));
    }
    let mut fields = Fields::new(entries);
    let config = sections(&mut fields);
    let findings = fields.finish();
    let unknown =
        findings.unknown.iter().map(|(path, name)| unknown::mistake(path, name, &findings.known));
    let mistakes = findings.mistakes.into_iter().chain(unknown).collect();
    match (config, Mistakes::new(mistakes)) {
        (Some(config), None) => Ok(config),
        (_, Some(mistakes)) => Err(mistakes.into()),
        (None, None) => Err(Malformed::NotObject.into()),
    }
}

/// Reads the sections in the contract's order. Every field is asked for before any `?` returns, so that all
/// mistakes are found.
fn sections(fields: &mut Fields<'_>) -> Option<Config> {
    fields.optional("version", integer::<u32>(VERSION.into()..=VERSION.into()));
    let name = fields.required("name", rules::name);
    let memo = fields.optional("memo", rules::free_text);
    let job_id = fields.optional("job_id", rules::text);
    let aws = fields.section("aws", aws);
    let bastion = fields.section("bastion", bastion);
    let target = fields.section("target", target);
    let listen = fields.section("listen", |fields| Some(listen(fields)));
    let levels = [("best_effort", Hardening::BestEffort), ("required", Hardening::Required)];
    let hardening = fields.optional("hardening", word(&levels)).unwrap_or_default();
    let tunnel = fields.section("tunnel", |fields| Some(tunnel(fields)));
    let timeouts = fields.section("timeouts", |fields| Some(timeouts(fields)));
    let events = fields.optional("events", rules::boolean).unwrap_or(false);
    let health = fields.section("health", |fields| {
        Some(Health { listen: fields.optional("listen", rules::socket_address) })
    });
    Some(Config {
        name: name?,
        memo,
        job_id,
        aws: aws?,
        bastion: bastion?,
        target: target?,
        listen: listen?,
        hardening,
        tunnel: tunnel?,
        timeouts: timeouts?,
        events,
        health: health?,
    })
}

fn aws(fields: &mut Fields<'_>) -> Option<Aws> {
    let identity = identity(fields);
    let assume_role = fields.optional_section("assume_role", |fields| {
        let role_arn = fields.required("role_arn", rules::role_arn);
        let external_id = fields.optional("external_id", rules::external_id);
        let session_name = fields.optional("session_name", rules::role_session_name);
        Some(AssumeRole { role_arn: role_arn?, external_id, session_name })
    });
    let region = fields.optional("region", rules::region);
    let endpoint_url = fields.optional("endpoint_url", rules::endpoint("https", "http", true));
    let stream_endpoint_url =
        fields.optional("stream_endpoint_url", rules::endpoint("wss", "ws", false));
    Some(Aws {
        identity: identity?,
        assume_role,
        region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        endpoint_url,
        stream_endpoint_url,
    })
}

fn identity(fields: &mut Fields<'_>) -> Option<Identity> {
    if !fields.is_given("credentials") {
        fields.optional("credentials", |_| Ok(()));
        return keys(fields, HINT_ENVIRONMENT).map(Identity::Static);
    }
    for key in ["access_key_id", "secret_access_key", "session_token"] {
        let given = fields.is_given(key);
        fields.optional(key, |_| Ok(()));
        if given {
            let what = "given beside `aws.credentials`";
            fields.reject(key, Problem::new(what, "nothing, or leave out `aws.credentials`"));
        }
    }
    let environment = fields.optional("credentials", word(&[("environment", ())]));
    environment.map(|()| Identity::Environment)
}

/// Reads an access key; `hint` is used for fields that are missing.
pub(crate) fn keys(fields: &mut Fields<'_>, hint: &str) -> Option<Keys> {
    let access_key_id = fields.required_or("access_key_id", rules::aws_key, hint);
    let secret_access_key = fields.required_or("secret_access_key", rules::aws_key, hint);
    let session_token = fields.optional("session_token", rules::aws_key);
    Some(Keys {
        access_key_id: access_key_id?,
        secret_access_key: secret_access_key?,
        session_token,
    })
}

fn bastion(fields: &mut Fields<'_>) -> Option<Bastion> {
    let instance_id = fields.required("instance_id", rules::instance_id);
    let ssh_port = fields.optional("ssh_port", integer(1..=65535));
    let ssh_user = fields.optional("ssh_user", rules::user);
    let ssh_private_key = fields.required("ssh_private_key", rules::secret);
    let passphrase = fields.optional("ssh_private_key_passphrase", rules::passphrase);
    let ssh_host_key = fields.list("ssh_host_key", true, rules::text);
    Some(Bastion {
        instance_id: instance_id?,
        ssh_port: ssh_port.unwrap_or(22),
        ssh_user: ssh_user.unwrap_or_else(|| "ec2-user".to_owned()),
        ssh_private_key: ssh_private_key?,
        ssh_private_key_passphrase: passphrase.flatten(),
        ssh_host_key: ssh_host_key.unwrap_or_default(),
    })
}

fn target(fields: &mut Fields<'_>) -> Option<Target> {
    let says_engine = fields.is_given("engine");
    let engines = [Engine::MySql, Engine::PostgreSql].map(|engine| (engine.as_str(), engine));
    let engine = fields.optional("engine", word(&engines));
    let host = fields.required("host", rules::host);
    let port = integer(1..=65535);
    let port = if says_engine {
        fields.optional("port", port).or_else(|| engine.map(Engine::default_port))
    } else {
        fields.required_or("port", port, "give `target.port`, or `target.engine` for its default")
    };
    Some(Target { engine, host: host?, port: port? })
}

fn listen(fields: &mut Fields<'_>) -> Listen {
    let address = fields.optional("address", rules::address);
    let allow_non_loopback = fields.optional("allow_non_loopback", rules::boolean).unwrap_or(false);
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    if !address.is_loopback() && !allow_non_loopback {
        let expected = "\"127.0.0.1\" or \"::1\", or set `listen.allow_non_loopback` to true";
        fields.reject("address", Problem::new("not a loopback address", expected));
    }
    let port = fields.optional("port", integer(0..=65535)).unwrap_or(0);
    let fd = fields.optional("fd", integer(3..=i32::MAX.into()));
    if fd.is_some() && port != 0 {
        let problem = Problem::new("given beside `listen.fd`", "0, or leave out `listen.fd`");
        fields.reject("port", problem);
    }
    let netns = fields.optional("netns", rules::path).map(PathBuf::from);
    if fd.is_some() && netns.is_some() {
        let problem = Problem::new("given beside `listen.fd`", "nothing, or leave out `listen.fd`");
        fields.reject("netns", problem);
    }
    // The greatest number, (uid_t)-1, means "no user".
    let allowed_uids = fields.list("allowed_uids", false, integer(0..=i64::from(u32::MAX) - 1));
    Listen { address, allow_non_loopback, port, fd, netns, allowed_uids }
}

fn tunnel(fields: &mut Fields<'_>) -> Tunnel {
    let compressions =
        [("auto", Compression::Auto), ("on", Compression::On), ("off", Compression::Off)];
    Tunnel {
        sessions: fields.optional("sessions", integer(1..=16)).unwrap_or(1),
        compression: fields.optional("compression", word(&compressions)).unwrap_or_default(),
        message_bytes: fields.optional("message_bytes", integer(256..=65536)).unwrap_or(1024),
        max_connections: fields.optional("max_connections", integer(1..=65535)).unwrap_or(64),
    }
}

fn timeouts(fields: &mut Fields<'_>) -> Timeouts {
    let mut read = |name, most, default| {
        fields.optional(name, seconds(1..=most)).unwrap_or_else(|| Duration::from_secs(default))
    };
    Timeouts {
        ready: read("ready_s", 600, 60),
        connect: read("connect_s", DAY, 10),
        reconnect: read("reconnect_s", DAY, 60),
    }
}

const DEFAULT_REGION: &str = "ap-northeast-1";

/// A missing key never falls back to the host's own identity, which has to be asked for.
const HINT_ENVIRONMENT: &str = "give `aws.access_key_id` and `aws.secret_access_key`; only with \
    `aws.credentials` set to \"environment\" is the identity of the sidecar's host used";

const DAY: i64 = 24 * 60 * 60;

/// The paths of all fields that are asked for while reading the config `text`.
#[cfg(test)]
pub(crate) fn known_fields(text: &str) -> Vec<String> {
    let mut fields = Fields::new(value::entries(text).unwrap());
    drop(sections(&mut fields));
    fields.finish().known
}
