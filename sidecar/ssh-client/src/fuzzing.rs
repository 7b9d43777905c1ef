//! The functions that the fuzz targets call.
//!
//! One target starts at the first byte. Another starts after the login and without encryption, so that random
//! bytes reach the connection layer. Compiled for fuzzing, and for tests, which run the stored corpora.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use russh::keys::{PrivateKey, ssh_key::private::Ed25519Keypair};

use crate::{
    channel::ChannelId,
    client::Client,
    config::{Compression, Config},
    key::load_private_key,
    packet::PacketWriter,
    pin::HostKeyPin,
};

/// Feeds `data` to a new client, in pieces whose lengths are bytes of `data`.
pub fn input(data: &[u8]) {
    let now = Instant::now();
    let mut client = Client::new(config(), now);
    let mut rest = data;
    while let Some((size, behind)) = rest.split_first() {
        let (piece, behind) = behind.split_at(usize::from(*size).min(behind.len()));
        if client.handle_input(now, piece).is_err() {
            break;
        }
        transmit(&mut client, now);
        rest = behind;
    }
    transmit(&mut client, now);
}

/// Runs a sequence of calls and of well-formed packets with random payloads on a client that is
/// logged in.
///
/// # Panics
///
/// If a channel holds more than its window.
pub fn operations(data: &[u8]) {
    let mut now = Instant::now();
    let config = config();
    let window = usize::try_from(config.window).unwrap_or(usize::MAX);
    let mut client = Client::new(config, now);
    client.skip_login(now);
    let mut server = PacketWriter::new();
    let mut channels: Vec<(ChannelId, usize)> = Vec::new();
    let mut rest = data;
    while let Some(([operation, argument], behind)) = rest.split_first_chunk() {
        rest = behind;
        let channel = channels.get(usize::from(*argument) % channels.len().max(1)).copied();
        match (operation % 9, channel) {
            (0, _) => {
                let originator = ([127, 0, 0, 1], 1).into();
                if let Ok(id) = client.open_direct_tcpip("h", 1, originator) {
                    channels.push((id, 0));
                }
            }
            (1, Some((id, _))) => {
                let mut held = 0;
                while let Some(data) = client.read(id) {
                    held += data.len();
                }
                let known = channels.iter_mut().find(|(known, _)| *known == id);
                if let Some((_, unconsumed)) = known {
                    *unconsumed += held;
                    assert!(*unconsumed <= window, "{unconsumed} bytes in a window of {window}");
                }
            }
            (2, Some((id, unconsumed))) => {
                let bytes = usize::from(*argument) * 100;
                client.consumed(id, bytes);
                if let Some((_, left)) = channels.iter_mut().find(|(known, _)| *known == id) {
                    *left = unconsumed.saturating_sub(bytes);
                }
            }
            (3, Some((id, _))) => drop(client.write(id, &vec![0; usize::from(*argument) * 50])),
            (4, Some((id, _))) => client.finish(id),
            (5, Some((id, _))) => client.close(id),
            (6, _) => {
                now += Duration::from_secs(u64::from(*argument));
                if client.handle_timeout(now).is_err() {
                    return;
                }
            }
            _ => {
                let (payload, behind) = rest.split_at(usize::from(*argument).min(rest.len()));
                rest = behind;
                let mut packet = BytesMut::new();
                if payload.is_empty() || server.write(&mut packet, payload, &[]).is_err() {
                    continue;
                }
                if client.handle_input(now, &packet).is_err() {
                    transmit(&mut client, now);
                    return;
                }
            }
        }
        if argument % 2 == 0 {
            transmit(&mut client, now);
        }
    }
}

/// Parses `data` as a private key and as a host key pin.
pub fn text(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        drop(load_private_key(text, None));
        drop(HostKeyPin::parse_lines(text));
    }
}

fn transmit(client: &mut Client, now: Instant) {
    let mut out = BytesMut::new();
    while matches!(client.poll_transmit(now, &mut out, 10_000), Ok(true)) {
        out.clear();
    }
    while client.poll_event().is_some() {}
}

fn config() -> Config {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let mut config = Config::new("user", Arc::new(key));
    config.compression = Compression::Off;
    config.window = 2_000;
    config.max_packet = 1_000;
    config.max_channels = 8;
    config.keepalive_interval = Some(Duration::from_secs(30));
    config
}

#[cfg(test)]
#[path = "../../../tests/corpus/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn stored_inputs_pass_from_the_first_byte() {
        replay("input", super::input);
    }

    #[test]
    fn stored_inputs_pass_after_the_login() {
        replay("operations", super::operations);
    }

    #[test]
    fn stored_inputs_pass_as_keys_and_pins() {
        replay("text", super::text);
    }
}
