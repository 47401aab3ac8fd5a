//! Authentication and authorization: bearer tokens with a role each, a request quota, and protection against requests from other sites.

use super::{
    AdminState,
    listen::Peer,
    quotas::{Asker, Quotas},
    response::Refusal,
    role::Role,
    session::{self, Sessions},
};
use crate::{
    bounded_file,
    clock::{Clock, Timestamp},
    config::settings::{self, READ_TOKEN, WRITE_TOKEN},
    secret::TokenSource,
};
use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::Response,
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use std::{io, net::IpAddr, path::PathBuf, time::Duration};
use subtle::ConstantTimeEq as _;

/// Minimum characters of a token; a shorter one can be guessed.
const MIN_TOKEN_CHARS: usize = 16;
/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token file cannot be read.
    #[error("the token file {} ({key}) cannot be read; it must hold the token", path.display())]
    File {
        /// The configuration key that names the file.
        key: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The token is too short, or not one word.
    #[error(
        "the token of {key} must be one word of at least {MIN_TOKEN_CHARS} printable ASCII characters; make one with `openssl rand -hex 32`"
    )]
    Weak {
        /// The key or variable that holds the token.
        key: &'static str,
    },
    /// Both roles have the same token.
    #[error("the read token and the write token are equal; create two different tokens, or leave the read token out")]
    Same,
}

/// A token's hash. The length is fixed, so that the time of a comparison does not depend on the token.
type Hash = [u8; 32];

#[derive(Debug)]
struct Spent {
    quotas: Quotas,
    /// When the log last mentioned a refused caller.
    logged_at: Timestamp,
}

/// Authenticates and limits every request before its handler runs.
pub(super) struct Access {
    clock: Clock,
    read: Option<Hash>,
    write: Option<Hash>,
    sessions: Option<Sessions>,
    /// Whether TLS requires a client certificate.
    knows_callers: bool,
    spent: Mutex<Spent>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Access {
    /// Loads the tokens.
    ///
    /// # Errors
    /// [`TokenError`]
    pub(super) fn of(settings: &settings::Admin, clock: Clock) -> Result<Self, TokenError> {
        let read = settings.read_token.as_ref().map(|source| hash(source, "admin.read_token_file", READ_TOKEN));
        let write = settings.write_token.as_ref().map(|source| hash(source, "admin.write_token_file", WRITE_TOKEN));
        let (read, write) = (read.transpose()?, write.transpose()?);
        if read.is_some() && read == write {
            return Err(TokenError::Same);
        }
        let spent = Spent { quotas: Quotas::default(), logged_at: Timestamp::default() };
        let knows_callers = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        Ok(Self { clock, read, write, sessions: Sessions::new(), knows_callers, spent: Mutex::new(spent) })
    }

    /// Whether both have the same tokens.
    pub(super) fn has_the_tokens_of(&self, other: &Self) -> bool {
        self.read == other.read && self.write == other.write
    }

    /// Whether no token is configured. The listener is then reachable from this machine only.
    fn is_open(&self) -> bool {
        self.read.is_none() && self.write.is_none()
    }

    /// The permissions of a request, by its bearer token or its session cookie.
    fn entry(&self, headers: &HeaderMap) -> Entry {
        if self.is_open() {
            return Entry { role: Some(Role::Write), by_session: false };
        }
        match headers.get(header::AUTHORIZATION) {
            Some(value) => {
                let bearer = value.as_bytes().split_at_checked(7);
                let token = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
                Entry { role: token.and_then(|(_, token)| self.role(token.trim_ascii())), by_session: false }
            }
            None => {
                let now = self.clock.unix_ms();
                let sealed = session::cookie(headers).zip(self.sessions.as_ref());
                let role = sealed.and_then(|(value, sessions)| sessions.open(value, now));
                Entry { role, by_session: role.is_some() }
            }
        }
    }

    /// The role of a token.
    fn role(&self, token: &[u8]) -> Option<Role> {
        let given: Hash = Sha256::digest(token).into();
        // Always compare with both, so that the time reveals nothing about either.
        let is = |own: &Option<Hash>| own.is_some_and(|own| own.ct_eq(&given).into());
        match (is(&self.read), is(&self.write)) {
            (_, true) => Some(Role::Write),
            (true, false) => Some(Role::Read),
            (false, false) => None,
        }
    }

    /// The role of a token, and a session cookie for a browser.
    pub(super) fn session(&self, token: &[u8], now_unix_ms: u64) -> Option<(Role, String)> {
        let role = if self.is_open() { Role::Write } else { self.role(token)? };
        Some((role, self.sessions.as_ref()?.seal(role, now_unix_ms)?))
    }

    /// Ends the request's session, if it has one.
    pub(super) fn sign_out(&self, headers: &HeaderMap) {
        if let (Some(value), Some(sessions)) = (session::cookie(headers), &self.sessions) {
            sessions.end(value, self.clock.unix_ms());
        }
    }

    /// Whether the request's credentials still permit reading.
    pub(super) fn may_still_read(&self, headers: &HeaderMap) -> bool {
        self.entry(headers).role.is_some()
    }

    /// Whether to log a refused caller now: at most one per second, so that refused callers cannot fill the log.
    pub(super) fn worth_a_line(&self) -> bool {
        let now = self.clock.now();
        let mut spent = self.spent.lock();
        let worth = now.since(spent.logged_at) >= Duration::from_secs(1);
        if worth {
            spent.logged_at = now;
        }
        worth
    }

    /// Authenticates a request. The role is left for the caller to check.
    ///
    /// # Errors
    /// [`Refusal`] for requests that no role permits: over quota, with a foreign host name, or sent by another site.
    pub(super) fn enter(&self, method: &Method, headers: &HeaderMap, peer: IpAddr) -> Result<Entry, Refusal> {
        let entry = self.entry(headers);
        // Without tokens, every caller has the role, but none has proven an identity.
        let asker = match entry.role {
            Some(role) if !self.is_open() => Asker::Bearer(role),
            _ => Asker::Address(peer),
        };
        let now = self.clock.now();
        if let Err(retry_after) = self.spent.lock().quotas.admit(asker, now) {
            return Err(Refusal::TooMany { retry_after });
        }
        if self.is_open() && !self.knows_callers && !names_this_machine(headers) {
            return Err(Refusal::Rebound);
        }
        let acts = method != Method::GET && method != Method::HEAD;
        // A browser attaches the cookie to every request. An action by cookie must prove that the admin page sent it.
        if acts && (is_foreign(headers) || entry.by_session && !is_own(headers)) {
            return Err(Refusal::Foreign);
        }
        Ok(entry)
    }

    fn check(&self, method: &Method, headers: &HeaderMap, peer: IpAddr, needed: Role) -> Result<Role, Refusal> {
        match self.enter(method, headers, peer)?.role {
            Some(role) if role >= needed => Ok(role),
            Some(_) => Err(Refusal::ReadOnly),
            None => Err(Refusal::NoToken),
        }
    }
}

/// The result of authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The role; none if the caller has no permissions.
    pub(super) role: Option<Role>,
    /// Whether the role comes from a session cookie.
    pub(super) by_session: bool,
}

fn hash(source: &TokenSource, key: &'static str, variable: &'static str) -> Result<Hash, TokenError> {
    let (text, name) = match source {
        TokenSource::Environment(secret) => (secret.reveal().to_owned(), variable),
        TokenSource::File(path) => {
            let read = bounded_file::read_secret(path);
            (read.map_err(|source| TokenError::File { key, path: path.clone(), source })?, key)
        }
    };
    let token = text.trim();
    if token.len() < MIN_TOKEN_CHARS || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::Weak { key: name });
    }
    Ok(Sha256::digest(token).into())
}

/// Accepts only names of this machine. Without a token, another site could otherwise resolve its own name to this address (DNS rebinding).
fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

fn is_own_origin(headers: &HeaderMap, origin: &str) -> bool {
    let own = text(headers, "host").unwrap_or_default();
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(own))
}

/// Whether a browser sends this request for another site.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    let cross = text(headers, "sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    cross || text(headers, "origin").is_some_and(|origin| !is_own_origin(headers, origin))
}

/// Whether the browser states that the admin page sent the request. A browser that states nothing is too old to trust with a cookie.
fn is_own(headers: &HeaderMap) -> bool {
    let own = text(headers, "sec-fetch-site").is_some_and(|site| site == "same-origin");
    own || text(headers, "origin").is_some_and(|origin| is_own_origin(headers, origin))
}

/// Admits callers that may read.
pub(super) async fn readers(state: State<AdminState>, peer: Extension<Peer>, request: Request, next: Next) -> Response {
    admit(state, peer, request, next, Role::Read).await
}

/// Admits callers that may act.
pub(super) async fn writers(state: State<AdminState>, peer: Extension<Peer>, request: Request, next: Next) -> Response {
    admit(state, peer, request, next, Role::Write).await
}

async fn admit(
    State(state): State<AdminState>,
    Extension(Peer(peer)): Extension<Peer>,
    mut request: Request,
    next: Next,
    needed: Role,
) -> Response {
    let access = state.access();
    match access.check(request.method(), request.headers(), peer.ip(), needed) {
        Ok(role) => {
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(refusal) => {
            if access.worth_a_line() {
                tracing::warn!(target: "triage::audit", %peer, needed = needed.name(), %refusal, "refused");
            }
            axum::response::IntoResponse::into_response(refusal)
        }
    }
}

#[cfg(test)]
#[path = "auth/tests.rs"]
mod tests;
