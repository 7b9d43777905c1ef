//! The layers of each crate: a room imports only rooms below it, and no file is part of an import cycle.
//!
//! `cargo test -p tests --test layers -- --nocapture` prints the rooms with their imports.

#![cfg(test)]

mod imports;

use std::{collections::BTreeSet, fs, path::Path};

use imports::{Crate, Files};

/// A room, and the rooms and libraries that it may import.
struct Room {
    name: &'static str,
    may_import: &'static [&'static str],
}

const fn room(name: &'static str, may_import: &'static [&'static str]) -> Room {
    Room { name, may_import }
}

/// `sidecar`, from the lowest layer to the highest.
const SIDECAR: &[Room] = &[
    room("runtime", &[]),
    room("net", &["runtime"]),
    room("config", &["runtime"]),
    room("session", &["runtime"]),
    room("ssh", &["runtime"]),
    room("aws", &["runtime", "net", "config", "session"]),
    room("channel", &["runtime", "net", "config", "session"]),
    room("ipc", &["runtime", "session"]),
    room("runner", &["runtime", "config"]),
    room("tunnel", &["runtime", "net", "config", "session", "channel", "ssh"]),
    room("monitor", &["runtime", "net", "session", "channel", "ipc"]),
    room("worker", &["runtime", "net", "config", "session", "channel", "ssh", "ipc", "tunnel"]),
    room(
        "commands",
        &[
            "runtime", "net", "config", "session", "aws", "channel", "ipc", "runner", "tunnel",
            "monitor", "worker",
        ],
    ),
    // Re-exports the fuzz targets of the rooms.
    room("fuzzing", &["net", "channel"]),
];

/// `tests`: the emulator knows no fixture, the fixtures know no emulator, the soak drives both.
const TESTS: &[Room] =
    &[room("emulator", &[]), room("fixtures", &[]), room("soak", &["emulator", "fixtures"])];

/// Libraries that one room alone may use, by the beginning of their names.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("aws_", &["aws"]),
    ("clap_", &["commands"]),
    ("landlock", &["worker"]),
    ("seccompiler", &["worker"]),
    ("tokio_tungstenite", &["channel"]),
    ("data_channel", &["channel", "tunnel"]),
    ("prometheus_client", &["tunnel"]),
    ("hyper", &["commands", "tunnel", "net", "aws"]),
];

/// State machines that take the time as an argument.
const WITHOUT_CLOCK: &[&str] = &[
    "sidecar/src/channel/liveness.rs",
    "sidecar/src/monitor/stop_state.rs",
    "sidecar/src/tunnel/lanes/lifecycle.rs",
    "sidecar/src/tunnel/lanes/lifecycle/channel_life.rs",
    "sidecar/src/tunnel/lanes/resume_policy.rs",
];

/// The crates, each with its rooms where it has any.
fn crates() -> [(&'static str, &'static [Room]); 5] {
    [
        ("runner-protocol", &[]),
        ("sidecar/data-channel", &[]),
        ("sidecar/ssh-client", &[]),
        ("sidecar", SIDECAR),
        ("tests", TESTS),
    ]
}

fn read(name: &str) -> Crate {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    Crate::read(&root.join(name).join("src"))
}

#[test]
fn rooms_import_only_rooms_below_them() {
    for (name, rooms) in crates() {
        if rooms.is_empty() {
            continue;
        }
        let found = read(name);
        println!("{name}");
        for room in rooms.iter().rev() {
            let imports: Vec<_> = found.imports_of_room(room.name).into_iter().collect();
            println!("  {:<10} {}", room.name, imports.join(" "));
        }
        let violations = violations(&found, rooms);
        assert!(violations.is_empty(), "{name}:\n{}", violations.join("\n"));
    }
}

#[test]
fn no_file_is_part_of_an_import_cycle() {
    for (name, _) in crates() {
        let cycles = read(name).cycles();
        assert!(cycles.is_empty(), "{name}: {cycles:#?}");
    }
}

#[test]
fn libraries_of_one_room_are_used_nowhere_else() {
    let found = read("sidecar");
    for (library, rooms) in ONLY_IN {
        let users: BTreeSet<_> = found.rooms_that_use(library).into_iter().collect();
        let allowed = rooms.iter().map(ToString::to_string).collect();
        assert!(users.is_subset(&allowed), "`{library}…` is used in {users:?}");
        assert!(!users.is_empty(), "`{library}…` is used nowhere: take it off the list");
    }
}

#[test]
fn state_machines_without_clock_read_none() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for file in WITHOUT_CLOCK {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let production = text.split("#[cfg(test)]").next().unwrap();
        for clock in ["Instant::now", "SystemTime", "clock::now", "tokio::time"] {
            assert!(!production.contains(clock), "{file} uses {clock}");
        }
        assert!(production.contains("no clock"), "{file} does not promise it");
    }
}

#[test]
fn import_that_points_up_is_found() {
    let mut files = Files::new();
    files.insert("net.rs".into(), "use crate::runtime::clock;".into());
    files.insert("runtime.rs".into(), "pub mod clock;".into());
    files.insert("runtime/clock.rs".into(), "fn f() { crate::net::dial(); }".into());
    let planted = Crate::parse(&files);
    let rooms = [room("runtime", &[]), room("net", &["runtime"])];
    assert_eq!(violations(&planted, &rooms), ["runtime imports net"]);

    files.insert("runtime/clock.rs".into(), "use super::super::net;".into());
    assert_eq!(violations(&Crate::parse(&files), &rooms), ["runtime imports net"]);

    files.insert("runtime/clock.rs".into(), "#[cfg(test)] mod tests { use crate::net; }".into());
    assert_eq!(violations(&Crate::parse(&files), &rooms), [""; 0], "tests may reach further");

    files.insert("attic.rs".into(), String::new());
    assert_eq!(violations(&Crate::parse(&files), &rooms), ["attic is no room of this crate"]);
}

#[test]
fn import_cycle_is_found() {
    let mut files = Files::new();
    files.insert("lib.rs".into(), "mod a; mod b; mod c; use crate::a::A;".into());
    files.insert("a.rs".into(), "use crate::{b::B, c};".into());
    files.insert("b.rs".into(), "use super::c::C;".into());
    files.insert("c.rs".into(), String::new());
    assert_eq!(Crate::parse(&files).cycles(), Vec::<Vec<String>>::new());
    files.insert("c.rs".into(), "fn f() -> crate::a::A { todo!() }".into());
    assert_eq!(Crate::parse(&files).cycles(), [["a.rs", "b.rs", "c.rs"]]);
}

/// What breaks the rule, as sentences.
fn violations(found: &Crate, rooms: &[Room]) -> Vec<String> {
    let mut sentences = Vec::new();
    for (index, room) in rooms.iter().enumerate() {
        for import in found.imports_of_room(room.name) {
            let is_below = rooms.iter().take(index).any(|below| below.name == import);
            if !is_below || !room.may_import.contains(&import.as_str()) {
                sentences.push(format!("{} imports {import}", room.name));
            }
        }
    }
    for name in found.rooms() {
        if rooms.iter().all(|room| room.name != name) {
            sentences.push(format!("{name} is no room of this crate"));
        }
    }
    sentences
}
