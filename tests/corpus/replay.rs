//! The replay of fuzz corpora in the ordinary tests. The `fuzzing` module of each crate includes this file.

use std::{fs, path::Path};

/// Runs a fuzz target on each file of its corpus: whole, the first half, and with one byte changed.
///
/// A corpus holds inputs that reached new code, or that failed once. It is in `fuzz/corpus` of the crate that
/// includes this file.
///
/// # Panics
///
/// If the target panics, or if the corpus is missing or empty.
pub(super) fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", corpus.display()));
    let mut count = 0;
    for entry in entries {
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
