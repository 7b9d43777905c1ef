//! Which servers of later Debian releases `tests/later-debian` has unpacked: `cfg(debian_trixie)` and
//! `cfg(debian_sid)`. Without them their tests are ignored, and so counted.

use std::{env, path::PathBuf};

fn main() {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    // As in `tests/later-debian`.
    let folder = cache.unwrap_or_default().join("ssm-sidecar-tests/later-debian");
    println!("cargo::rustc-env=LATER_DEBIAN={}", folder.display());
    for name in ["HOME", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    for release in RELEASES {
        let ready = folder.join(release).join("ready");
        println!("cargo::rustc-check-cfg=cfg(debian_{release})");
        if ready.exists() {
            println!("cargo::rustc-cfg=debian_{release}");
            println!("cargo::rerun-if-changed={}", ready.display());
        } else {
            // A file that is missing would run this again at every build; `tests/run` sets the variable
            // when the file has come.
            println!("cargo::rerun-if-env-changed=LATER_DEBIAN_FETCHED");
        }
    }
}

const RELEASES: [&str; 2] = ["trixie", "sid"];
