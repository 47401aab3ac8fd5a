//! What a browser holds instead of a token: who signed in, as what, and until when, sealed with a key of this process.
//!
//! Nothing is kept here, so that nobody fills it. Changed tokens and a restart end every session.

use super::access::Role;
use ring::{hmac, rand::SystemRandom};
use std::time::Duration;

/// The cookie's name.
pub(super) const COOKIE: &str = "triage-session";
/// A shift, and a bit.
pub(super) const LIFE: Duration = Duration::from_hours(12);

/// Seals and opens cookies.
pub(super) struct Sessions {
    key: hmac::Key,
}

impl Sessions {
    /// With a key that nobody knows; none where the system gives no chance.
    pub(super) fn new() -> Option<Self> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok().map(|key| Self { key })
    }

    /// The cookie's value for somebody who signed in now.
    pub(super) fn seal(&self, role: Role, now_unix_ms: u64) -> String {
        let until = now_unix_ms.saturating_add(crate::clock::millis(LIFE));
        let claim = format!("{}.{until}", role.name());
        let tag = hmac::sign(&self.key, claim.as_bytes());
        format!("{claim}.{}", hex(tag.as_ref()))
    }

    /// What the holder of a cookie may do. None: it was not sealed here, or its time is over.
    pub(super) fn open(&self, value: &str, now_unix_ms: u64) -> Option<Role> {
        let (claim, tag) = value.rsplit_once('.')?;
        hmac::verify(&self.key, claim.as_bytes(), &bytes(tag)?).ok()?;
        let (role, until) = claim.split_once('.')?;
        let until: u64 = until.parse().ok()?;
        let role = [Role::Read, Role::Write].into_iter().find(|own| own.name() == role)?;
        (now_unix_ms < until).then_some(role)
    }
}

/// The value of a cookie among those that a request brings.
pub(super) fn cookie(headers: &http::HeaderMap) -> Option<&str> {
    let all = headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A tag as it was written; none for anything else.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, HeaderValue, header};

    #[test]
    fn a_session_holds_its_role_until_its_time_is_over() {
        let sessions = Sessions::new().unwrap();
        let value = sessions.seal(Role::Read, 1000);
        assert_eq!(sessions.open(&value, 1000), Some(Role::Read));
        let end = 1000 + crate::clock::millis(LIFE);
        assert_eq!(sessions.open(&value, end - 1), Some(Role::Read));
        assert_eq!(sessions.open(&value, end), None, "its time is over");
        assert_eq!(sessions.open(&sessions.seal(Role::Write, 1000), 1000), Some(Role::Write));
    }

    #[test]
    fn what_was_not_sealed_here_opens_nothing() {
        let sessions = Sessions::new().unwrap();
        let value = sessions.seal(Role::Read, 1000);
        let raised = value.replace("read", "write");
        let longer = value.replacen("read.4", "read.9", 1);
        let cut = &value[..value.len() - 2];
        for wrong in [&*raised, &*longer, cut, "", ".", "read.9999999999999.", "write.9999999999999.00"] {
            assert!(wrong != value && sessions.open(wrong, 1000).is_none(), "{wrong}");
        }
        assert_eq!(Sessions::new().unwrap().open(&value, 1000), None, "another process's");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        assert_eq!(cookie(&headers), None);
        headers.append(header::COOKIE, HeaderValue::from_static("a=b; not-triage-session=x"));
        headers.append(header::COOKIE, HeaderValue::from_static("theme=dark; triage-session=read.1.2;c"));
        assert_eq!(cookie(&headers), Some("read.1.2"));
    }
}
