//! Loads private keys from text, also from text that copy and paste has damaged.
//!
//! russh's decoder (`decode_secret_key`) accepts only exact PEM lines, and its errors do not distinguish an
//! encrypted key from a damaged one. So the text is normalized first, and the key's own headers tell whether
//! it is encrypted, how, and at which cost.

mod cost;
mod der;
mod mend;

use std::borrow::Cow;

use pem_rfc7468::LineEnding;
use russh::keys::{
    Algorithm, HashAlg, PrivateKey, decode_secret_key, ssh_encoding::Mpint,
    ssh_key::private::KeypairData,
};
use zeroize::Zeroizing;

use crate::wire::Reader;

/// Why a private key cannot be used. The message never quotes any of the key's text.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// It is encrypted and no passphrase was given.
    #[error("private key is encrypted, its passphrase is needed")]
    PassphraseRequired,
    /// It is encrypted and the passphrase does not decrypt it.
    #[error("passphrase of the private key is wrong")]
    PassphraseWrong,
    /// Its key derivation costs too much, minutes or hours of processor time or gigabytes of memory. No passphrase
    /// was tried.
    #[error("private key is encrypted in a way that takes too long to undo")]
    Costly,
    /// It cannot be read.
    #[error("private key cannot be read: {why}")]
    Unreadable {
        /// The reason.
        why: Cow<'static, str>,
    },
    /// It is in `PuTTY`'s format, which is read only if it is whole and of a known type.
    #[error("private key is in PuTTY's format and cannot be read: {why}")]
    Putty {
        /// The reason.
        why: &'static str,
    },
}

/// Loads a private key in OpenSSH's format, PKCS#1, SEC1, PKCS#8 or `PuTTY`'s; RSA, ECDSA or
/// Ed25519.
///
/// Typical damage of copy and paste is repaired: characters without a width such as a byte order mark, line ends of any
/// sort, `\n` as characters and escaped again, indentation and quotation marks, everything on one line, all of it encoded
/// as base64 once more. The passphrase is ignored if the key is not
/// encrypted, and an empty one counts as none.
///
/// Blocks for up to some seconds if the key is encrypted, since key derivation is slow by design.
///
/// # Errors
///
/// [`KeyError::PassphraseRequired`], [`KeyError::PassphraseWrong`], [`KeyError::Costly`] if key derivation would
/// take much longer than that, [`KeyError::Putty`] and [`KeyError::Unreadable`] for everything else.
pub fn load_private_key(text: &str, passphrase: Option<&str>) -> Result<PrivateKey, KeyError> {
    let text = mend::unescaped(text);
    let text = mend::unwrapped(&text).unwrap_or(text);
    let is_putty = text.trim_start().starts_with(PUTTY);
    let key = if is_putty { putty(&trimmed(&text, &[]))? } else { pem(&text)? };
    let passphrase = passphrase.filter(|passphrase| !passphrase.is_empty());
    let loaded = match (key.encrypted, passphrase) {
        (true, None) => return Err(KeyError::PassphraseRequired),
        (true, Some(passphrase)) => decode_secret_key(&key.text, Some(passphrase))
            // Everything else that can be wrong was checked before.
            .map_err(|_| KeyError::PassphraseWrong)?,
        (false, _) => decode_secret_key(&key.text, None).map_err(|_| {
            let why = "its content is damaged, or of a type that is not supported";
            if is_putty { KeyError::Putty { why } } else { unreadable(why) }
        })?,
    };
    if key.public.is_some_and(|public| !is_public_half(&loaded, &public)) {
        return Err(unreadable("its public half does not belong to its private half"));
    }
    match loaded.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => Ok(loaded),
        Algorithm::Dsa => Err(unreadable(DSA)),
        _ => Err(unreadable(TYPE)),
    }
}

/// Returns the fingerprint of the key's public half as `ssh-keygen -l` prints it: `SHA256:` and 43 characters of
/// base64.
pub fn fingerprint(key: &PrivateKey) -> String {
    key.public_key().fingerprint(HashAlg::Sha256).to_string()
}

/// Returns the name of the key's type, as a public key line begins: `ssh-ed25519`, `ssh-rsa`,
/// `ecdsa-sha2-nistp256` and so on.
pub fn key_type(key: &PrivateKey) -> String {
    key.algorithm().as_str().to_owned()
}

/// Returns the secret numbers of `key` where they are stored, so that the caller can protect that memory.
pub fn secret_parts(key: &PrivateKey) -> Vec<&[u8]> {
    match key.key_data() {
        KeypairData::Ed25519(pair) => vec![pair.private.as_ref()],
        KeypairData::Ecdsa(pair) => vec![pair.private_key_bytes()],
        KeypairData::Rsa(pair) => {
            let private = pair.private();
            [private.d(), private.iqmp(), private.p(), private.q()].map(Mpint::as_bytes).to_vec()
        }
        // `load_private_key` loads no other types.
        _ => Vec::new(),
    }
}

/// A key's text, normalized for the decoder.
struct KeyText {
    text: Zeroizing<String>,
    encrypted: bool,
    /// The public half that stands behind it, in PKCS#8 version 2.
    public: Option<Vec<u8>>,
}

/// Removes blanks and these characters around each line, and blank lines.
fn trimmed(text: &str, around: &[char]) -> Zeroizing<String> {
    let mut lines = Zeroizing::new(String::with_capacity(text.len() + 1));
    let around = |c: char| c.is_whitespace() || around.contains(&c);
    for line in text.lines().map(|line| line.trim_matches(around)).filter(|line| !line.is_empty()) {
        lines.push_str(line);
        lines.push('\n');
    }
    lines
}

/// Checks a key in `PuTTY`'s format. Its code of authenticity covers a comment, which may have been mended wrongly: then it
/// cannot be read.
fn putty(text: &str) -> Result<KeyText, KeyError> {
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if text.contains("ssh-dss") {
        return Err(unreadable(DSA));
    }
    match header("Encryption:") {
        Some(cipher) => {
            affordable(cost::is_putty_affordable(text))?;
            let text = Zeroizing::new(text.to_owned());
            Ok(KeyText { text, encrypted: cipher != "none", public: None })
        }
        None => Err(KeyError::Putty { why: "it is incomplete" }),
    }
}

/// Finds the block with the private key in a PEM text.
///
/// Not left to a PEM library: those refuse damaged text, such as a key all on one line.
fn pem(text: &str) -> Result<KeyText, KeyError> {
    let whole = text;
    let text = trimmed(text, mend::QUOTES);
    let mut rest = text.as_str();
    let mut other = None;
    while let Some((_, behind)) = rest.split_once(BEGIN) {
        let (label, behind) = behind.split_once(DASHES).ok_or_else(|| unreadable(CUT))?;
        let end = format!("-----END {label}-----");
        let (body, behind) = behind.split_once(&end).ok_or_else(|| unreadable(CUT))?;
        if label.ends_with("PRIVATE KEY") {
            return block(label, body, whole);
        }
        // Such as `EC PARAMETERS`, which openssl writes first.
        other = Some(label);
        rest = behind;
    }
    let is_public_line = ["ssh-", "ecdsa-", "sk-"].iter().any(|start| text.starts_with(start));
    let is_path = |text: &str| {
        let starts = ["/", "~/", "./", "C:", "file:"].iter().any(|start| text.starts_with(start));
        starts && text.lines().count() == 1
    };
    Err(unreadable(match other {
        Some(label) if label.ends_with("PUBLIC KEY") => PUBLIC,
        Some(label) if label.ends_with("CERTIFICATE") => CERTIFICATE,
        Some(label) if label.starts_with("PGP") => "it is a PGP key; a key for SSH is needed",
        _ if is_public_line && text.contains("-cert-v01@openssh.com") => CERTIFICATE,
        _ if is_public_line || text.starts_with("---- BEGIN SSH2 PUBLIC") => PUBLIC,
        _ if text.starts_with("---- BEGIN SSH2") => SSH2,
        _ if is_path(&text) => "it is the name of a file; the text of that file is needed",
        _ if text.is_empty() => "it is empty",
        _ => "it does not begin like a private key: `-----BEGIN … PRIVATE KEY-----`",
    }))
}

/// Checks one block of a PEM text and normalizes it. `whole` is the text as people see it.
fn block(label: &str, body: &str, whole: &str) -> Result<KeyText, KeyError> {
    // The headers (RFC 1421 section 4.6) are `name: value` without a blank in the value, so this also works
    // if all of the key is on one line.
    let mut cipher = None;
    let mut base64 = Zeroizing::new(String::with_capacity(body.len()));
    let mut words = body.split_whitespace();
    while let Some(word) = words.next() {
        match word.strip_suffix(':') {
            Some("DEK-Info") => cipher = words.next(),
            Some(_) => drop(words.next()),
            None => base64.push_str(word),
        }
    }
    let mut content = mend::decoded(&base64, whole).map_err(unreadable)?;
    let mut public = None;
    let encrypted = match label {
        "OPENSSH PRIVATE KEY" => openssh(&content)?,
        "RSA PRIVATE KEY" | "EC PRIVATE KEY" => match cipher {
            None => false,
            Some(cipher) if label.starts_with("RSA") && cipher.starts_with("AES-128-CBC,") => true,
            Some(_) => return Err(unreadable(ENCRYPTION)),
        },
        "PRIVATE KEY" => {
            if let Some(key) = der::with_public_key(&content) {
                public = Some(key.public.to_vec());
                content = key.version_1;
            }
            false
        }
        "ENCRYPTED PRIVATE KEY" => pkcs8(&content)?,
        "DSA PRIVATE KEY" => return Err(unreadable(DSA)),
        _ => {
            return Err(unreadable(
                "its format is unknown; convert it with `ssh-keygen -p -f FILE`",
            ));
        }
    };
    let pem = pem_rfc7468::encode_string(label, LineEnding::LF, &content);
    let mut text = Zeroizing::new(pem.map_err(|_| unreadable(DAMAGED))?);
    if let Some(cipher) = cipher {
        // RFC 7468 has no headers, so those of RFC 1421 are inserted after the first line. That may leave a copy
        // in freed memory, of an encrypted key only.
        let headers = format!("Proc-Type: 4,ENCRYPTED\nDEK-Info: {cipher}\n\n");
        text.insert_str(BEGIN.len() + label.len() + DASHES.len() + 1, &headers);
    }
    Ok(KeyText { text, encrypted, public })
}

/// Whether `public` is the public half of an Ed25519 key, or the key is of another type: others are checked when they are
/// loaded, or do not need it.
fn is_public_half(key: &PrivateKey, public: &[u8]) -> bool {
    match key.key_data() {
        KeypairData::Ed25519(pair) => pair.public.0 == *public,
        _ => true,
    }
}

/// Reads the unencrypted part of OpenSSH's format (PROTOCOL.key section 1) and returns whether the rest is
/// encrypted.
fn openssh(content: &[u8]) -> Result<bool, KeyError> {
    let damaged = || unreadable(DAMAGED);
    let rest = content.strip_prefix(b"openssh-key-v1\0").ok_or_else(damaged)?;
    let mut reader = Reader::new(rest, "key");
    let cipher = reader.string().map_err(|_| damaged())?;
    let _kdf = reader.string().map_err(|_| damaged())?;
    let options = reader.string().map_err(|_| damaged())?;
    reader.u32().map_err(|_| damaged())?;
    let public = reader.string().map_err(|_| damaged())?;
    match Reader::new(public, "key").string().map_err(|_| damaged())? {
        b"ssh-dss" => return Err(unreadable(DSA)),
        kind if kind.starts_with(b"sk-") => {
            return Err(unreadable("it needs a hardware security key, which is not supported"));
        }
        _ => {}
    }
    match cipher {
        b"none" => Ok(false),
        b"3des-cbc" => Err(unreadable(ENCRYPTION)),
        _ => affordable(cost::is_bcrypt_affordable(options)).map(|()| true),
    }
}

/// Checks that the encryption of an encrypted PKCS#8 key is supported; returns `true`, as it is encrypted.
fn pkcs8(content: &[u8]) -> Result<bool, KeyError> {
    // Searching for the whole identifiers is enough: they are not encrypted and within the first bytes.
    let head = content.get(..256).unwrap_or(content);
    let has = |oid: &[u8]| head.windows(oid.len()).any(|window| window == oid);
    if has(PBES2) && (has(AES_128_CBC) || has(AES_256_CBC)) {
        affordable(cost::is_pkcs8_affordable(content)).map(|()| true)
    } else {
        Err(unreadable(ENCRYPTION))
    }
}

fn affordable(affordable: bool) -> Result<(), KeyError> {
    if affordable { Ok(()) } else { Err(KeyError::Costly) }
}

fn unreadable(why: impl Into<Cow<'static, str>>) -> KeyError {
    KeyError::Unreadable { why: why.into() }
}

/// How `PuTTY`'s format begins, before the number of its version (`PuTTY` manual, appendix C).
const PUTTY: &str = "PuTTY-User-Key-File-";

const BEGIN: &str = "-----BEGIN ";

const DASHES: &str = "-----";

const DAMAGED: &str = "its content is damaged";

const CUT: &str = "it is cut off: its `-----END …-----` line is missing";

const PUBLIC: &str = "it is a public key; the private one is needed";

const CERTIFICATE: &str = "it is a certificate; the private key that belongs to it is needed";

const SSH2: &str = "its format is that of ssh.com; convert it with `ssh-keygen -i -f FILE`";

const DSA: &str = "DSA keys are not supported";

const TYPE: &str = "keys of this type are not supported";

const ENCRYPTION: &str =
    "it is encrypted in a way that is not supported; convert it with `ssh-keygen -p -f FILE`";

/// Object identifier 1.2.840.113549.1.5.13 (RFC 8018 appendix A.4), as DER.
const PBES2: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];

/// Object identifier 2.16.840.1.101.3.4.1.2 (NIST's Computer Security Objects Register), as DER.
const AES_128_CBC: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x02];

/// Object identifier 2.16.840.1.101.3.4.1.42 (NIST's Computer Security Objects Register), as DER.
const AES_256_CBC: &[u8] = &[0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
