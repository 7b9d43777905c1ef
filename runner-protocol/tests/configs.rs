//! What a config is read as, and the message and hint for each mistake.

#![cfg(test)]

use std::time::Duration;

use proptest::prelude::*;
use runner_protocol::{
    Config, ErrorCode, Failure, MAX_CONFIG_BYTES,
    config::{Compression, Engine, Hardening, Identity},
};
use serde_json::{Map, Value, json};

const SECRET: &str = "hunter2-hunter2-hunter2";

#[test]
fn smallest_config_gets_every_default() {
    let config = Config::from_json(&valid_with(&json!({})).to_string()).unwrap();
    let Identity::Static(keys) = &config.aws.identity else { panic!("{:?}", config.aws) };
    assert_eq!(keys.access_key_id.expose(), "AKIAIOSFODNN7EXAMPLE");
    assert_eq!(keys.secret_access_key.expose(), SECRET);
    assert!(keys.session_token.is_none());
    assert_eq!(config.aws.region, "ap-northeast-1");
    assert_eq!((config.bastion.ssh_port, config.bastion.ssh_user.as_str()), (22, "ec2-user"));
    assert_eq!(config.bastion.ssh_private_key.expose(), SECRET);
    assert_eq!(config.bastion.ssh_host_key, Vec::<String>::new());
    assert_eq!((config.target.engine, config.target.port), (Some(Engine::MySql), 3306));
    assert_eq!((config.listen.address.to_string().as_str(), config.listen.port), ("127.0.0.1", 0));
    assert_eq!(config.listen.allowed_uids, None);
    assert_eq!(config.hardening, Hardening::BestEffort);
    assert_eq!((config.tunnel.sessions, config.tunnel.compression), (1, Compression::Auto));
    assert_eq!((config.tunnel.message_bytes, config.tunnel.max_connections), (1024, 64));
    assert_eq!(config.timeouts.ready, Duration::from_mins(1));
    assert_eq!(config.timeouts.connect, Duration::from_secs(10));
    assert_eq!(config.timeouts.reconnect, Duration::from_mins(1));
    assert!(!config.events && config.health.listen.is_none());
}

#[test]
fn one_host_key_is_a_list_of_one_and_an_engine_gives_its_port() {
    let changes = json!({
        "bastion": { "ssh_host_key": "SHA256:x" },
        "target": { "engine": "postgresql" },
    });
    let config = Config::from_json(&valid_with(&changes).to_string()).unwrap();
    assert_eq!(config.bastion.ssh_host_key, ["SHA256:x"]);
    assert_eq!(config.target.port, 5432);
}

#[test]
fn each_mistake_is_reported_by_its_path_with_a_hint() {
    let keys = "give `aws.access_key_id` and `aws.secret_access_key`; only with `aws.credentials` \
                set to \"environment\" is the identity of the sidecar's host used";
    let cases = [
        (json!({ "name": "" }), "name: empty", "set `name` to a text that is not empty"),
        (
            json!({ "name": "x".repeat(129) }),
            "name: not 1 to 128 characters",
            "set `name` to a label of 1 to 128 characters",
        ),
        (json!({ "name": null }), "name: missing", "give `name`"),
        (json!({ "events": 1 }), "events: not true or false", "set `events` to true or false"),
        (json!({ "aws": { "access_key_id": null } }), "aws.access_key_id: missing", keys),
        (
            json!({ "aws": { "secret_access_key": "copied \n" } }),
            "aws.secret_access_key: blanks or characters in it that no key has",
            "set `aws.secret_access_key` to the key alone",
        ),
        (
            json!({ "aws": { "secret_access_key": null, "credentials": "environment" } }),
            "aws.access_key_id: given beside `aws.credentials`",
            "set `aws.access_key_id` to nothing, or leave out `aws.credentials`",
        ),
        (
            json!({ "aws": { "endpoint_url": "http://example.com" } }),
            "aws.endpoint_url: `http://` for a host that is not loopback",
            "set `aws.endpoint_url` to a URL such as `https://host`; `http://` is for loopback alone",
        ),
        (
            json!({ "bastion": { "ssh_port": 70000 } }),
            "bastion.ssh_port: not a whole number from 1 to 65535: 70000",
            "set `bastion.ssh_port` to a whole number from 1 to 65535",
        ),
        (
            json!({ "bastion": { "ssh_port": "22" } }),
            "bastion.ssh_port: not a number",
            "set `bastion.ssh_port` to a whole number from 1 to 65535",
        ),
        (
            json!({ "bastion": { "ssh_host_key": ["a", 1] } }),
            "bastion.ssh_host_key[1]: not a text",
            "set `bastion.ssh_host_key[1]` to a text",
        ),
        (
            json!({ "bastion": { "ssh_host_key": [] } }),
            "bastion.ssh_host_key: an empty list",
            "set `bastion.ssh_host_key` to at least one value, or leave it out",
        ),
        (json!({ "bastion": 1 }), "bastion: not an object", "set `bastion` to an object"),
        (
            json!({ "target": { "engine": null } }),
            "target.port: missing",
            "give `target.port`, or `target.engine` for its default",
        ),
        (
            json!({ "target": { "engine": "oracle" } }),
            "target.engine: not \"mysql\" or \"postgresql\"",
            "set `target.engine` to \"mysql\" or \"postgresql\"",
        ),
        (
            json!({ "target": { "host": "db.internal:3306" } }),
            "target.host: not a host's name or address",
            "set `target.host` to a host's name or address alone; the port goes to `target.port`",
        ),
        (
            json!({ "listen": { "address": "0.0.0.0" } }),
            "listen.address: not a loopback address",
            "set `listen.address` to \"127.0.0.1\" or \"::1\", or set `listen.allow_non_loopback` to true",
        ),
        (
            json!({ "listen": { "fd": 3, "netns": "/proc/1/ns/net" } }),
            "listen.netns: given beside `listen.fd`",
            "set `listen.netns` to nothing, or leave out `listen.fd`",
        ),
        (
            json!({ "ssh_tunnel": { "host": "b" } }),
            "ssh_tunnel: unknown field; a plain SSH tunnel cannot be combined with a session tunnel",
            "remove `ssh_tunnel`; SSH to the bastion is described by `bastion`",
        ),
        (
            json!({ "target": { "database": "x" } }),
            "target.database: unknown field",
            "remove `target.database`",
        ),
        (
            json!({ "timeouts": { "ready": 5 } }),
            "timeouts.ready: unknown field",
            "rename `timeouts.ready` to `ready_s`",
        ),
    ];
    for (changes, message, hint) in cases {
        let failure = refuse(&valid_with(&changes).to_string());
        assert_eq!((failure.message.as_str(), failure.hint.as_str()), (message, hint), "{changes}");
        assert_eq!(failure.code, ErrorCode::ConfigInvalid, "{changes}");
        assert_eq!(failure.phase, "config");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let failure = refuse(r#"{ "aws": { "region": "" }, "tunnel": { "sessions": 17, "size": 1 } }"#);
    let expected = "name: missing; aws.access_key_id: missing; aws.secret_access_key: missing; \
         aws.region: empty; bastion.instance_id: missing; bastion.ssh_private_key: missing; \
         target.host: missing; target.port: missing; \
         tunnel.sessions: not a whole number from 1 to 16: 17; tunnel.size: unknown field";
    assert_eq!(failure.message, expected);
    assert_eq!(failure.hint.matches("only with `aws.credentials`").count(), 1, "{}", failure.hint);
}

#[test]
fn environment_is_used_only_if_the_config_says_so() {
    let changes = json!({ "aws": {
        "access_key_id": null,
        "secret_access_key": null,
        "credentials": "environment",
    } });
    let config = Config::from_json(&valid_with(&changes).to_string()).unwrap();
    assert!(matches!(config.aws.identity, Identity::Environment));
    for aws in [json!(null), json!({}), json!({ "credentials": null })] {
        let mut config = valid_with(&json!({}));
        config["aws"] = aws;
        let failure = refuse(&config.to_string());
        assert_eq!(failure.message, "aws.access_key_id: missing; aws.secret_access_key: missing");
    }
}

#[test]
fn equal_names_are_a_mistake_even_when_escaped() {
    let text = valid_with(&json!({})).to_string();
    let twice = text.replacen('{', r#"{"\u006eame":"other","#, 1);
    assert_eq!(refuse(&twice).message, "name: given more than once");
    let nested = text.replacen(r#""host":"#, r#""host":"a","host":"#, 1);
    assert_eq!(refuse(&nested).message, "target.host: given more than once");
}

#[test]
fn as_many_unknown_and_equal_names_as_fit_are_counted_not_listed() {
    let names: Vec<_> = (0..50_000).map(|index| format!(r#""u{index}":1"#)).collect();
    let failure = refuse(&format!("{{{},{}}}", names.join(","), [r#""u0":1"#; 9].join(",")));
    // 7 fields are missing, those of `target` and `bastion` included.
    assert!(
        failure.message.ends_with(&format!("; and {} more", 7 + 9 + 50_000 - 24)),
        "{}",
        failure.message
    );
    assert!(failure.message.len() + failure.hint.len() < 4096);
}

#[test]
fn other_versions_are_reported_before_anything_else() {
    for version in ["0", "2", "1.5", "-1"] {
        let failure = refuse(&format!(r#"{{ "version": {version}, "new_field": true }}"#));
        assert_eq!(failure.code, ErrorCode::ConfigVersion);
        assert_eq!(failure.message, format!("version of the config is not known: {version}"));
        assert!(failure.hint.contains("`version`"), "{}", failure.hint);
    }
    let failure = refuse(&valid_with(&json!({ "version": "1" })).to_string());
    assert_eq!(failure.message, "version: not a number");
    assert!(Config::from_json(&valid_with(&json!({ "version": 1 })).to_string()).is_ok());
}

#[test]
fn malformed_configs_are_reported_without_quoting_them() {
    let long = format!(r#"{{"memo":"{}"}}"#, "x".repeat(MAX_CONFIG_BYTES));
    let deep = format!(r#"{{"memo":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let cases: [(&[u8], &str); 12] = [
        (b"", "no config was given"),
        (b"hunter2", "config is not a JSON object"),
        (b"[{}]", "config is not a JSON object"),
        (b"{\"a\": 1", "config ends before its closing brace"),
        (b"{\"a\": hunter2}", "config is not JSON: expected value at line 1 column 7"),
        (b"{\"a\": 1,\n}", "config is not JSON: trailing comma at line 2 column 1"),
        (b"{\"a\0\": 1}", "config is not JSON: a control character at line 1 column 4"),
        (b"{\"a\": \"\xc3\"}", "config is not UTF-8"),
        (b"{} hunter2", "config goes on after its closing brace"),
        (b"{}{}", "config goes on after its closing brace"),
        (long.as_bytes(), "config is longer than 1 MiB"),
        (deep.as_bytes(), "config is nested deeper than 32 levels"),
    ];
    for (bytes, message) in cases {
        let failure = Failure::from(Config::from_slice(bytes).unwrap_err());
        assert_eq!(failure.message, message);
        assert_eq!(failure.code, ErrorCode::ConfigInvalid);
        assert!(!failure.hint.is_empty());
    }
}

#[test]
fn config_may_begin_with_a_byte_order_mark_and_end_with_blanks() {
    let text = format!("\u{feff}\r\n{:#}\r\n", valid_with(&json!({})));
    assert!(Config::from_json(&text).is_ok());
}

#[test]
fn messages_about_a_wrong_config_hold_none_of_its_values() {
    let wrong = [json!(SECRET), json!([SECRET]), json!({ "a": SECRET }), json!({ SECRET_NAME: 1 })];
    for path in paths() {
        for value in &wrong {
            let mut changes = value.clone();
            for name in path.rsplit('.') {
                changes = json!({ name: changes });
            }
            // Wrong elsewhere as well, so that there is a message in any case.
            let config = merged(valid_with(&json!({ "name": null, "events": 3 })), &changes);
            let failure = refuse(&config.to_string());
            let shown = format!("{failure:?}");
            assert!(!shown.contains(SECRET) && !shown.contains(SECRET_NAME), "{path}: {shown}");
        }
    }
}

#[test]
fn debug_of_a_config_shows_no_secret() {
    let changes = json!({
        "aws": { "session_token": SECRET },
        "bastion": { "ssh_private_key_passphrase": SECRET },
    });
    let config = Config::from_json(&valid_with(&changes).to_string()).unwrap();
    assert!(!format!("{config:?}").contains(SECRET));
}

#[test]
fn failures_follow_the_style_of_messages() {
    for text in ["", "[]", "{", "{]", "{}", r#"{"version":3}"#, r#"{"a":1,"b":{},"bastion":[]}"#] {
        let failure = refuse(text);
        for text in [&failure.message, &failure.hint] {
            assert!(text.starts_with(|c: char| !c.is_uppercase()), "{text}");
            assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused_without_panic(bytes in any::<Vec<u8>>()) {
        drop(Config::from_slice(&bytes));
    }

    #[test]
    fn a_config_damaged_anywhere_is_taken_or_refused_without_panic(
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut bytes = valid_with(&json!({})).to_string().into_bytes();
        let index = at.index(bytes.len());
        bytes[index] = with;
        if let Err(error) = Config::from_slice(&bytes) {
            prop_assert!(!Failure::from(error).message.contains(SECRET));
        }
    }

    #[test]
    fn texts_arrive_as_they_were_written(name in "\\PC{1,128}", key in "[^\0]{0,40}") {
        let key = format!("x{key}");
        let changes = json!({ "name": name, "bastion": { "ssh_private_key": key } });
        let config = Config::from_json(&valid_with(&changes).to_string()).unwrap();
        prop_assert_eq!(config.name, name);
        prop_assert_eq!(config.bastion.ssh_private_key.expose(), key);
    }
}

fn refuse(config: &str) -> Failure {
    Config::from_json(config).unwrap_err().into()
}

/// A valid config with `changes` merged into it (RFC 7396): null removes a field.
fn valid_with(changes: &Value) -> Value {
    let valid = json!({
        "name": "orders",
        "aws": { "access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": SECRET },
        "bastion": { "instance_id": "i-0123456789abcdef0", "ssh_private_key": SECRET },
        "target": { "engine": "mysql", "host": "orders.internal" },
    });
    merged(valid, changes)
}

/// RFC 7396.
fn merged(target: Value, changes: &Value) -> Value {
    let Value::Object(changes) = changes else { return changes.clone() };
    let mut fields = match target {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for (name, change) in changes {
        let before = fields.remove(name).unwrap_or(Value::Null);
        if !change.is_null() {
            fields.insert(name.clone(), merged(before, change));
        }
    }
    Value::Object(fields)
}

/// The paths of all fields of the schema.
fn paths() -> Vec<String> {
    fn walk(object: &Value, path: &str, found: &mut Vec<String>) {
        for (name, property) in object["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(property, &path, found);
            found.push(path);
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::from_str(runner_protocol::schema()).unwrap(), "", &mut found);
    found
}

/// A secret in place of a field name, of 40 characters as AWS secret keys have.
const SECRET_NAME: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
