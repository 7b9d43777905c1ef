//! Quotes texts of AWS in messages.

/// Whether `word` may be quoted as it is: a name, an ARN, an id.
pub(super) fn is_plain(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:/.*@+=,$".contains(&byte);
    !word.is_empty() && word.len() <= MAX_QUOTED && word.bytes().all(plain)
}

/// Returns `text` on one line, without control characters, shortened to [`MAX_QUOTED`].
pub(super) fn shorten(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = line.take(MAX_QUOTED).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        short.push('…');
    }
    short.trim().to_owned()
}

/// Returns a text of AWS in backticks, shortened; a backtick in it becomes an apostrophe, and its full stop is left
/// out.
pub(super) fn quoted(text: &str) -> String {
    format!("`{}`", shorten(text).trim_end_matches('.').replace('`', "'"))
}

/// Longest text of AWS in a message, in characters.
const MAX_QUOTED: usize = 300;
