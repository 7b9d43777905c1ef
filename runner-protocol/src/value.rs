//! JSON values, decoded one level at a time and borrowed from the input.
//!
//! `serde_json::Value` keeps only the last of two equal names, and leaves copies of strings in memory that are not
//! wiped. Here an object yields every entry, and a string is decoded once, into a buffer that is wiped.

use std::{collections::VecDeque, fmt};

use serde::de::{MapAccess, Visitor};
use serde_json::{Deserializer, error::Category, value::RawValue};
use zeroize::Zeroizing;

/// A value of which only the kind is decoded.
#[derive(Clone, Copy)]
pub(crate) enum Value<'d> {
    Null,
    Boolean(bool),
    /// As written.
    Number(&'d str),
    /// The characters between the quotes, still escaped.
    Text(&'d str),
    Array(&'d RawValue),
    Object(&'d RawValue),
}

/// The entries of an object, in the order as written, equal names included.
pub(crate) type Entries<'d> = Vec<(String, &'d RawValue)>;

impl<'d> Value<'d> {
    pub(crate) fn new(raw: &'d RawValue) -> Self {
        let text = raw.get();
        match text.as_bytes().first() {
            Some(b'n') | None => Self::Null,
            Some(b't') => Self::Boolean(true),
            Some(b'f') => Self::Boolean(false),
            Some(b'"') => {
                let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                Self::Text(inner.unwrap_or_default())
            }
            Some(b'[') => Self::Array(raw),
            Some(b'{') => Self::Object(raw),
            Some(_) => Self::Number(text),
        }
    }

    pub(crate) fn is_null(self) -> bool {
        matches!(self, Self::Null)
    }

    /// The decoded string; `None` for other kinds and for an unpaired surrogate.
    pub(crate) fn text(self) -> Option<Zeroizing<String>> {
        let Self::Text(escaped) = self else { return None };
        unescape(escaped)
    }

    /// The elements; `None` for other kinds.
    pub(crate) fn elements(self) -> Option<Vec<&'d RawValue>> {
        let Self::Array(raw) = self else { return None };
        serde_json::from_str(raw.get()).ok()
    }

    /// The entries; `None` for other kinds, and if a name has an unpaired surrogate.
    pub(crate) fn entries(self) -> Option<Entries<'d>> {
        let Self::Object(raw) = self else { return None };
        entries(raw.get()).ok()
    }
}

/// Parses the whole of `text` as one object.
pub(crate) fn entries(text: &str) -> Result<Entries<'_>, SyntaxError> {
    struct Collect;
    impl<'d> Visitor<'d> for Collect {
        type Value = Entries<'d>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<Entries<'d>, A::Error> {
            let mut entries = Vec::new();
            while let Some(entry) = map.next_entry()? {
                entries.push(entry);
            }
            Ok(entries)
        }
    }
    let mut parser = Deserializer::from_str(text);
    let entries = serde::Deserializer::deserialize_map(&mut parser, Collect)?;
    parser.end()?;
    Ok(entries)
}

/// Where and why a text is not JSON; quotes none of it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct SyntaxError {
    pub(crate) what: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl From<serde_json::Error> for SyntaxError {
    fn from(error: serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        // The messages of `serde_json` about syntax are a fixed list; all others may quote values.
        let what = match error.classify() {
            Category::Syntax | Category::Eof => {
                let text = error.to_string();
                text.split(" at line ").next().unwrap_or_default().to_owned()
            }
            Category::Data | Category::Io => "an unexpected value".to_owned(),
        };
        Self { what, line, column }
    }
}

/// Decodes a string that `serde_json` has found well-formed. Never reallocates, which would leave copies in
/// memory: no escape is shorter than what it stands for.
fn unescape(escaped: &str) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(escaped.len()));
    let mut rest = escaped;
    while let Some((plain, escape)) = rest.split_once('\\') {
        text.push_str(plain);
        let kind = escape.chars().next()?;
        rest = escape.get(kind.len_utf8()..)?;
        text.push(match kind {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let mut units = VecDeque::from([take_unit(&mut rest)?]);
                if (0xd800..0xdc00).contains(units.front()?) {
                    rest = rest.strip_prefix("\\u")?;
                    units.push_back(take_unit(&mut rest)?);
                }
                char::decode_utf16(units).next()?.ok()?
            }
            other => other,
        });
    }
    text.push_str(rest);
    Some(text)
}

/// Takes four hexadecimal digits.
fn take_unit(rest: &mut &str) -> Option<u16> {
    let (digits, after) = rest.split_at_checked(4)?;
    *rest = after;
    u16::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn strings_are_decoded_as_json_defines() {
        let cases = [
            (r#""""#, Some("")),
            (r#""plain 日本""#, Some("plain 日本")),
            (r#""\"\\\/\b\f\n\r\t""#, Some("\"\\/\u{8}\u{c}\n\r\t")),
            (r#""\u0041\u65e5\u0000""#, Some("A日\0")),
            (r#""\ud83d\ude00!""#, Some("😀!")),
            (r#""\ud83d""#, None),
            (r#""\ud83d\n""#, None),
            (r#""\ud83d\ud83d""#, None),
            (r#""\ude00""#, None),
            ("3", None),
        ];
        for (json, expected) in cases {
            let text = Value::new(raw(json)).text();
            assert_eq!(text.as_ref().map(|text| text.as_str()), expected, "{json}");
        }
    }

    #[test]
    fn equal_names_are_all_kept() {
        let entries =
            Value::new(raw(r#"{"a": 1, "b": [true], "\u0061": null}"#)).entries().unwrap();
        let names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "a"]);
        assert!(Value::new(entries[2].1).is_null());
    }

    #[test]
    fn syntax_errors_say_where_and_quote_nothing() {
        let cases = [
            (r#"{"a": hunter2}"#, "expected value"),
            (r#"{"hunter2" 3}"#, "expected `:`"),
            (r#"{"a": "hunter2",}"#, "trailing comma"),
            (r#"{"a": "\hunter2"}"#, "invalid escape"),
            (r#"{"a": 1} hunter2"#, "trailing characters"),
            (r#"{"a": 01}"#, "invalid number"),
            (r"{hunter2: 1}", "key must be a string"),
            (r#""hunter2""#, "an unexpected value"),
        ];
        for (json, what) in cases {
            let error = entries(json).unwrap_err();
            assert_eq!((error.what.as_str(), error.line), (what, 1), "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_decoded(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let decoded = Value::new(raw(&json)).text().unwrap();
            prop_assert_eq!(decoded.as_str(), text);
        }

        #[test]
        fn decoding_agrees_with_serde_json(units in prop::collection::vec(0_u16..=0xffff, 0..6)) {
            let escapes: Vec<_> = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let json = format!("\"{}\"", escapes.concat());
            let expected = serde_json::from_str::<String>(&json).ok();
            let decoded = Value::new(raw(&json)).text();
            prop_assert_eq!(decoded.map(|text| text.to_string()), expected);
        }
    }
}
