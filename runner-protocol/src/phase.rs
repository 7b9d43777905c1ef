//! The phases of a start, by name.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A phase of the start, in the order in which they run; the last one lasts until the end.
///
/// The names are part of the contract. A newer sidecar may have further phases, so [`Line::Phase`],
/// [`Failure::phase`] and [`PhaseTimes`] hold names as strings, and reading them never fails; parse a name where
/// only known phases matter.
///
/// [`Line::Phase`]: crate::Line::Phase
/// [`Failure::phase`]: crate::Failure::phase
/// [`PhaseTimes`]: crate::PhaseTimes
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading and checking the config, binding the listener.
    Config,
    /// `StartSession`, until the API has answered.
    StartSession,
    /// The data channel: WebSocket, opening message, handshake.
    Session,
    /// Key exchange and authentication with the bastion's sshd.
    Ssh,
    /// The first connection to the target.
    Target,
    /// Up and serving.
    Tunnel,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 6] =
        [Self::Config, Self::StartSession, Self::Session, Self::Ssh, Self::Target, Self::Tunnel];

    /// The name in `phase`, `failed` and `closed` lines and in the logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::StartSession => "start_session",
            Self::Session => "session",
            Self::Ssh => "ssh",
            Self::Target => "target",
            Self::Tunnel => "tunnel",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl From<Phase> for String {
    fn from(phase: Phase) -> Self {
        phase.name().to_owned()
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        Self::ALL.into_iter().find(|phase| phase.name() == name).ok_or(UnknownPhase)
    }
}

/// No phase of version 1 has this name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown phase")]
pub struct UnknownPhase;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_for_parsing_and_for_serde() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
            assert_eq!(serde_json::from_value::<Phase>(phase.name().into()).unwrap(), phase);
        }
        assert_eq!("Config".parse::<Phase>(), Err(UnknownPhase));
    }

    #[test]
    fn phases_are_ordered_as_they_run() {
        assert!(Phase::ALL.is_sorted());
    }
}
