//! The lines on stdout.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::failure::Failure;

/// A line of the sidecar's stdout. Its text ([`fmt::Display`]) never contains a line feed, also not at its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// `ready <port>`: the tunnel is up; once. 1–65535.
    Ready(u16),
    /// `failed <json>`: at most once, last, before an exit status other than 0.
    Failed(Failure),
    /// `phase <name>`: a phase of the start has begun; with `events`. The name of a [`Phase`](crate::Phase), or of
    /// one that is newer than this crate.
    Phase(String),
    /// `host-key <SHA256:…>`: fingerprint of the bastion's host key; with `events`.
    HostKey(String),
    /// `degraded <reason>`: the path to the bastion is broken, and connections wait; with `events`.
    Degraded(String),
    /// `recovered`: the path works again; with `events`.
    Recovered,
    /// `closed <json>`: the summary, before exit status 0; with `events`.
    Closed(Summary),
}

impl Line {
    /// Parses a line with the tolerance that the contract asks of a runner. `None` for an unknown word, and for a
    /// known word without the parts that must follow it. Anything after the known parts is ignored, and so are
    /// unknown JSON fields.
    ///
    /// The line may end in a line feed or not.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches(['\r', '\n']);
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match word {
            "ready" => Self::Ready(first_word(rest)?.parse().ok().filter(|port| *port > 0)?),
            "failed" => Self::Failed(first_json(rest)?),
            "phase" => Self::Phase(first_word(rest)?.to_owned()),
            "host-key" => Self::HostKey(first_word(rest)?.to_owned()),
            "degraded" => Self::Degraded(rest.to_owned()),
            "recovered" => Self::Recovered,
            "closed" => Self::Closed(first_json(rest)?),
            _ => return None,
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(port) => write!(formatter, "ready {port}"),
            Self::Failed(failure) => write!(formatter, "failed {}", json(failure)?),
            Self::Phase(name) => write!(formatter, "phase {}", on_one_line(name)),
            Self::HostKey(fingerprint) => {
                write!(formatter, "host-key {}", on_one_line(fingerprint))
            }
            Self::Degraded(reason) => write!(formatter, "degraded {}", on_one_line(reason)),
            Self::Recovered => formatter.write_str("recovered"),
            Self::Closed(summary) => write!(formatter, "closed {}", json(summary)?),
        }
    }
}

/// Totals of a tunnel, from start to end.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Summary {
    /// The config's `job_id`, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// Why the tunnel ended.
    pub reason: String,
    /// Bytes from clients towards the target, of all connections.
    pub bytes_to_target: u64,
    /// Bytes from the target towards clients, of all connections.
    pub bytes_from_target: u64,
    /// Accepted client connections.
    pub connections: u64,
    /// SSM sessions that were started.
    pub sessions: u64,
    /// Number of times that a session was resumed.
    pub resumes: u64,
    /// Messages to the agent that were sent again.
    pub retransmissions: u64,
    /// Duration of each phase of the start, in milliseconds.
    pub phases_ms: PhaseTimes,
}

/// Milliseconds of each phase of the start by its name, in the order in which they ran. A JSON object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PhaseTimes(pub Vec<(String, u64)>);

impl Serialize for PhaseTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, took)| (name, took)))
    }
}

impl<'de> Deserialize<'de> for PhaseTimes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> serde::de::Visitor<'de> for Entries {
            type Value = PhaseTimes;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of milliseconds")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<PhaseTimes, A::Error> {
                let mut times = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    times.push(entry);
                }
                Ok(PhaseTimes(times))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn json(value: &impl Serialize) -> Result<String, fmt::Error> {
    serde_json::to_string(value).map_err(|_| fmt::Error)
}

/// Replaces control characters by spaces, so that text from a peer cannot start a new line.
fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn first_word(rest: &str) -> Option<&str> {
    rest.split(' ').next().filter(|word| !word.is_empty())
}

fn first_json<T: DeserializeOwned>(rest: &str) -> Option<T> {
    serde_json::Deserializer::from_str(rest).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::ErrorCode;

    #[test]
    fn known_parts_are_read_and_the_rest_is_ignored() {
        let failed = r#"{"code":"internal","message":"m","hint":"h","retryable":false,"phase":"ssh","blame":"bug"}"#;
        let failure = Failure::new(ErrorCode::Internal, "m", "h", "ssh");
        let cases = [
            ("port", "ready 5432", Some(Line::Ready(5432))),
            ("line end", "ready 5432\r\n", Some(Line::Ready(5432))),
            ("text after the port", "ready 5432 fd=7", Some(Line::Ready(5432))),
            ("no port", "ready", None),
            ("port zero", "ready 0", None),
            ("no number", "ready soon", None),
            ("port too large", "ready 65536", None),
            ("other word", "readyish 5432", None),
            ("nothing", "", None),
            ("unknown word", "weather sunny", None),
            ("text after recovered", "recovered after 3 s", Some(Line::Recovered)),
            ("text after the phase", "phase ssh 12 ms", Some(Line::Phase("ssh".to_owned()))),
            ("unknown phase", "phase relay", Some(Line::Phase("relay".to_owned()))),
            ("reason of words", "degraded by rain", Some(Line::Degraded("by rain".to_owned()))),
            ("failed", &format!("failed {failed}"), Some(Line::Failed(failure.clone()))),
            ("text after the JSON", &format!("failed {failed} x"), Some(Line::Failed(failure))),
            ("broken JSON", "failed {", None),
            ("no object", "closed 3", None),
            ("empty summary", "closed {}", Some(Line::Closed(Summary::default()))),
        ];
        for (name, line, expected) in cases {
            assert_eq!(Line::parse(line), expected, "case: {name}");
        }
    }

    #[test]
    fn every_line_stays_one_line_with_hostile_text() {
        let hostile = "a\nready 1\r\u{85}\0\u{1b}";
        let lines = [
            Line::Phase(hostile.to_owned()),
            Line::HostKey(hostile.to_owned()),
            Line::Degraded(hostile.to_owned()),
            Line::Failed(Failure::new(ErrorCode::Internal, hostile, hostile, hostile)),
            Line::Closed(Summary { reason: hostile.to_owned(), ..Summary::default() }),
        ];
        for line in lines {
            let text = line.to_string();
            assert!(!text.contains(['\n', '\r', '\0']), "{text:?}");
            assert!(Line::parse(&text).is_some(), "{text:?}");
        }
    }
}
