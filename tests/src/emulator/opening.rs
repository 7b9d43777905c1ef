//! A client's first message, `OpenDataChannel`, checked byte by byte.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, Visitor},
};
use uuid::Uuid;

use super::payload::{OLDEST_CLIENT, version};

/// The content of an opening message.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) token: String,
    pub(crate) client_id: Uuid,
    /// The client's version is older than AWS supports. It is admitted nevertheless: a plugin built from
    /// source calls itself 1.2.0.0, and works.
    pub(crate) outdated: bool,
}

impl fmt::Debug for Opening {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Opening")
            .field("client_id", &self.client_id)
            .field("outdated", &self.outdated)
            .finish_non_exhaustive()
    }
}

/// Parses the message, or returns what is wrong with it.
pub(crate) fn read(text: &[u8]) -> Result<Opening, String> {
    let Pairs(pairs) =
        serde_json::from_slice(text).map_err(|error| format!("no object of texts: {error}"))?;
    let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    if names != KEYS {
        return Err(format!("keys {names:?} in place of {KEYS:?}"));
    }
    let values: Vec<_> = pairs.into_iter().map(|(_, value)| value).collect();
    let Ok([schema, request_id, token, client_id, client_version]) =
        <[String; 5]>::try_from(values)
    else {
        return Err("not five values".to_owned());
    };
    if schema != "1.0" {
        return Err("MessageSchemaVersion is not 1.0".to_owned());
    }
    uuid(&request_id).ok_or("RequestId is no random UUID in lower case")?;
    let client_id = uuid(&client_id).ok_or("ClientId is no random UUID in lower case")?;
    let version = version(&client_version).ok_or("ClientVersion is not four numbers")?;
    Ok(Opening { token, client_id, outdated: version < OLDEST_CLIENT })
}

/// A version 4 UUID in its usual notation.
fn uuid(text: &str) -> Option<Uuid> {
    let id: Uuid = text.parse().ok()?;
    (id.get_version_num() == 4 && id.to_string() == text).then_some(id)
}

/// The members of an object in their order, duplicates included.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Pairs;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// The keys in the official plugin's order.
const KEYS: [&str; 5] =
    ["MessageSchemaVersion", "RequestId", "TokenValue", "ClientId", "ClientVersion"];

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"MessageSchemaVersion":"1.0","RequestId":"01234567-89ab-4cde-8f01-23456789abcd","TokenValue":"AAE+/==","ClientId":"11111111-2222-4333-8444-555555555555","ClientVersion":"1.2.764.0"}"#;

    #[test]
    fn one_form_is_accepted() {
        let opening = read(GOOD.as_bytes()).unwrap();
        assert_eq!(opening.token, "AAE+/==");
        assert_eq!(opening.client_id.to_string(), "11111111-2222-4333-8444-555555555555");
        assert!(!opening.outdated);
        assert!(read(GOOD.replace("1.2.764.0", "1.2.763.9").as_bytes()).unwrap().outdated);
    }

    #[test]
    fn all_others_are_refused() {
        let exchanged = GOOD
            .replace("RequestId", "#")
            .replace("ClientId", "RequestId")
            .replace('#', "ClientId");
        let changes = [
            ("order", exchanged),
            ("schema", GOOD.replace("\"1.0\"", "\"1\"")),
            ("number for text", GOOD.replace("\"1.0\"", "1.0")),
            ("key missing", GOOD.replace("\"MessageSchemaVersion\":\"1.0\",", "")),
            ("key too many", GOOD.replace('}', ",\"X\":\"\"}")),
            ("case of a key", GOOD.replace("TokenValue", "tokenValue")),
            ("no UUID", GOOD.replace("01234567-", "")),
            ("UUID of version 1", GOOD.replace("-4cde-", "-1cde-")),
            ("UUID in capitals", GOOD.replace("4cde", "4CDE")),
            ("three numbers", GOOD.replace("1.2.764.0", "1.2.764")),
            ("array", "[]".to_owned()),
            ("nothing", String::new()),
            ("cut", GOOD[..20].to_owned()),
        ];
        for (name, text) in changes {
            assert!(read(text.as_bytes()).is_err(), "{name}: {text}");
        }
    }
}
