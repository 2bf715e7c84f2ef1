//! An object's address as text: a process that gets it, by argument, environment or file, can
//! attach to the object.

use std::{fmt, str::FromStr};

use syncd_proto::Endpoint;

/// An object's address: daemon, namespace, key. Its text is one line of printable ASCII without
/// spaces. Any process that knows it, and whose user may use the namespace, can attach.
///
/// ```
/// use syncd_client::Token;
///
/// let text = "syncd:jobs:4d2c1f:/tmp/syncd-1000/syncd.sock";
/// let token: Token = text.parse()?;
/// assert_eq!(token.namespace(), "jobs");
/// assert_eq!(token.to_string(), text);
/// # Ok::<_, syncd_client::TokenError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) endpoint: Endpoint,
    pub(crate) namespace: String,
    pub(crate) key: String,
}

/// The text is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a token: expected syncd:<namespace>:<key>:<socket>")]
pub struct TokenError {
    text: String,
}

impl Token {
    /// The endpoint of the object's daemon.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The namespace, as the client named it; empty for the user's own.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The object's key, which the daemon chose.
    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Debug for Token {
    /// Omits the key: whoever knows it can attach.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("endpoint", &self.endpoint)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = percent_encode(&self.namespace);
        let (key, path) = (percent_encode(&self.key), percent_encode(&self.endpoint.to_string()));
        write!(f, "syncd:{namespace}:{key}:{path}")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parse = || {
            let mut parts = text.strip_prefix("syncd:")?.splitn(3, ':').map(percent_decode);
            let (namespace, key) = (parts.next()?, parts.next()?);
            let endpoint = parts.next()?.parse().ok()?;
            (!key.is_empty()).then_some(Self { endpoint, namespace, key })
        };
        parse().ok_or_else(|| TokenError { text: text.to_owned() })
    }
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | b':' => out.push_str(&format!("%{byte:02X}")),
            byte if byte.is_ascii_graphic() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Undoes percent encoding; an invalid escape stays as it is.
pub(crate) fn percent_decode(text: &str) -> String {
    let hex = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let decoded = if byte == b'%' { bytes.get(at + 1..at + 3).and_then(hex) } else { None };
        out.push(decoded.unwrap_or(byte));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(feature = "serde")]
impl serde::Serialize for Token {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_and_path_survives_a_round_trip() {
        for (namespace, path) in [("", "/a/b.sock"), ("a:b c%41ä\n", "/tmp/sp ace:%2F/ü.sock")] {
            let token = Token {
                endpoint: path.parse().unwrap(),
                namespace: namespace.into(),
                key: "k-1".into(),
            };
            let text = token.to_string();
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            assert_eq!(text.parse(), Ok(token));
        }
    }

    #[test]
    fn an_invalid_token_is_refused() {
        for text in ["", "syncd:", "syncd:a:b", "syncd:a::/x", "http://x", "syncd:a:b:"] {
            assert!(text.parse::<Token>().is_err(), "{text:?}");
        }
    }
}
