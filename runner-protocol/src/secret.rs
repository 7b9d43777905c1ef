//! Text that must not be displayed.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text: redacted in `Debug`, wiped from memory when dropped, not serializable.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `text` without copying it.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the text; copies of it are not wiped.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the text, which is still wiped when dropped.
    pub fn into_inner(self) -> Zeroizing<String> {
        self.0
    }
}

impl From<Zeroizing<String>> for Secret {
    fn from(text: Zeroizing<String>) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_text_nor_length() {
        for text in ["", "hunter2", "a longer secret"] {
            assert_eq!(format!("{:?}", Secret::new(text.to_owned())), "Secret(..)");
        }
    }
}
