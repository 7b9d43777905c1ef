//! What the fuzz targets run: what this crate itself reads of the service and of proxies. The data channel
//! and SSH have targets of their own.
//!
//! Compiled for tests, which run the kept corpora and random bytes, and for fuzzing, which searches.

pub use crate::{
    channel::websocket::fuzzing::{frames, stream_url},
    net::proxy::fuzzing::answer,
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs the inputs that a fuzzer found to reach something new, or to break something once, each
    /// also cut off and with a byte changed.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&corpus).unwrap() {
            let mut input = fs::read(entry.unwrap().path()).unwrap();
            run(&input);
            run(&input[..input.len() / 2]);
            let at = input.len() / 3;
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 0x15;
                run(&input);
            }
            count += 1;
        }
        assert!(count > 0, "{} is empty", corpus.display());
    }

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
