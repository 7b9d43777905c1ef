//! Which values a field may have: one rule for each kind of field.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{endpoint::EndpointUrl, region, secret::Secret, value::Value};

/// What is wrong with a value, and what it should be; the hint is `` set `<path>` to <expected> ``.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Problem {
    pub(crate) what: Cow<'static, str>,
    pub(crate) expected: Cow<'static, str>,
}

impl Problem {
    pub(crate) fn new(
        what: impl Into<Cow<'static, str>>,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { what: what.into(), expected: expected.into() }
    }

    /// A value of the wrong JSON type.
    pub(crate) fn kind(expected: &'static str) -> Self {
        Self::new(format!("not {expected}"), expected)
    }
}

/// Any text without NUL, which no consumer of these texts supports.
fn any_text(value: Value<'_>) -> Result<Zeroizing<String>, Problem> {
    let Value::Text(_) = value else { return Err(Problem::kind("a text")) };
    let broken = || Problem::new("half of a surrogate pair in it", "a text of whole characters");
    let text = value.text().ok_or_else(broken)?;
    if text.contains('\0') {
        return Err(Problem::new("a NUL character in it", "a text without NUL characters"));
    }
    Ok(text)
}

/// Free text, which may be empty.
pub(crate) fn free_text(value: Value<'_>) -> Result<String, Problem> {
    any_text(value).map(|mut text| std::mem::take(&mut *text))
}

/// A text that is not empty.
pub(crate) fn text(value: Value<'_>) -> Result<String, Problem> {
    let text = free_text(value)?;
    if text.is_empty() { Err(Problem::new("empty", "a text that is not empty")) } else { Ok(text) }
}

/// A text with a length in `characters` that consists of `allowed` characters.
fn text_of(
    value: Value<'_>,
    characters: RangeInclusive<usize>,
    allowed: impl Fn(char) -> bool,
    expected: &'static str,
) -> Result<String, Problem> {
    let text = text(value)?;
    if !characters.contains(&text.chars().count()) {
        let what = format!("not {} to {} characters", characters.start(), characters.end());
        return Err(Problem::new(what, expected));
    }
    if !text.chars().all(allowed) {
        return Err(Problem::new("a character in it that may not be there", expected));
    }
    Ok(text)
}

/// A secret that does not consist of white space alone.
pub(crate) fn secret(value: Value<'_>) -> Result<Secret, Problem> {
    let text = any_text(value)?;
    if text.trim().is_empty() {
        return Err(Problem::new("empty", "a text that is not empty"));
    }
    Ok(text.into())
}

/// An AWS key. White space in it, as left by copying, would make every signature wrong.
pub(crate) fn aws_key(value: Value<'_>) -> Result<Secret, Problem> {
    let key = secret(value)?;
    if key.expose().chars().all(|c| c.is_ascii_graphic()) {
        return Ok(key);
    }
    Err(Problem::new("blanks or characters in it that no key has", "the key alone"))
}

/// A passphrase; an empty one counts as none.
pub(crate) fn passphrase(value: Value<'_>) -> Result<Option<Secret>, Problem> {
    let text = any_text(value)?;
    Ok((!text.is_empty()).then(|| text.into()))
}

pub(crate) fn boolean(value: Value<'_>) -> Result<bool, Problem> {
    let Value::Boolean(boolean) = value else { return Err(Problem::kind("true or false")) };
    Ok(boolean)
}

/// A whole number within a range.
pub(crate) fn integer<T: TryFrom<i64>>(
    range: RangeInclusive<i64>,
) -> impl Fn(Value<'_>) -> Result<T, Problem> {
    move |value| {
        let (least, most) = (range.start(), range.end());
        let expected = format!("a whole number from {least} to {most}");
        let Value::Number(digits) = value else {
            return Err(Problem::new("not a number", expected));
        };
        let number = digits.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        // A short number in a field for numbers is no secret.
        let what = if digits.len() <= 10 {
            format!("not a whole number from {least} to {most}: {digits}")
        } else {
            format!("not a whole number from {least} to {most}")
        };
        number.ok_or_else(|| Problem::new(what, expected))
    }
}

/// Whole seconds within a range.
pub(crate) fn seconds(
    range: RangeInclusive<i64>,
) -> impl Fn(Value<'_>) -> Result<Duration, Problem> {
    move |value| integer(range.clone())(value).map(Duration::from_secs)
}

/// One of the given words.
pub(crate) fn word<T: Copy>(words: &[(&str, T)]) -> impl Fn(Value<'_>) -> Result<T, Problem> {
    move |value| {
        let names: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let problem = || {
            let names = match names.as_slice() {
                [before @ .., last] if !before.is_empty() => {
                    format!("{} or {last}", before.join(", "))
                }
                names => names.concat(),
            };
            Problem::new(format!("not {names}"), names)
        };
        let text = value.text().ok_or_else(problem)?;
        let found = words.iter().find(|(word, _)| *word == text.as_str());
        found.map(|(_, meaning)| *meaning).ok_or_else(problem)
    }
}

/// The label of a connection.
pub(crate) fn name(value: Value<'_>) -> Result<String, Problem> {
    text_of(value, 1..=128, |_| true, "a label of 1 to 128 characters")
}

/// A region's name. It becomes part of host names. Regions that are newer than this crate pass by their form.
pub(crate) fn region(value: Value<'_>) -> Result<String, Problem> {
    let region = text(value)?;
    if region::is_well_formed(&region) {
        return Ok(region);
    }
    let what = if region::zone_region(&region).is_some() {
        "an availability zone, or another text behind the region's number"
    } else {
        "not the name of a region"
    };
    let nearest = region::nearest(&region);
    Err(Problem::new(
        what,
        match nearest {
            Some(nearest) => format!("the region's name, most likely \"{nearest}\""),
            None => "a region such as \"ap-northeast-1\"".to_owned(),
        },
    ))
}

/// `i-` or `mi-` and 8 or 17 hexadecimal digits.
pub(crate) fn instance_id(value: Value<'_>) -> Result<String, Problem> {
    let expected = "the instance's id: `i-` or `mi-` and 8 or 17 hexadecimal digits";
    let text = text(value)?;
    let digits = text.strip_prefix("i-").or_else(|| text.strip_prefix("mi-"));
    let fits = |digits: &str| {
        [8, 17].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if digits.is_some_and(fits) {
        Ok(text)
    } else {
        Err(Problem::new("not an instance id", expected))
    }
}

/// A role's ARN, 20 to 2,048 characters (STS API reference, `AssumeRole`).
pub(crate) fn role_arn(value: Value<'_>) -> Result<String, Problem> {
    let expected = "a role's ARN such as `arn:aws:iam::123456789012:role/name`";
    let text = text(value)?;
    let parts: Vec<_> = text.splitn(6, ':').collect();
    let fits = matches!(*parts.as_slice(), ["arn", partition, "iam", "", account, resource]
        if partition.starts_with("aws")
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && resource.strip_prefix("role/").is_some_and(|name| !name.is_empty()));
    let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits && graphic && text.len() <= 2048 {
        Ok(text)
    } else {
        Err(Problem::new("not a role's ARN", expected))
    }
}

/// `ExternalId`: 2 to 1,224 characters (STS API reference, `AssumeRole`).
pub(crate) fn external_id(value: Value<'_>) -> Result<String, Problem> {
    let expected =
        "the external id of the role's trust policy: 2 to 1224 letters, digits or `_+=,.@:/-`";
    text_of(value, 2..=1224, |c| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c), expected)
}

/// `RoleSessionName`: 2 to 64 characters (STS API reference, `AssumeRole`).
pub(crate) fn role_session_name(value: Value<'_>) -> Result<String, Problem> {
    let expected = "a name of 2 to 64 letters, digits or `_+=,.@-`";
    text_of(value, 2..=64, |c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c), expected)
}

/// The name of a user on the bastion.
pub(crate) fn user(value: Value<'_>) -> Result<String, Problem> {
    let expected = "a user's name of 1 to 255 characters, without line breaks";
    text_of(value, 1..=255, |c| !c.is_control(), expected)
}

/// The name or address of a host, without port, scheme or path; IPv6 addresses without brackets.
pub(crate) fn host(value: Value<'_>) -> Result<String, Problem> {
    let expected = "a host's name or address alone; the port goes to `target.port`";
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && !"/@[]".contains(c);
    let host = text_of(value, 1..=255, allowed, expected)?;
    if host.contains(':') && host.split('%').next().is_none_or(|ip| ip.parse::<IpAddr>().is_err()) {
        return Err(Problem::new("not a host's name or address", expected));
    }
    Ok(host)
}

/// An IP address.
pub(crate) fn address(value: Value<'_>) -> Result<IpAddr, Problem> {
    let expected = "an IP address such as \"127.0.0.1\" or \"::1\"";
    text(value)?.parse().map_err(|_| Problem::new("not an IP address", expected))
}

/// An IP address and a port.
pub(crate) fn socket_address(value: Value<'_>) -> Result<SocketAddr, Problem> {
    let expected = "an IP address and a port such as \"127.0.0.1:8080\" or \"[::]:8080\"";
    text(value)?.parse().map_err(|_| Problem::new("not `address:port`", expected))
}

/// An absolute path.
pub(crate) fn path(value: Value<'_>) -> Result<String, Problem> {
    let path = text(value)?;
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(Problem::new("not an absolute path", "a path that begins with `/`"))
}

/// A URL of one of two schemes: `secure` with TLS, `plain` without and only for loopback.
pub(crate) fn endpoint(
    secure: &'static str,
    plain: &'static str,
    may_have_path: bool,
) -> impl Fn(Value<'_>) -> Result<EndpointUrl, Problem> {
    move |value| {
        let expected =
            format!("a URL such as `{secure}://host`; `{plain}://` is for loopback alone");
        let text = text(value)?;
        let Some(url) = EndpointUrl::parse(&text) else {
            return Err(Problem::new("not a URL of a host", expected));
        };
        if !may_have_path && url.has_path() {
            return Err(Problem::new("a path in it", expected));
        }
        if url.scheme() == secure || (url.scheme() == plain && url.is_loopback()) {
            return Ok(url);
        }
        let what = if url.scheme() == plain {
            format!("`{plain}://` for a host that is not loopback")
        } else {
            format!("neither `{secure}://` nor `{plain}://`")
        };
        Err(Problem::new(what, expected))
    }
}
