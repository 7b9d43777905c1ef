//! The bodies of the fuzz targets: the parsers in this crate of what AWS and proxies send. `data-channel` and
//! `ssh-client` have targets of their own.
//!
//! Compiled for tests, which replay the corpora, and for fuzzing.

pub use crate::{
    channel::websocket::fuzzing::{frames, stream_url},
    net::proxy::fuzzing::answer,
};

#[cfg(test)]
#[path = "../../tests/corpus/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn kept_inputs_hold_as_a_stream_url() {
        replay("stream_url", super::stream_url);
    }

    #[test]
    fn kept_inputs_hold_as_a_web_socket() {
        replay("frames", super::frames);
    }

    #[test]
    fn kept_inputs_hold_as_a_proxys_answer() {
        replay("answer", super::answer);
    }
}
