//! Private keys, as people paste them.

use russh::keys::PrivateKey;

/// Why a private key cannot be used; never quotes any of its text.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// It is encrypted and no passphrase was given.
    #[error("private key is encrypted, its passphrase is needed")]
    PassphraseRequired,
    /// It is encrypted and the passphrase does not open it.
    #[error("passphrase of the private key is wrong")]
    PassphraseWrong,
    /// It cannot be read.
    #[error("private key cannot be read: {why}")]
    Unreadable {
        /// The reason.
        why: &'static str,
    },
}

/// Loads a private key.
///
/// # Errors
///
/// [`KeyError`].
pub fn load_private_key(text: &str, passphrase: Option<&str>) -> Result<PrivateKey, KeyError> {
    russh::keys::decode_secret_key(text, passphrase)
        .map_err(|_| KeyError::Unreadable { why: "TODO" })
}
