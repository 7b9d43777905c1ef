//! A tunnel that is up keeps no memory that only its start needed.

use std::fs;

use nix::unistd::{Pid, geteuid};
use serde_json::json;
use tests::fixtures::{FullQueue, Sidecar, binary, eventually};
use tokio::time::timeout;

use crate::world::{LIMIT, STOP, World};

#[tokio::test]
async fn code_that_only_the_start_needs_is_given_up_once_ready() {
    if !geteuid().is_root() {
        eprintln!("not shown: other users may not look into the sidecar's memory");
        return;
    }
    let program = tokio::task::spawn_blocking(binary).await.unwrap().unwrap();
    let program = program.to_str().unwrap();
    let world = World::start().await;
    // Everything is done except for the target's answer.
    let mut target = FullQueue::start().await.unwrap();
    let config = world.config(target.port()).with(&json!({ "events": true }));
    let mut sidecar = Sidecar::spawn(&config).await.unwrap();
    while sidecar.word("phase", LIMIT).await.unwrap() != "target" {}
    let processes = [sidecar.pid().unwrap(), sidecar.worker().unwrap()];
    let before = processes.map(|process| resident_code_kib(process, program));

    let ready = async {
        tokio::select! {
            ready = sidecar.ready(LIMIT) => ready.unwrap(),
            error = target.take() => panic!("{error}"),
        }
    };
    timeout(LIMIT, ready).await.unwrap();
    // Both processes release it when the tunnel is ready, and then need some of it again.
    let is_less = eventually(LIMIT, || async {
        let after = processes.map(|process| resident_code_kib(process, program));
        before.iter().zip(after).all(|(before, after)| after * 4 < before * 3)
    });
    let is_less = is_less.await;
    let after = processes.map(|process| resident_code_kib(process, program));
    assert!(is_less, "KiB of code in memory: {before:?} before, {after:?} after");
    eprintln!("KiB of code in memory: {before:?} before, {after:?} after");
    sidecar.close_stdin();
    assert_eq!(sidecar.exit(STOP).await.unwrap().status.code(), Some(0));
    world.finish().await;
}

/// How much of the code of `program` is resident in `process`, in KiB.
fn resident_code_kib(process: Pid, program: &str) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let mut is_code = false;
    let mut sum = 0;
    for line in maps.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["Rss:", size, "kB"] if is_code => sum += size.parse::<u64>().unwrap(),
            // A mapping: address range, permissions, offset, device, inode, file.
            [_, rights, _, _, _, path] => is_code = rights == "r-xp" && path == program,
            [_, _, _, _, "0"] => is_code = false,
            _ => (),
        }
    }
    assert_ne!(sum, 0, "no code of {program} in {maps}");
    sum
}
