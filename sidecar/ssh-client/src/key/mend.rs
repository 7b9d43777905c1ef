//! Mends the text of a private key that copy and paste, or programs that carry it, have changed. Only changes whose
//! meaning is beyond doubt: no format of private keys contains what is taken out here.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

/// Returns the text with line ends of its own: escapes undone, and characters without a width taken out. Its lines are
/// those that people see.
pub(super) fn unescaped(text: &str) -> Zeroizing<String> {
    let mut mended = Zeroizing::new(String::with_capacity(text.len() + 1));
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                // However often it was escaped.
                while characters.next_if_eq(&'\\').is_some() {}
                match characters.peek() {
                    Some('n' | 'r') => {
                        characters.next();
                        mended.push('\n');
                    }
                    Some('t') => {
                        characters.next();
                        mended.push(' ');
                    }
                    // Before a slash (PHP's JSON), a quotation mark, or a line end (a shell's continuation).
                    _ => {}
                }
            }
            '\r' => {
                characters.next_if_eq(&'\n');
                mended.push('\n');
            }
            '\u{85}' | '\u{2028}' | '\u{2029}' => mended.push('\n'),
            _ if is_without_width(character) => {}
            _ if character.is_whitespace() && character != '\n' => mended.push(' '),
            _ => mended.push(character),
        }
    }
    mended
}

/// Returns the key inside a text that is nothing but base64: a whole key file, encoded once more, as CI systems and
/// Kubernetes demand it, or the inside of an OpenSSH key without its first and last line.
pub(super) fn unwrapped(text: &str) -> Option<Zeroizing<String>> {
    let mut base64 = Zeroizing::new(String::with_capacity(text.len()));
    base64.extend(text.chars().filter(|c| !c.is_whitespace() && !QUOTES.contains(c)));
    let content = Zeroizing::new(ENGINE.decode(base64.as_bytes()).ok()?);
    if content.starts_with(b"openssh-key-v1\0") {
        let label = "OPENSSH PRIVATE KEY";
        // Never grown, which would leave a copy behind.
        let mut whole = Zeroizing::new(String::with_capacity(base64.len() + 4 * label.len()));
        for part in ["-----BEGIN ", label, "-----\n", &*base64, "\n-----END ", label, "-----\n"] {
            whole.push_str(part);
        }
        return Some(whole);
    }
    let inside = std::str::from_utf8(&content).ok()?;
    let is_key = ["-----BEGIN ", "PuTTY-User-Key-File-"].iter().any(|start| inside.contains(start));
    // One more level is enough: `unescaped` makes it the same text as a file's.
    is_key.then(|| unescaped(inside))
}

/// Decodes the base64 inside of a key.
///
/// # Errors
///
/// What is wrong with it, with the place in `text`, the whole text as people see it.
pub(super) fn decoded(base64: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    ENGINE.decode(base64.as_bytes()).map(Zeroizing::new).map_err(|_| {
        let foreign = |c: char| !(c.is_ascii_alphanumeric() || "+/=".contains(c));
        match base64.chars().find(|c| foreign(*c)) {
            Some(character) => {
                let place = place(text, character)
                    .map(|(line, column)| format!(", in line {line}, column {column}"));
                format!(
                    "its base64 text is damaged: {} does not belong there{}",
                    named(character),
                    place.unwrap_or_default()
                )
            }
            None => "its base64 text is damaged: characters are missing or too many".to_owned(),
        }
    })
}

/// Line and column of the first `character` behind the first line of the key, both from 1.
fn place(text: &str, character: char) -> Option<(usize, usize)> {
    let begin = text.find("-----BEGIN ")?;
    let body = begin + text.get(begin + 11..)?.find("-----")? + 16;
    let at = body + text.get(body..)?.find(character)?;
    let before = text.get(..at)?;
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(line_start..)?.chars().count() + 1;
    Some((before.matches('\n').count() + 1, column))
}

/// A character with its number, for people who cannot see it.
fn named(character: char) -> String {
    let number = format!("U+{:04X}", u32::from(character));
    if character.is_control() || character == '`' {
        number
    } else {
        format!("`{character}` ({number})")
    }
}

/// Whether a character takes no room on a screen: byte order mark, joiners, soft hyphen, marks of text direction.
fn is_without_width(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    )
}

/// What may enclose a text, or each of its lines, in a program or a letter.
pub(super) const QUOTES: &[char] = &[
    '"', '\'', '`', ',', ';', '>', '\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\u{ab}',
    '\u{bb}',
];

/// Whether there is padding is of no consequence.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
