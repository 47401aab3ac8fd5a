//! Browser sessions: a cookie with role, nonce and expiry, signed with a random key of this process.
//!
//! The process stores only sessions that were ended before they expired, at most [`MAX_ENDED`], so that callers cannot fill its memory.
//! Changed tokens and a restart end every session.

use super::role::Role;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use parking_lot::Mutex;
use ring::{
    hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use std::{collections::HashMap, time::Duration};

pub(super) const COOKIE: &str = "triage-session";
/// A working shift and some reserve.
pub(super) const SESSION_LIFETIME: Duration = Duration::from_hours(12);

/// Maximum stored sessions that ended early. If there are more, all sessions end.
const MAX_ENDED: usize = 1024;

/// Signs and verifies session cookies.
pub(super) struct Sessions {
    random: SystemRandom,
    state: Mutex<State>,
}

struct State {
    key: hmac::Key,
    /// Claims of sessions that ended early, with their expiry.
    ended: HashMap<String, u64>,
}

/// The contents of a cookie.
struct Claim<'a> {
    /// The cookie without its tag, unique for each session.
    text: &'a str,
    role: Role,
    until: u64,
}

impl Sessions {
    /// Generates a random key; none if the system has no randomness.
    pub(super) fn new() -> Option<Self> {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).ok()?;
        Some(Self { random, state: Mutex::new(State { key, ended: HashMap::new() }) })
    }

    /// The cookie value of a new session; none if the system has no randomness.
    pub(super) fn seal(&self, role: Role, now_unix_ms: u64) -> Option<String> {
        let mut nonce = [0; 8];
        self.random.fill(&mut nonce).ok()?;
        let until = now_unix_ms.saturating_add(crate::clock::millis(SESSION_LIFETIME));
        let claim = format!("{}.{until}.{}", role.name(), HEXLOWER.encode(&nonce));
        let tag = hmac::sign(&self.state.lock().key, claim.as_bytes());
        Some(format!("{claim}.{}", HEXLOWER.encode(tag.as_ref())))
    }

    /// The role of a cookie; none if it was not signed here, has expired, or was ended.
    pub(super) fn open(&self, value: &str, now_unix_ms: u64) -> Option<Role> {
        self.state.lock().claim(value, now_unix_ms).map(|claim| claim.role)
    }

    /// Ends a session, so that copies of its cookie are invalid too.
    pub(super) fn end(&self, value: &str, now_unix_ms: u64) {
        let mut state = self.state.lock();
        let Some(Claim { text, until, .. }) = state.claim(value, now_unix_ms) else { return };
        state.ended.retain(|_, until| now_unix_ms < *until);
        if state.ended.len() >= MAX_ENDED
            && let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &self.random)
        {
            state.key = key;
            state.ended.clear();
        }
        state.ended.insert(text.to_owned(), until);
    }
}

impl State {
    fn claim<'a>(&self, value: &'a str, now_unix_ms: u64) -> Option<Claim<'a>> {
        let (text, tag) = value.rsplit_once('.')?;
        hmac::verify(&self.key, text.as_bytes(), &HEXLOWER_PERMISSIVE.decode(tag.as_bytes()).ok()?).ok()?;
        let mut parts = text.split('.');
        let (role, until) = (parts.next()?, parts.next()?.parse().ok()?);
        let role = [Role::Read, Role::Write].into_iter().find(|own| own.name() == role)?;
        (now_unix_ms < until && !self.ended.contains_key(text)).then_some(Claim { text, role, until })
    }
}

/// The session cookie of a request, if any.
pub(super) fn cookie(headers: &http::HeaderMap) -> Option<&str> {
    let all = headers.get_all(http::header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, HeaderValue, header};

    #[test]
    fn a_session_holds_its_role_until_its_time_is_over() {
        let sessions = Sessions::new().unwrap();
        let value = sessions.seal(Role::Read, 1000).unwrap();
        assert_eq!(sessions.open(&value, 1000), Some(Role::Read));
        let end = 1000 + crate::clock::millis(SESSION_LIFETIME);
        assert_eq!(sessions.open(&value, end - 1), Some(Role::Read));
        assert_eq!(sessions.open(&value, end), None, "its time is over");
        assert_eq!(sessions.open(&sessions.seal(Role::Write, 1000).unwrap(), 1000), Some(Role::Write));
    }

    #[test]
    fn sessions_open_only_cookies_that_they_sealed() {
        let sessions = Sessions::new().unwrap();
        let value = sessions.seal(Role::Read, 1000).unwrap();
        let raised = value.replace("read", "write");
        let longer = value.replacen("read.4", "read.9", 1);
        let cut = &value[..value.len() - 2];
        for wrong in [&*raised, &*longer, cut, "", ".", "read.9999999999999.", "write.9999999999999.00"] {
            assert!(wrong != value && sessions.open(wrong, 1000).is_none(), "{wrong}");
        }
        assert_eq!(Sessions::new().unwrap().open(&value, 1000), None, "another process's");
    }

    #[test]
    fn a_session_that_was_ended_opens_nothing() {
        let sessions = Sessions::new().unwrap();
        let [one, two] = std::array::from_fn(|_| sessions.seal(Role::Read, 1000).unwrap());
        assert_ne!(one, two, "two sign-ins at one moment");
        sessions.end(&one, 1000);
        assert_eq!((sessions.open(&one, 1000), sessions.open(&two, 1000)), (None, Some(Role::Read)));
        sessions.end("read.9999999999999.00.00", 1000);
        assert_eq!(sessions.state.lock().ended.len(), 1, "what was not sealed here is not kept");
    }

    #[test]
    fn ended_sessions_are_kept_until_their_time_and_few_of_them() {
        let sessions = Sessions::new().unwrap();
        let other = sessions.seal(Role::Write, 1000).unwrap();
        for _ in 0..MAX_ENDED {
            sessions.end(&sessions.seal(Role::Read, 1000).unwrap(), 1000);
        }
        assert_eq!(sessions.open(&other, 1000), Some(Role::Write));
        let last = sessions.seal(Role::Read, 1000).unwrap();
        sessions.end(&last, 1000);
        assert_eq!((sessions.open(&last, 1000), sessions.open(&other, 1000)), (None, None), "too many: all end");
        let later = 2000 + crate::clock::millis(SESSION_LIFETIME);
        sessions.end(&sessions.seal(Role::Read, later).unwrap(), later);
        assert_eq!(sessions.state.lock().ended.len(), 1, "those whose time is over are forgotten");
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
