//! The lines on stdout.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Failure;

/// A line of the sidecar's stdout; its text ([`fmt::Display`]) has no line feed and never holds one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// `ready <port>`: the tunnel is up; once. 1–65535.
    Ready(u16),
    /// `failed <json>`: at most once, last, before an exit status other than 0.
    Failed(Failure),
    /// `phase <name>`: a phase of the start has begun; with `events`.
    Phase(String),
    /// `host-key <SHA256:…>`: fingerprint of the bastion's host key; with `events`.
    HostKey(String),
    /// `degraded <reason>`: the path is broken, and connections wait; with `events`.
    Degraded(String),
    /// `recovered`: the path is back; with `events`.
    Recovered,
    /// `closed <json>`: the summary, before exit status 0; with `events`.
    Closed(Summary),
}

impl Line {
    /// Reads a line as a runner should: unknown words are `None`, as is a known word without what must
    /// follow it; what stands behind the known parts is ignored, as are unknown fields of JSON.
    ///
    /// A line end may be there or not.
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

/// What a tunnel did, from start to end.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Summary {
    /// Why it ended.
    pub reason: String,
    /// Bytes from clients towards the target, of all connections.
    pub bytes_to_target: u64,
    /// Bytes from the target towards clients, of all connections.
    pub bytes_from_target: u64,
    /// Connections that clients made.
    pub connections: u64,
    /// SSM sessions that were started.
    pub sessions: u64,
    /// How often a session was resumed.
    pub resumes: u64,
    /// Messages that were sent again to the agent.
    pub retransmissions: u64,
    /// How long each phase of the start took, in milliseconds.
    pub phases_ms: PhaseTimes,
}

/// Milliseconds of each phase of the start by its name, in the order in which they ran; a JSON object.
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

/// Control characters become spaces, so that no text of a peer can begin a line of its own.
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
    use crate::ErrorCode;

    #[test]
    fn runner_takes_what_it_knows_and_ignores_the_rest() {
        let failed = r#"{"code":"internal","message":"m","hint":"h","retryable":false,"phase":"ssh","blame":"bug"}"#;
        let failure = Failure::new(ErrorCode::Internal, "m", "h", "ssh");
        let cases = [
            ("port", "ready 5432", Some(Line::Ready(5432))),
            ("line end", "ready 5432\r\n", Some(Line::Ready(5432))),
            ("behind the port", "ready 5432 fd=7", Some(Line::Ready(5432))),
            ("no port", "ready", None),
            ("port zero", "ready 0", None),
            ("no number", "ready soon", None),
            ("port too large", "ready 65536", None),
            ("other word", "readyish 5432", None),
            ("nothing", "", None),
            ("unknown word", "weather sunny", None),
            ("behind recovered", "recovered after 3 s", Some(Line::Recovered)),
            ("behind the phase", "phase ssh 12 ms", Some(Line::Phase("ssh".to_owned()))),
            ("reason of words", "degraded by rain", Some(Line::Degraded("by rain".to_owned()))),
            ("failed", &format!("failed {failed}"), Some(Line::Failed(failure.clone()))),
            ("behind the JSON", &format!("failed {failed} x"), Some(Line::Failed(failure))),
            ("broken JSON", "failed {", None),
            ("no object", "closed 3", None),
            ("empty summary", "closed {}", Some(Line::Closed(Summary::default()))),
        ];
        for (name, line, expected) in cases {
            assert_eq!(Line::parse(line), expected, "case: {name}");
        }
    }

    #[test]
    fn every_line_is_one_line_whatever_its_text() {
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
