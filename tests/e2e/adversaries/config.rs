//! A hostile config.

use std::time::Duration;

use tests::fixtures::{Config, Sidecar};

use super::{Neighbour, Watch};
use crate::world::{Failure, STOP};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_of_any_shape_is_refused_at_once() {
    let neighbour = Neighbour::start().await;
    let secret = "hunter2hunter2";
    let nested = |open: &str, close: &str, depth: usize| {
        format!(r#"{{"memo":{}{}}}"#, open.repeat(depth), close.repeat(depth)).into_bytes()
    };
    let whole = |inner: &str| format!(r#"{{"name":"{secret}",{inner}}}"#).into_bytes();
    let digits = "9".repeat(900_000);
    let many = (0..90_000).map(|index| format!(r#""f{index}":1"#)).collect::<Vec<_>>().join(",");
    let cases: [(&str, Vec<u8>); 14] = [
        ("arrays within arrays", nested("[", "]", 400_000)),
        ("arrays that are never closed", nested("[", "", 900_000)),
        ("objects within objects", nested(r#"{"a":"#, "}", 100_000)),
        ("a hundred megabytes", whole(&format!(r#""memo":"{}""#, "x".repeat(100 << 20)))),
        ("a hundred megabytes of white space", vec![b' '; 100 << 20]),
        ("no UTF-8", [&whole(r#""memo":""#)[..30], &[0xff, 0xfe, 0xc0, 0x80], b"\"}"].concat()),
        ("UTF-16", r#"{"name":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("NUL", whole("\"memo\":\"\0\"")),
        ("NUL, escaped, in a name", whole(r#""target":{"host":"a\u0000b","port":1}"#)),
        ("equal names", whole(r#""memo":"a","#.repeat(50_000).trim_end_matches(','))),
        ("a number of 900,000 digits", whole(&format!(r#""target":{{"port":{digits}}}"#))),
        (
            "numbers that are infinite",
            whole(r#""target":{"port":1e999999},"tunnel":{"sessions":-1e-999999}"#),
        ),
        ("90,000 unknown fields", whole(&many)),
        ("half a surrogate pair", whole(r#""memo":"\ud800""#)),
    ];
    for (name, config) in cases {
        let mut sidecar = Sidecar::spawn_silent(|command| {
            command.env("RUST_LOG", "trace");
        })
        .await
        .unwrap();
        let watch = Watch::on(&sidecar);
        // The sidecar exits before it has read the excess. Stdin stays open: only the config may
        // end it.
        drop(sidecar.write(&config).await);
        if name == "arrays that are never closed" || name == "a hundred megabytes of white space" {
            sidecar.close_stdin();
        }
        let exit = sidecar.exit(STOP).await.unwrap();
        let failure =
            Failure { code: "config.invalid", status: 65, phase: "config", blame: "customer" };
        let line = failure.assert(name, &exit, &Config::new("none"));
        assert!(line.to_string().len() < 64 << 10, "{name}: a line of {}", line.to_string().len());
        assert!(!exit.text().contains(secret), "{name}: a value is repeated");
        watch.assert_within(name, &neighbour, Duration::from_secs(3));
    }
    neighbour.finish().await;
}
