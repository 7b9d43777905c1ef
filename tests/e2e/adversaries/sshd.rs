//! A hostile sshd on the bastion.

use std::{future::Future, io, sync::Mutex, time::Duration};

use flate2::{Compress, FlushCompress};
use serde_json::{Value, json};
use tests::fixtures::{Rogue, RogueSshd, Sidecar, ssh_numbers, ssh_text};
use tokio::{net::TcpStream, sync::mpsc, time::Instant};

use super::{Neighbour, Watch, assert_answers};
use crate::world::{Failure, LIMIT, STOP, World, may_terminate};

/// The error of a violation of the SSH protocol.
const PROTOCOL: Failure =
    Failure { code: "ssh.protocol", status: 76, phase: "ssh", blame: "customer" };

/// Expected end of an attack before the tunnel is ready: always one `failed` line.
#[derive(Clone, Copy)]
enum End {
    Code(Failure),
    /// `timeouts.ready_s` has expired, in any phase.
    TimedOut,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_on_the_login_ends_in_one_line_and_a_session_that_is_over() {
    let neighbour = Neighbour::start().await;
    for (name, script, end) in LOGIN_ATTACKS {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let rogue = RogueSshd::start(script).await.unwrap();
        let config = world.config(5432).with(&at(rogue.port()));
        let began = Instant::now();
        let sidecar = Sidecar::spawn(&config).await.unwrap();
        let watch = Watch::on(&sidecar);
        let exit = sidecar.exit(LIMIT).await.unwrap();
        println!("{name}: {:?}", began.elapsed());
        match end {
            End::Code(failure) => drop(failure.assert(name, &exit, &config)),
            End::TimedOut => {
                let code = exit.failure().unwrap()["code"].to_string();
                assert!(code.starts_with("\"timeout."), "{name}: {}", exit.text());
                assert!(began.elapsed() < READY + STOP, "{name}: {:?}", began.elapsed());
            }
        }
        watch.assert_within(name, &neighbour, READY + STOP);
        world.finish().await;
    }
    neighbour.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_on_a_tunnel_ends_it_or_does_nothing_to_it() {
    let neighbour = Neighbour::start().await;
    for (name, attack, ends) in TUNNEL_ATTACKS {
        let world = World::with(|builder| builder.policy(may_terminate())).await;
        let (begin, start) = mpsc::channel::<()>(1);
        // Only the first connection attacks; later ones find an honest server.
        let start = Mutex::new(Some(start));
        let rogue = RogueSshd::start(move |mut rogue| {
            let start = start.lock().unwrap().take();
            async move {
                rogue.let_in().await?;
                if let Some(mut start) = start {
                    let channel = rogue.accept_channel().await?;
                    start.recv().await;
                    let outcome = attack(&mut rogue, channel).await;
                    drop(start);
                    outcome?;
                }
                rogue.echo().await
            }
        });
        let rogue = rogue.await.unwrap();
        let config = world.config(5432).with(&at(rogue.port()));
        let mut sidecar = Sidecar::spawn(&config).await.unwrap();
        let watch = Watch::on(&sidecar);
        let port = sidecar.ready(LIMIT).await.unwrap();
        let victim = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let sessions = world.emulator.journal().sessions().len();
        begin.send(()).await.unwrap();
        // Wait until the attack is over.
        begin.closed().await;
        // Either at once, or over a new session to a server that is honest by then.
        assert_answers(port, name).await;
        let after = world.emulator.journal().sessions().len();
        assert_eq!(after > sessions, ends, "{name}: {sessions} sessions, then {after}");
        drop(victim);
        sidecar.close_stdin();
        let exit = sidecar.exit(STOP).await.unwrap();
        assert_eq!(exit.status.code(), Some(0), "{name}: {}", exit.text());
        watch.assert_within(name, &neighbour, STOP);
        world.finish().await;
    }
    neighbour.finish().await;
}

type Script = fn(Rogue) -> Running<'static>;
type Attack = for<'r> fn(&'r mut Rogue, u32) -> Running<'r>;
type Running<'r> = std::pin::Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'r>>;

/// Attacks before the tunnel is ready.
const LOGIN_ATTACKS: [(&str, Script, End); 9] = [
    (
        "identification without end",
        |mut rogue| {
            Box::pin(async move {
                loop {
                    rogue.write(&vec![b'a'; 64 * 1024]).await?;
                }
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "lines without end ahead of the identification",
        |mut rogue| {
            Box::pin(async move {
                loop {
                    rogue.write("x\r\n".repeat(10_000).as_bytes()).await?;
                }
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "packet of four gigabytes",
        |mut rogue| {
            Box::pin(async move {
                rogue.identify().await?;
                loop {
                    rogue.write(&vec![0xff; 64 * 1024]).await?;
                }
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "packet ahead of the keys (Terrapin)",
        |mut rogue| {
            Box::pin(async move {
                rogue.identify().await?;
                let exchange = rogue.begin_exchange().await?;
                rogue.send(&ssh_text(IGNORE, "", &[])).await?;
                rogue.end_exchange(exchange).await?;
                rogue.log_in().await?;
                rogue.echo().await
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "first packet behind the keys taken out (Terrapin)",
        |mut rogue| {
            Box::pin(async move {
                rogue.identify().await?;
                let exchange = rogue.begin_exchange().await?;
                rogue.end_exchange(exchange).await?;
                rogue.packet(&ssh_text(IGNORE, "", &[]))?;
                rogue.log_in().await?;
                rogue.echo().await
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "banners without end",
        |mut rogue| {
            Box::pin(async move {
                rogue.identify().await?;
                let exchange = rogue.begin_exchange().await?;
                rogue.end_exchange(exchange).await?;
                loop {
                    rogue.send(&ssh_text(BANNER, &"a".repeat(30_000), &[0; 4])).await?;
                }
            })
        },
        End::Code(PROTOCOL),
    ),
    (
        "compression bomb",
        |mut rogue| {
            Box::pin(async move {
                rogue.compression = "zlib@openssh.com";
                rogue.let_in().await?;
                rogue.send(&bomb()).await?;
                rogue.echo().await
            })
        },
        End::Code(Failure { phase: "target", ..PROTOCOL }),
    ),
    (
        "nothing but debug messages",
        |mut rogue| {
            Box::pin(async move {
                rogue.identify().await?;
                let exchange = rogue.begin_exchange().await?;
                rogue.end_exchange(exchange).await?;
                loop {
                    rogue
                        .send(&[&[DEBUG, 1][..], &ssh_text(0, "x", &[0; 4])[1..]].concat())
                        .await?;
                }
            })
        },
        End::TimedOut,
    ),
    (
        "new keys without end",
        |mut rogue| {
            Box::pin(async move {
                rogue.let_in().await?;
                loop {
                    let exchange = rogue.begin_exchange().await?;
                    rogue.end_exchange(exchange).await?;
                }
            })
        },
        End::TimedOut,
    ),
];

/// Attacks after `ready`, on the channel of the first client; and whether they end the SSH connection.
const TUNNEL_ATTACKS: [(&str, Attack, bool); 8] = [
    (
        "channels of the server's own",
        |rogue, _| {
            Box::pin(async move {
                for kind in ["forwarded-tcpip", "x11", "auth-agent@openssh.com", "session"] {
                    let numbers = ssh_numbers(0, &[1000, 1 << 20, 1 << 15]);
                    rogue.send(&ssh_text(CHANNEL_OPEN, kind, &numbers[1..])).await?;
                    let refused = rogue.receive_only(CHANNEL_OPEN_FAILURE).await?;
                    assert_eq!(refused[1..5], 1000_u32.to_be_bytes(), "{kind}");
                }
                Ok(())
            })
        },
        false,
    ),
    (
        "requests of the server's own",
        |rogue, channel| {
            Box::pin(async move {
                for name in ["tcpip-forward", "hostkeys-prove-00@openssh.com", "no-such-thing"] {
                    rogue.send(&ssh_text(GLOBAL_REQUEST, name, &[1])).await?;
                    rogue.receive_only(REQUEST_FAILURE).await?;
                }
                for name in ["exec", "subsystem", "keepalive@openssh.com"] {
                    let head = ssh_numbers(CHANNEL_REQUEST, &[channel]);
                    rogue.send(&[&*head, &ssh_text(0, name, &[1])[1..]].concat()).await?;
                    rogue.receive_only(CHANNEL_FAILURE).await?;
                }
                Ok(())
            })
        },
        false,
    ),
    (
        "flood of channels that reads no answer",
        |rogue, _| {
            Box::pin(async move {
                loop {
                    let numbers = ssh_numbers(0, &[1000, 1 << 20, 1 << 15]);
                    rogue.send(&ssh_text(CHANNEL_OPEN, "forwarded-tcpip", &numbers[1..])).await?;
                }
            })
        },
        true,
    ),
    (
        "flood of requests that reads no answer",
        |rogue, _| {
            Box::pin(async move {
                loop {
                    rogue.send(&ssh_text(GLOBAL_REQUEST, "anything", &[1])).await?;
                }
            })
        },
        true,
    ),
    (
        "data beyond the window",
        |rogue, channel| {
            Box::pin(async move {
                let head = ssh_numbers(CHANNEL_DATA, &[channel, 30_000]);
                loop {
                    rogue.send(&[&*head, &vec![0; 30_000]].concat()).await?;
                }
            })
        },
        true,
    ),
    (
        "window beyond what there can be",
        |rogue, channel| {
            Box::pin(async move {
                loop {
                    rogue.send(&ssh_numbers(CHANNEL_WINDOW_ADJUST, &[channel, u32::MAX])).await?;
                }
            })
        },
        true,
    ),
    (
        "data of a channel that is not there",
        |rogue, _| Box::pin(async move { rogue.send(&ssh_numbers(CHANNEL_DATA, &[77, 0])).await }),
        true,
    ),
    (
        "answers that nobody has asked for",
        |rogue, channel| {
            Box::pin(async move {
                rogue.send(&ssh_numbers(CHANNEL_OPEN_CONFIRMATION, &[channel, 1, 1, 1])).await
            })
        },
        true,
    ),
];

/// The changes to a config that lead to the rogue server, with a short `ready_s`.
fn at(port: u16) -> Value {
    json!({
        "bastion": { "ssh_port": port, "ssh_host_key": null },
        "timeouts": { "ready_s": READY.as_secs() },
    })
}

/// A hundred megabytes of zeros, compressed to a hundred kilobytes.
fn bomb() -> Vec<u8> {
    let mut bomb = Vec::with_capacity(200_000);
    let mut stream = Compress::new(flate2::Compression::best(), true);
    stream.compress_vec(&vec![0; 100 << 20], &mut bomb, FlushCompress::Sync).unwrap();
    bomb
}

const READY: Duration = Duration::from_secs(6);

/// Message numbers (RFC 4250, section 4.1.2).
const IGNORE: u8 = 2;
const DEBUG: u8 = 4;
const BANNER: u8 = 53;
const GLOBAL_REQUEST: u8 = 80;
const REQUEST_FAILURE: u8 = 82;
const CHANNEL_OPEN: u8 = 90;
const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
const CHANNEL_OPEN_FAILURE: u8 = 92;
const CHANNEL_WINDOW_ADJUST: u8 = 93;
const CHANNEL_DATA: u8 = 94;
const CHANNEL_REQUEST: u8 = 98;
const CHANNEL_FAILURE: u8 = 100;
