//! Random runs that can be repeated.

use std::{env, panic};

/// Runs `run` on many seeds and prints the one that fails.
///
/// On seeds below `count`, or below `DATA_CHANNEL_SEEDS` if set; `DATA_CHANNEL_SEED` runs one alone:
/// `DATA_CHANNEL_SEED=17 cargo test -p data-channel any_path`.
pub(super) fn each(count: u64, run: fn(u64)) {
    let number = |name| env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("DATA_CHANNEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("DATA_CHANNEL_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        if let Err(cause) = panic::catch_unwind(|| run(seed)) {
            println!("failing seed: DATA_CHANNEL_SEED={seed}");
            panic::resume_unwind(cause);
        }
    }
}
