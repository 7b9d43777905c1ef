//! What the start of a lane has reached or found.

use std::sync::Arc;

use crate::{channel::websocket::OpeningSignature, runtime::phase::Phase, ssh::ServerIdentity};

/// An event of a lane's start.
#[derive(Clone, Debug)]
pub(crate) enum LaneEvent {
    /// A phase has begun.
    Phase(Phase),
    /// A session of this id was started.
    SessionStarted(String),
    /// The handshake of the data channel is done.
    ChannelOpen { agent_version: String, signature: OpeningSignature },
    /// The key exchange is done; authentication is next.
    ServerVerified(ServerIdentity),
}

/// Receives the events of a lane's start, in the lane's task: must not block.
pub(crate) type LaneObserver = Arc<dyn Fn(LaneEvent) + Send + Sync>;
