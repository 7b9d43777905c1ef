//! The IAM actions that a sidecar needs, and the SSM document that it uses.

use serde::{Deserialize, Serialize};

/// The AWS-owned SSM document whose sessions carry one plain byte stream to a port of the instance.
pub(crate) const SSH_DOCUMENT: &str = "AWS-StartSSHSession";

/// An IAM action.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum IamAction {
    StartSession,
    ResumeSession,
    TerminateSession,
    OpenDataChannel,
    AssumeRole,
    /// AWS allows it to every caller.
    GetCallerIdentity,
}

impl IamAction {
    /// The actions on one's own sessions: used where they are allowed, and never required.
    pub(crate) const OWN_SESSIONS: [Self; 3] =
        [Self::ResumeSession, Self::TerminateSession, Self::OpenDataChannel];

    /// The name in a policy.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::StartSession => "ssm:StartSession",
            Self::ResumeSession => "ssm:ResumeSession",
            Self::TerminateSession => "ssm:TerminateSession",
            Self::OpenDataChannel => "ssmmessages:OpenDataChannel",
            Self::AssumeRole => "sts:AssumeRole",
            Self::GetCallerIdentity => "sts:GetCallerIdentity",
        }
    }

    /// The name of the API operation.
    pub(crate) fn operation(self) -> &'static str {
        self.as_str().split_once(':').map_or("", |(_, operation)| operation)
    }

    /// The action with this name in a policy.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let all = [
            Self::StartSession,
            Self::ResumeSession,
            Self::TerminateSession,
            Self::OpenDataChannel,
            Self::AssumeRole,
            Self::GetCallerIdentity,
        ];
        all.into_iter().find(|action| action.as_str() == name)
    }
}

impl std::fmt::Display for IamAction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}
