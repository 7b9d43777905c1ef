//! Messages and hints for unknown fields: the nearest known name is found by similarity.

use crate::{
    fields::{displayable_name, join},
    mistake::Mistake,
};

/// Describes the unknown field `name` of the object at `path`; `known` has the paths of all fields that there are.
pub(crate) fn mistake(path: &str, name: &str, known: &[String]) -> Mistake {
    let full = join(path, &displayable_name(name));
    let normalized = normalized(name);
    if SSH_TUNNEL_NAMES.contains(&normalized.as_str()) {
        return Mistake {
            what: "unknown field; a plain SSH tunnel cannot be combined with a session tunnel"
                .to_owned(),
            hint: format!("remove `{full}`; SSH to the bastion is described by `bastion`"),
            path: full,
        };
    }
    let hint = match nearest(path, &normalized, known).as_slice() {
        [] => format!("remove `{full}`"),
        [(parent, only)] if *parent == path => format!("rename `{full}` to `{only}`"),
        elsewhere => {
            let paths: Vec<_> = elsewhere.iter().map(|(parent, name)| join(parent, name)).collect();
            format!("move `{full}` to `{}`", paths.join("` or `"))
        }
    };
    Mistake { path: full, what: "unknown field".to_owned(), hint }
}

/// The known fields that may be meant, each as path of its object and name: the most similar one of the same
/// object, or those of the same name in other objects.
fn nearest<'k>(path: &str, name: &str, known: &'k [String]) -> Vec<(&'k str, &'k str)> {
    let split = |full: &'k String| full.rsplit_once('.').unwrap_or(("", full));
    let here = known.iter().map(split).filter(|(parent, _)| *parent == path);
    let scored = here.map(|field| (strsim::jaro_winkler(name, field.1), field));
    let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other));
    let Some((score, field)) = best else { return Vec::new() };
    if score >= CERTAIN {
        return vec![field];
    }
    let elsewhere: Vec<_> = known.iter().map(split).filter(|(_, other)| *other == name).collect();
    if elsewhere.is_empty() && score >= LIKELY { vec![field] } else { elsewhere }
}

/// Converts other naming conventions to snake case: `sshPort` and `SSH-Port` become `ssh_port`.
fn normalized(name: &str) -> String {
    let mut normalized = String::new();
    let mut after_lower = false;
    for c in name.chars().take(64) {
        if c.is_ascii_uppercase() && after_lower {
            normalized.push('_');
        }
        after_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        normalized.push(if c == '-' || c == ' ' { '_' } else { c.to_ascii_lowercase() });
    }
    normalized
}

/// Names that data-transfer services use for a plain SSH tunnel, which cannot be combined with this one.
const SSH_TUNNEL_NAMES: [&str; 8] = [
    "ssh_tunnel",
    "ssh_tunnels",
    "ssh_tunneling",
    "ssh_forward",
    "ssh_gateway",
    "ssh_proxy",
    "tunnel_ssh",
    "ssh",
];

/// Jaro-Winkler similarity from which a name counts as a typing error.
const CERTAIN: f64 = 0.9;

/// Jaro-Winkler similarity from which a name may be a typing error, if no other object has a field of exactly that
/// name.
const LIKELY: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_get_a_hint_at_what_may_be_meant() {
        let known = [
            "name",
            "aws",
            "aws.region",
            "aws.access_key_id",
            "bastion",
            "bastion.ssh_port",
            "bastion.ssh_private_key",
            "bastion.ssh_private_key_passphrase",
            "target",
            "target.host",
            "target.port",
            "listen",
            "listen.port",
        ]
        .map(str::to_owned);
        let cases = [
            ("", "targt", "rename `targt` to `target`"),
            ("", "Bastion", "rename `Bastion` to `bastion`"),
            ("aws", "acces_key_id", "rename `aws.acces_key_id` to `access_key_id`"),
            ("aws", "accessKeyId", "rename `aws.accessKeyId` to `access_key_id`"),
            (
                "bastion",
                "ssh_private_keys",
                "rename `bastion.ssh_private_keys` to `ssh_private_key`",
            ),
            ("bastion", "SSH-Port", "rename `bastion.SSH-Port` to `ssh_port`"),
            ("", "ssh_port", "move `ssh_port` to `bastion.ssh_port`"),
            ("aws", "port", "move `aws.port` to `target.port` or `listen.port`"),
            ("", "zzz", "remove `zzz`"),
            ("target", "x.y z", "remove `target.x.y z`"),
            ("", "wJalrXUtnFEMI/K7MDENG", "remove `<a name of 21 characters>`"),
            ("", "", "remove `<a name of 0 characters>`"),
        ];
        for (path, name, hint) in cases {
            assert_eq!(mistake(path, name, &known).hint, hint);
        }
    }

    #[test]
    fn plain_ssh_tunnel_is_refused_with_the_reason() {
        for name in ["ssh_tunnel", "sshTunnel", "ssh"] {
            let mistake = mistake("", name, &[]);
            assert_eq!(mistake.path, name);
            assert!(mistake.what.contains("cannot be combined"), "{mistake:?}");
        }
    }
}
