//! The headers of a caller about repetitions of its request: `Idempotency-Key` and `Triage-Maybe-Sent`.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;

/// The header that carries the key (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The header by which a caller declares that it may have sent this request before, through a host that has no record of it any more.
pub const MAYBE_SENT: HeaderName = HeaderName::from_static("triage-maybe-sent");

/// The maximum length of a key, in characters.
pub const MAX_KEY_LEN: usize = 255;

/// A caller's idempotency key: 1 to 255 visible ASCII characters. Callers may use secrets as keys, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

/// A request that carries a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed {
    /// The key.
    pub key: Key,
    /// Whether the caller may have sent the request before. A key without a record then begins in Reconcile. It is no proof of a
    /// send: see [`super::record::RecordBegin::Reconcile`].
    pub maybe_sent: bool,
}

/// Why a header is invalid. The texts are public: each is the detail of the 400 that the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Several `Idempotency-Key` headers.
    #[error("the request has {count} idempotency-key headers; send exactly one")]
    Repeated {
        /// The number of headers.
        count: usize,
    },
    /// The key is empty.
    #[error("the idempotency-key is empty; send 1 to 255 visible ascii characters, such as a uuid")]
    Empty,
    /// The key is too long.
    #[error("the idempotency-key has {len} characters; send 1 to 255, such as a uuid")]
    TooLong {
        /// How many; for a quoted key the count before its escapes are resolved.
        len: usize,
    },
    /// The key has an invalid character.
    #[error(
        "the idempotency-key has an invalid byte at position {at}; send visible ascii without spaces, and quote a key \
         with a comma, semicolon, quote or backslash"
    )]
    Character {
        /// Where, from 0, in the header's value.
        at: usize,
    },
    /// A quoted string whose end is not the end of the value.
    #[error("the idempotency-key is not one well-formed quoted string; close the quote and send nothing after it")]
    Quoting,
    /// `Triage-Maybe-Sent` with another value, or several of them.
    #[error(
        "triage-maybe-sent must be a single header with the value true, ?1 or 1; leave it out if the request was \
         never sent"
    )]
    MaybeSent,
    /// `Triage-Maybe-Sent` without an idempotency key.
    #[error("triage-maybe-sent needs the idempotency-key of the earlier send; add it")]
    MaybeSentWithoutKey,
}

impl Keyed {
    /// Reads both headers. None without a key.
    ///
    /// # Errors
    /// [`KeyError`] says which header is malformed and the remedy.
    pub fn parse(headers: &HeaderMap) -> Result<Option<Self>, KeyError> {
        let key = Key::parse(headers)?;
        match (key, maybe_sent(headers)?) {
            (Some(key), maybe_sent) => Ok(Some(Self { key, maybe_sent })),
            (None, false) => Ok(None),
            (None, true) => Err(KeyError::MaybeSentWithoutKey),
        }
    }
}

impl Key {
    /// Reads the key: a quoted string (RFC 8941 section 3.3.3), or a bare word as most clients send it. `abc` and `"abc"` are the same key.
    ///
    /// # Errors
    /// [`KeyError`] if there are several headers, or the value is no key.
    pub fn parse(headers: &HeaderMap) -> Result<Option<Self>, KeyError> {
        match headers.get_all(&IDEMPOTENCY_KEY).iter().count() {
            0 => Ok(None),
            1 => headers.get(&IDEMPOTENCY_KEY).map(Self::from_value).transpose(),
            count => Err(KeyError::Repeated { count }),
        }
    }

    /// The key's characters, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_value(value: &HeaderValue) -> Result<Self, KeyError> {
        // A key of the maximum length takes at most twice that length and two quotes: a longer value is refused unread.
        let bytes = value.as_bytes();
        if bytes.len() > 2 * MAX_KEY_LEN + 2 {
            return Err(KeyError::TooLong { len: bytes.len() });
        }
        let characters = match bytes {
            [b'"', quoted @ ..] => unquote(quoted)?,
            bare => bare_characters(bare)?,
        };
        match characters.len() {
            0 => Err(KeyError::Empty),
            1..=MAX_KEY_LEN => Ok(Self(characters.into_boxed_str())),
            len => Err(KeyError::TooLong { len }),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} characters)", self.0.len())
    }
}

/// A bare key must not contain a comma, by which a proxy joins two headers, or a semicolon, which begins parameters.
fn bare_characters(bytes: &[u8]) -> Result<String, KeyError> {
    let mut key = String::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' | b'\\' | b',' | b';' => return Err(KeyError::Character { at }),
            0x21..=0x7e => key.push(char::from(*byte)),
            _ => return Err(KeyError::Character { at }),
        }
    }
    Ok(key)
}

/// The characters of an RFC 8941 string whose opening quote has been read.
fn unquote(bytes: &[u8]) -> Result<String, KeyError> {
    let mut key = String::with_capacity(bytes.len());
    let mut rest = bytes.iter().enumerate();
    while let Some((index, byte)) = rest.next() {
        match byte {
            b'"' => return if rest.next().is_none() { Ok(key) } else { Err(KeyError::Quoting) },
            b'\\' => match rest.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => key.push(char::from(*escaped)),
                _ => return Err(KeyError::Quoting),
            },
            0x21..=0x7e => key.push(char::from(*byte)),
            _ => return Err(KeyError::Character { at: index + 1 }),
        }
    }
    Err(KeyError::Quoting)
}

fn maybe_sent(headers: &HeaderMap) -> Result<bool, KeyError> {
    let mut values = headers.get_all(&MAYBE_SENT).iter();
    match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None, _) => Ok(false),
        (Some(b"true" | b"?1" | b"1"), None) => Ok(true),
        _ => Err(KeyError::MaybeSent),
    }
}

#[cfg(test)]
#[path = "key/tests.rs"]
mod tests;
