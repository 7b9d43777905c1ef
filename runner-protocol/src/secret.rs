//! Text that must not be shown.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text: redacted when debugged, wiped from memory when dropped, never serialized.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes `text` over, with its buffer.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Shows the text; what is copied from it is not wiped.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Gives the text away, still to be wiped when dropped.
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
