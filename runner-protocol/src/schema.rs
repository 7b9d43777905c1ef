//! The document's JSON Schema.

/// The document's JSON Schema (draft 2020-12), as text.
///
/// It says what [`Request::from_json`](crate::Request::from_json) takes, but for a few rules that a pattern
/// says badly: the forms of URLs, addresses and names of hosts are described more loosely.
pub const fn schema() -> &'static str {
    include_str!("schema.json")
}
