//! The JSON Schema of the config.

/// The JSON Schema of the config (draft 2020-12), as text.
///
/// It accepts what [`Config::from_json`](crate::Config::from_json) accepts. URLs, addresses and host names are
/// hard to describe by a pattern; for these it is less strict.
pub const fn schema() -> &'static str {
    include_str!("schema.json")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jsonschema::Validator;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::{Config, read::known_fields};

    #[test]
    fn schema_names_every_field_of_the_parser_and_no_other() {
        let config = json!({ "aws": { "assume_role": {} } }).to_string();
        let known: BTreeSet<_> = known_fields(&config).into_iter().collect();
        let described: BTreeSet<_> = properties().into_iter().map(|(path, _)| path).collect();
        assert_eq!(known, described);
    }

    #[test]
    fn every_field_is_described() {
        for (path, property) in properties() {
            assert!(property["description"].is_string(), "{path}");
        }
    }

    #[test]
    fn schema_and_parser_accept_and_refuse_the_same_values() {
        let validator = validator();
        let mut refused = 0;
        for (path, property) in properties() {
            for value in probes(&property) {
                for base in bases() {
                    refused += usize::from(!agree(&validator, &with(base, &path, value.clone())));
                }
            }
        }
        assert!(refused > 1000, "probes reach no rule");
    }

    #[test]
    fn schema_and_parser_agree_on_rules_between_fields() {
        let validator = validator();
        let changes: &[&[(&str, Value)]] = &[
            &[("name", json!("日".repeat(128)))],
            &[("name", json!("日".repeat(129)))],
            &[("aws.access_key_id", Value::Null)],
            &[("aws.access_key_id", Value::Null), ("aws.secret_access_key", Value::Null)],
            &[("aws.credentials", json!("environment"))],
            &[
                ("aws.credentials", json!("environment")),
                ("aws.access_key_id", Value::Null),
                ("aws.secret_access_key", Value::Null),
            ],
            &[
                ("aws.credentials", json!("environment")),
                ("aws.access_key_id", Value::Null),
                ("aws.secret_access_key", Value::Null),
                ("aws.session_token", json!("token")),
            ],
            &[("target.port", Value::Null), ("target.engine", Value::Null)],
            &[("target.port", Value::Null), ("target.engine", json!("mysql"))],
            &[("target.port", json!(1)), ("target.engine", Value::Null)],
            &[("listen.address", json!("::1"))],
            &[("listen.address", json!("0:0:0:0:0:0:0:1"))],
            &[("listen.address", json!("127.1.2.3"))],
            &[("listen.address", json!("0.0.0.0"))],
            &[("listen.address", json!("::"))],
            &[("listen.address", json!("10.0.0.1")), ("listen.allow_non_loopback", json!(false))],
            &[("listen.address", json!("10.0.0.1")), ("listen.allow_non_loopback", json!(true))],
            &[("listen.address", json!("localhost")), ("listen.allow_non_loopback", json!(true))],
            &[("listen.fd", json!(3)), ("listen.netns", json!("/run/netns/a"))],
            &[("listen.fd", json!(3)), ("listen.netns", Value::Null)],
            &[("listen.fd", json!(3)), ("listen.port", json!(0))],
            &[("listen.fd", json!(3)), ("listen.port", json!(1))],
            &[("listen.allowed_uids", json!([0, 4_294_967_294_u32]))],
            &[("listen.allowed_uids", json!([4_294_967_295_u32]))],
            &[("listen.allowed_uids", json!(["0"]))],
            &[("listen.netns", json!("relative"))],
            &[("health.listen", json!("127.0.0.1:8080"))],
            &[("health.listen", json!("[::]:8080"))],
            &[("health.listen", json!(":8080"))],
            &[("health.listen", json!("localhost:8080"))],
            &[("unknown", json!(1))],
            &[("aws.unknown", Value::Null)],
            &[("aws.assume_role.unknown", json!(1))],
        ];
        for changes in changes {
            for base in bases() {
                let config = changes
                    .iter()
                    .fold(base, |config, (path, value)| with(config, path, value.clone()));
                agree(&validator, &config);
            }
        }
    }

    #[test]
    fn schema_and_parser_agree_on_texts_with_a_form() {
        let validator = validator();
        let cases: &[(&str, &[&str])] = &[
            (
                "bastion.instance_id",
                &["i-01234567", "i-0123456", "i-012345678", "mi-0123456789abcdef0", "x-01234567"],
            ),
            (
                "aws.region",
                &[
                    "eu-west-1",
                    "eu-west-1.",
                    "-",
                    "Eu-west-1",
                    "a--b",
                    "us-iso-east-1",
                    "eu-west-1a",
                    "eu-west1",
                    "xx-new-12",
                    "Tokyo",
                ],
            ),
            (
                "aws.endpoint_url",
                &[
                    "https://h",
                    "http://h",
                    "http://127.0.0.1:1",
                    "http://localhost/x",
                    "http://[::1]:1",
                    "http://localhost.example",
                    "http://127.0.0.1@h",
                    "https://u@h",
                    "https://h?q",
                    "wss://h",
                    "h",
                    "ftp://127.0.0.1",
                ],
            ),
            (
                "aws.stream_endpoint_url",
                &["wss://h", "wss://h/", "wss://h/p", "ws://h", "ws://127.0.0.1:1", "https://h"],
            ),
            (
                "aws.assume_role.role_arn",
                &[
                    "arn:aws:iam::123456789012:role/a",
                    "arn:aws-cn:iam::123456789012:role/path/a",
                    "arn:aws:iam::123456789012:role/",
                    "arn:aws:iam::12345678901:role/a",
                    "arn:aws:iam::123456789012:user/a",
                    "arn:aws:sts::123456789012:role/a",
                    "arn:aws:iam::123456789012:role/a b",
                ],
            ),
            ("aws.assume_role.external_id", &["a", "ab", "a/b:c", "a b", "a?"]),
            ("aws.assume_role.session_name", &["a", "ab", "a/b", "a@b"]),
            ("aws.access_key_id", &["AKIA", "AKIA\n", " AKIA"]),
            ("bastion.ssh_private_key", &[" \n", "a\nb"]),
            ("bastion.ssh_user", &["a b", "a\nb", "DOMAIN\\user"]),
            ("target.host", &["db.internal", "10.0.0.1", "::1", "[::1]", "a/b", "a b", "a@b"]),
            ("target.engine", &["mysql", "postgresql", "oracle"]),
            ("hardening", &["best_effort", "required", "none"]),
            ("tunnel.compression", &["auto", "on", "off", "yes"]),
        ];
        for (path, values) in cases {
            for value in *values {
                for base in bases() {
                    agree(&validator, &with(base, path, json!(value)));
                }
            }
        }
    }

    #[test]
    fn defaults_of_the_schema_are_those_of_the_parser() {
        let read =
            |config: &Value| format!("{:?}", Config::from_json(&config.to_string()).unwrap());
        let [smallest, _] = bases();
        let mut defaults = 0;
        for (path, property) in properties() {
            let Some(default) = property.get("default") else { continue };
            defaults += 1;
            let explicit = with(smallest.clone(), &path, default.clone());
            assert_eq!(read(&explicit), read(&smallest), "{path}");
        }
        assert_eq!(defaults, 16);
    }

    /// Asserts that both accept `config` or both refuse it; true if they accept it.
    fn agree(validator: &Validator, config: &Value) -> bool {
        let text = config.to_string();
        let parsed = Config::from_json(&text);
        let error = validator.validate(config).err().map(|error| error.to_string());
        assert_eq!(
            parsed.is_ok(),
            error.is_none(),
            "parser: {:?}, schema: {error:?}, {text}",
            parsed.err()
        );
        error.is_none()
    }

    /// Values of every kind, and those around the limits that `property` names.
    fn probes(property: &Value) -> Vec<Value> {
        let mut probes = vec![
            Value::Null,
            json!(true),
            json!(-1),
            json!(1.5),
            json!(1_u64 << 40),
            json!(""),
            json!("\0"),
            json!("x\0y"),
            json!([]),
            json!([null]),
            json!(["", "x"]),
            json!({ "unknown": 1 }),
        ];
        for limit in ["minimum", "maximum"] {
            if let Some(limit) = property[limit].as_i64() {
                probes.extend([limit - 1, limit, limit + 1].map(Value::from));
            }
        }
        if let Some(longest) = property["maxLength"].as_u64() {
            let longest = usize::try_from(longest).unwrap();
            probes.extend([longest, longest + 1].map(|length| json!("1".repeat(length))));
        }
        if let Some(words) = property["enum"].as_array() {
            probes.extend(words.iter().cloned());
        }
        probes
    }

    /// A config with the required fields only, and one with all fields.
    fn bases() -> [Value; 2] {
        let configs = [
            include_str!("../tests/golden/configs/smallest.json"),
            include_str!("../tests/golden/configs/largest.json"),
        ];
        configs.map(|config| serde_json::from_str(config).unwrap())
    }

    /// `config` with `value` at `path`.
    fn with(mut config: Value, path: &str, value: Value) -> Value {
        let place = path.split('.').fold(&mut config, |place, name| &mut place[name]);
        *place = value;
        config
    }

    /// Every property with its path.
    fn properties() -> Vec<(String, Value)> {
        let schema: Value = serde_json::from_str(schema()).unwrap();
        let mut found = Vec::new();
        let mut objects = vec![(String::new(), schema.clone())];
        while let Some((path, object)) = objects.pop() {
            for (name, property) in object["properties"].as_object().unwrap() {
                let path = crate::fields::join(&path, name);
                if property.get("properties").is_some() {
                    objects.push((path.clone(), property.clone()));
                }
                found.push((path, property.clone()));
            }
        }
        found
    }

    fn validator() -> Validator {
        jsonschema::validator_for(&serde_json::from_str(schema()).unwrap()).unwrap()
    }
}
