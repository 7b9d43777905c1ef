//! A client's connection: its SSH channel, and its place among the lanes.

use std::{ops::Deref, sync::Arc, time::Duration};

use super::{State, lifecycle::ConnectionId};
use crate::{
    runtime::{clock::now, shared::Shared},
    ssh::{Channel, ChannelOpenError},
};

/// The SSH channel of a client's connection. Its lane counts it until it is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel,
    /// The number of its lane.
    lane: u64,
    place: Place,
}

/// What a client does while its connection waits for a lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ClientEnd {
    /// It has sent something and then closed its half: it may still want the answer.
    Finished,
    /// It has closed its half without having sent anything, or its connection is broken.
    Left,
}

/// Why a connection did not get to the target.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TargetConnectError {
    #[error(transparent)]
    Refused(#[from] ChannelOpenError),
    /// No answer, while the lane was up all the time.
    #[error("the target did not answer within {} s", .within.as_secs())]
    TimedOut {
        /// `timeouts.connect_s`.
        within: Duration,
    },
    #[error("the client closed its connection while it waited for a session")]
    ClientLeft,
}

/// The place of a connection among the lanes, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: ConnectionId,
    pub(super) state: Arc<Shared<State>>,
}

impl Connection {
    pub(super) fn new(channel: Channel, lane: u64, place: Place) -> Self {
        Self { channel, lane, place }
    }

    /// The number of its lane.
    pub(crate) fn lane(&self) -> u64 {
        self.lane
    }

    /// Sends EOF to the target after all bytes written before. From now on a new connection may have the lane to
    /// itself.
    pub(crate) fn finish(&self) {
        self.channel.finish();
        self.place.finish();
    }
}

impl Deref for Connection {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Place {
    /// The client sends nothing more.
    pub(super) fn finish(&self) {
        self.state.lock().lifecycle.on_finished(now(), self.id);
        self.state.notify();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.lock().lifecycle.on_disconnected(now(), self.id);
        self.state.notify();
    }
}
