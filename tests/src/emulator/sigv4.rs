//! Signature version 4, verified according to AWS's description: canonical request, string to sign, signing
//! key. It uses nothing of the AWS SDK, so that a mistake there would show here.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::clock;

/// A request as it was received.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) method: &'a str,
    /// Undecoded.
    pub(crate) path: &'a str,
    /// Undecoded, without `?`.
    pub(crate) query: &'a str,
    /// Names in lower case.
    pub(crate) headers: &'a [(String, String)],
    pub(crate) body: &'a [u8],
}

/// The content of an `Authorization` header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Claim {
    pub(crate) access_key_id: String,
    pub(crate) session_token: Option<String>,
    /// `X-Amz-Date`, unparsed.
    date: String,
    scope_date: String,
    region: String,
    service: String,
    signed_headers: Vec<String>,
    signature: String,
}

/// Why a signature is not accepted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// The request is not signed.
    Missing,
    /// A part of the signature is missing.
    Incomplete(String),
    /// The signature does not match; the text is AWS's.
    Invalid(String),
}

impl Received<'_> {
    /// The values of a header, joined as the canonical request needs them.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values = self.headers.iter().filter(|(other, _)| other == name);
        let values: Vec<_> = values.map(|(_, value)| trim(value)).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// Parses the `Authorization` header.
    pub(crate) fn claim(&self) -> Result<Claim, Refusal> {
        let authorization = self.header("authorization").ok_or(Refusal::Missing)?;
        let parameters = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(|| {
            Refusal::Incomplete("the algorithm is not AWS4-HMAC-SHA256".to_owned())
        })?;
        let parameters: BTreeMap<_, _> =
            parameters.split(',').filter_map(|pair| pair.trim().split_once('=')).collect();
        let part = |name: &str| {
            let missing = || {
                Refusal::Incomplete(format!("Authorization header requires '{name}' parameter."))
            };
            parameters.get(name).copied().ok_or_else(missing)
        };
        let credential: Vec<_> = part("Credential")?.split('/').collect();
        let [access_key_id, scope_date, region, service, "aws4_request"] = credential.as_slice()
        else {
            return Err(Refusal::Incomplete(
                "Credential must have 5 slash-delimited elements".to_owned(),
            ));
        };
        let date = self.header("x-amz-date").ok_or_else(|| {
            Refusal::Incomplete(
                "Authorization header requires existence of 'X-Amz-Date'".to_owned(),
            )
        })?;
        Ok(Claim {
            access_key_id: (*access_key_id).to_owned(),
            session_token: self.header("x-amz-security-token"),
            date,
            scope_date: (*scope_date).to_owned(),
            region: (*region).to_owned(),
            service: (*service).to_owned(),
            signed_headers: part("SignedHeaders")?.split(';').map(str::to_owned).collect(),
            signature: part("Signature")?.to_owned(),
        })
    }

    /// Verifies a signature for a service in a region, made within five minutes of `now`.
    pub(crate) fn verify(
        &self,
        claim: &Claim,
        secret: &str,
        service: &str,
        region: &str,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let invalid = |text: String| Err(Refusal::Invalid(text));
        if claim.service != service {
            return invalid(format!(
                "Credential should be scoped to correct service: '{service}'. "
            ));
        }
        if claim.region != region {
            return invalid("Credential should be scoped to a valid region. ".to_owned());
        }
        let Some(time) = clock::parse_basic(&claim.date) else {
            return Err(Refusal::Incomplete("Date must be in ISO-8601 'basic format'".to_owned()));
        };
        if !claim.date.starts_with(&claim.scope_date) || claim.scope_date.len() != 8 {
            return invalid(
                "Date in Credential scope does not match YYYYMMDD of the date".to_owned(),
            );
        }
        if time + SKEW < now {
            return invalid(format!("Signature expired: {} is now too early", claim.date));
        }
        if time > now + SKEW {
            return invalid(format!("Signature not yet current: {} is still later", claim.date));
        }
        self.check_signed_headers(claim)?;
        let payload = hex(&Sha256::digest(self.body));
        if self.header("x-amz-content-sha256").is_some_and(|stated| stated != payload) {
            return invalid(
                "The value in the X-Amz-Content-SHA256 header does not match".to_owned(),
            );
        }
        if self.sign(claim, secret, &payload) != claim.signature {
            return invalid(MISMATCH.to_owned());
        }
        Ok(())
    }

    /// Host, content type and all of AWS's own headers must be signed.
    fn check_signed_headers(&self, claim: &Claim) -> Result<(), Refusal> {
        let signed = &claim.signed_headers;
        if !signed.is_sorted() {
            return Err(Refusal::Incomplete("SignedHeaders are not in order".to_owned()));
        }
        let needs_signing = |name: &str| {
            name == "host"
                || name == "content-type"
                || (name.starts_with("x-amz-") && name != "x-amz-user-agent")
        };
        let unsigned =
            self.headers.iter().find(|(name, _)| needs_signing(name) && !signed.contains(name));
        if let Some((name, _)) = unsigned {
            return Err(Refusal::Invalid(format!("'{name}' must be a 'SignedHeader'")));
        }
        let absent = signed.iter().find(|name| self.header(name).is_none());
        match absent {
            Some(name) => Err(Refusal::Invalid(format!("signed header '{name}' is missing"))),
            None if !signed.iter().any(|name| name == "host") => {
                Err(Refusal::Invalid("'Host' must be a 'SignedHeader'".to_owned()))
            }
            None => Ok(()),
        }
    }

    fn sign(&self, claim: &Claim, secret: &str, payload: &str) -> String {
        let scope = format!("{}/{}/{}/aws4_request", claim.scope_date, claim.region, claim.service);
        let request = hex(&Sha256::digest(self.canonical(claim, payload)));
        let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{request}", claim.date);
        let mut key = hmac(format!("AWS4{secret}").as_bytes(), claim.scope_date.as_bytes());
        for part in [claim.region.as_str(), &claim.service, "aws4_request"] {
            key = hmac(&key, part.as_bytes());
        }
        hex(&hmac(&key, text.as_bytes()))
    }

    fn canonical(&self, claim: &Claim, payload: &str) -> String {
        let mut headers = String::new();
        for name in &claim.signed_headers {
            headers.push_str(name);
            headers.push(':');
            headers.push_str(&self.header(name).unwrap_or_default());
            headers.push('\n');
        }
        let path = if self.path.is_empty() { "/" } else { self.path };
        format!(
            "{}\n{}\n{}\n{headers}\n{}\n{payload}",
            self.method,
            // The received path is encoded once already; services other than S3 encode it a second
            // time.
            escape(path.as_bytes(), true),
            canonical_query(self.query),
            claim.signed_headers.join(";"),
        )
    }
}

/// The parameters decoded, re-encoded and sorted. A `+` is a space, as for the official signers.
fn canonical_query(query: &str) -> String {
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let again = |text: &str| escape(&form_decode(text), false);
        (again(name), again(value))
    });
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Decodes a part of a query or form.
pub(crate) fn form_decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digit = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let (byte, length) = match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => (u8::try_from(high << 4 | low).unwrap_or(b'%'), 2),
            (b'+', ..) => (b' ', 0),
            _ => (*first, 0),
        };
        decoded.push(byte);
        rest = tail.get(length..).unwrap_or_default();
    }
    decoded
}

/// Percent-encodes everything except unreserved characters.
fn escape(bytes: &[u8], keep_slash: bool) -> String {
    let mut escaped = String::new();
    for byte in bytes {
        let plain =
            byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || (keep_slash && *byte == b'/');
        if plain {
            escaped.push(char::from(*byte));
        } else {
            escaped.push('%');
            escaped.push_str(&hex(&[*byte]).to_ascii_uppercase());
        }
    }
    escaped
}

/// Trims spaces at both ends and collapses those within.
fn trim(value: &str) -> String {
    value.split([' ', '\t']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    // Cannot fail: HMAC accepts keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

/// Maximum deviation of a request's date.
const SKEW: Duration = Duration::from_mins(5);

const MISMATCH: &str = "The request signature we calculated does not match the signature you provided. Check \
                        your AWS Secret Access Key and signing method. Consult the service documentation for \
                        details.";

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const HOST: (&str, &str) = ("host", "example.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");

    fn check(
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        signed: &str,
        signature: &str,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders={signed}, Signature={signature}"
        );
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        headers.push(("authorization".to_owned(), authorization));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Received { method, path, query, headers: &headers, body };
        let now = clock::parse_basic("20150830T124000Z").unwrap();
        request.verify(&request.claim()?, SECRET, "service", "us-east-1", now)
    }

    /// From AWS's signature version 4 test suite, with its names.
    #[test]
    fn published_signatures_are_accepted() {
        type Case<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);
        let cases: &[Case<'_>] = &[
            (
                "get-vanilla",
                "GET",
                "/",
                &[HOST, DATE],
                "host;x-amz-date",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "/?Param2=value2&Param1=value1",
                &[HOST, DATE],
                "host;x-amz-date",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-vanilla-empty-query-key",
                "GET",
                "/?Param1=value1",
                &[HOST, DATE],
                "host;x-amz-date",
                "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb",
            ),
            (
                "get-unreserved",
                "GET",
                "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
                &[HOST, DATE],
                "host;x-amz-date",
                "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
            ),
            (
                "get-header-value-trim",
                "GET",
                "/",
                &[HOST, ("my-header1", " value1"), ("my-header2", " \"a   b   c\""), DATE],
                "host;my-header1;my-header2;x-amz-date",
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
            (
                "get-header-value-order",
                "GET",
                "/",
                &[
                    HOST,
                    ("my-header1", "value4"),
                    ("my-header1", "value1"),
                    ("my-header1", "value3"),
                    ("my-header1", "value2"),
                    DATE,
                ],
                "host;my-header1;x-amz-date",
                "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
            ),
            (
                "post-vanilla",
                "POST",
                "/",
                &[HOST, DATE],
                "host;x-amz-date",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
        ];
        for (name, method, target, headers, signed, signature) in cases {
            assert_eq!(check(method, target, headers, signed, signature, b""), Ok(()), "{name}");
            let other = signature.replace('a', "b");
            let refused = check(method, target, headers, signed, &other, b"");
            assert!(matches!(refused, Err(Refusal::Invalid(_))), "{name}: {refused:?}");
        }
    }

    #[test]
    fn whatever_is_changed_is_noticed() {
        let signature = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
        let signed = "host;x-amz-date";
        let changes: [(&str, Result<(), Refusal>); 7] = [
            ("method", check("PUT", "/", &[HOST, DATE], signed, signature, b"")),
            ("path", check("GET", "/x", &[HOST, DATE], signed, signature, b"")),
            ("query", check("GET", "/?x", &[HOST, DATE], signed, signature, b"")),
            ("body", check("GET", "/", &[HOST, DATE], signed, signature, b"x")),
            ("host", check("GET", "/", &[("host", "x"), DATE], signed, signature, b"")),
            (
                "header that must be signed",
                check("GET", "/", &[HOST, DATE, ("x-amz-target", "x")], signed, signature, b""),
            ),
            ("host unsigned", check("GET", "/", &[HOST, DATE], "x-amz-date", signature, b"")),
        ];
        for (name, result) in changes {
            assert!(matches!(result, Err(Refusal::Invalid(_))), "{name}: {result:?}");
        }
        let late = [HOST, ("x-amz-date", "20150830T123400Z")];
        let Err(Refusal::Invalid(text)) = check("GET", "/", &late, signed, signature, b"") else {
            panic!("an old signature was accepted");
        };
        assert!(text.starts_with("Signature expired"), "{text}");
        assert_eq!(
            Received { method: "GET", path: "/", query: "", headers: &[], body: b"" }.claim(),
            Err(Refusal::Missing)
        );
    }

    #[test]
    fn queries_are_brought_into_one_form() {
        for (query, expected) in [
            ("", ""),
            ("b=2&a=1", "a=1&b=2"),
            ("a", "a="),
            ("role=x&cell-number=AA+b/c==", "cell-number=AA%20b%2Fc%3D%3D&role=x"),
            ("a=%2f%2B", "a=%2F%2B"),
            ("a=%zz", "a=%25zz"),
        ] {
            assert_eq!(canonical_query(query), expected);
        }
    }
}
