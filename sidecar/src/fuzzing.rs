//! The bodies of the fuzz targets: the parsers in this crate of what AWS and proxies send. `data-channel` and
//! `ssh-client` have targets of their own.
//!
//! Compiled for tests, which replay the corpora, and for fuzzing.

pub use crate::{
    channel::websocket::fuzzing::{frames, stream_url},
    net::proxy::fuzzing::answer,
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs the corpus: inputs with which a fuzzer reached new code, or found a bug. Each is run whole, cut to its
    /// first half, and with one byte changed.
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
