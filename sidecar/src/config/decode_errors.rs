//! Mistakes in keys and pins, which only decoding finds.

use runner_protocol::{Mistake, Mistakes};
use serde::Deserialize;
use serde_json::Value;
use ssh_client::{HostKeyPin, KeyError};
use zeroize::Zeroizing;

/// Adds to the mistakes of the config `text` those in its private key and its host key pins, if it is JSON with a
/// `bastion` object. No passphrase is tried, since that may take seconds.
pub(super) fn with_decoded(mut mistakes: Mistakes, text: &[u8]) -> Mistakes {
    let Ok(Draft { bastion: Some(bastion) }) = serde_json::from_slice(text) else {
        return mistakes;
    };
    let pins = match &bastion.ssh_host_key {
        Some(Value::Array(pins)) => pins.as_slice(),
        Some(pin) => std::slice::from_ref(pin),
        None => &[],
    };
    for (index, pin) in pins.iter().enumerate() {
        if let Some(Err(error)) = pin.as_str().map(HostKeyPin::parse_lines) {
            add(&mut mistakes, of_pin(index, pins.len(), &error));
        }
    }
    if let Some(Value::String(key)) = bastion.ssh_private_key {
        let key = Zeroizing::new(key);
        let loaded = ssh_client::load_private_key(&key, None);
        if let Err(
            error @ (KeyError::Costly | KeyError::Unreadable { .. } | KeyError::Putty { .. }),
        ) = loaded
        {
            add(&mut mistakes, of_key(&error));
        }
    }
    mistakes
}

/// Adds `mistake`, unless there is one for that field already.
fn add(mistakes: &mut Mistakes, mistake: Mistake) {
    if mistakes.iter().all(|known| known.path != mistake.path) {
        mistakes.push(mistake);
    }
}

/// The fields that [`with_decoded`] reads.
#[derive(Deserialize)]
struct Draft {
    bastion: Option<DraftBastion>,
}

#[derive(Deserialize)]
struct DraftBastion {
    ssh_private_key: Option<Value>,
    ssh_host_key: Option<Value>,
}

pub(super) fn of_pin(index: usize, count: usize, error: &ssh_client::PinError) -> Mistake {
    let field = "bastion.ssh_host_key";
    let path = if count == 1 { field.to_owned() } else { format!("{field}[{index}]") };
    let hint = format!(
        "set `{path}` to a `SHA256:…` fingerprint (`ssh-keygen -lf` on the bastion's \
         /etc/ssh/ssh_host_ed25519_key.pub shows it) or to the line of that file"
    );
    Mistake { path, what: error.to_string(), hint }
}

pub(super) fn of_key(error: &KeyError) -> Mistake {
    Mistake {
        path: "bastion.ssh_private_key".to_owned(),
        what: error.to_string(),
        hint: key_hint(error).to_owned(),
    }
}

pub(super) const fn key_hint(error: &KeyError) -> &'static str {
    match error {
        KeyError::PassphraseRequired => {
            "give the key's passphrase in `bastion.ssh_private_key_passphrase`, or a key without one"
        }
        KeyError::PassphraseWrong => "correct `bastion.ssh_private_key_passphrase`",
        KeyError::Costly => {
            "write `bastion.ssh_private_key` again with fewer rounds: `ssh-keygen -p -a 64 -f FILE`"
        }
        KeyError::Putty { .. } => {
            "convert the key with `puttygen FILE -O private-openssh -o NEW` (in PuTTYgen: Conversions, Export OpenSSH \
             key), and give the text of that file in `bastion.ssh_private_key`"
        }
        KeyError::Unreadable { .. } => {
            "give the whole text of the private key's file in `bastion.ssh_private_key`: an RSA, ECDSA \
             or Ed25519 key in OpenSSH, PKCS#1 or PKCS#8 form, not its public half"
        }
    }
}
