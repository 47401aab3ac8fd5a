//! The admin web page at the root: an HTML shell with inline style and script, and no external resources.

use super::{AdminState, auth::Entry, response::Refusal, role::Role, session};
use axum::{
    Form,
    extract::{Request, State, rejection::FormRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use std::fmt;

const SHELL: &str = include_str!("page/shell.html");
const SIGN_IN: &str = include_str!("page/sign-in.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = concat!(
    include_str!("page/dom.js"),
    include_str!("page/plot.js"),
    include_str!("page/act.js"),
    include_str!("page/conditions.js"),
    include_str!("page/breakers.js"),
    include_str!("page/upstreams.js"),
    include_str!("page/panels.js"),
    include_str!("page/live.js")
);

/// The page for signed-in callers, else the sign-in form.
pub(super) async fn root(
    State(state): State<AdminState>,
    peer: axum::Extension<super::listen::Peer>,
    request: Request,
) -> Response {
    match state.access().enter(request.method(), request.headers(), peer.0.0.ip()) {
        Ok(Entry { role: Some(role), by_session }) => shell(role, by_session),
        Ok(Entry { role: None, .. }) => sign_in(StatusCode::UNAUTHORIZED, ""),
        Err(refusal) => refusal.into_response(),
    }
}

fn shell(role: Role, by_session: bool) -> Response {
    let yes_no = if by_session { "yes" } else { "no" };
    let version = env!("CARGO_PKG_VERSION");
    rendered(
        StatusCode::OK,
        SHELL,
        &[("role", role.name()), ("session", yes_no), ("version", version), ("script", SCRIPT)],
    )
}

fn sign_in(status: StatusCode, error: &str) -> Response {
    rendered(status, SIGN_IN, &[("error", error)])
}

/// The fields of the sign-in form.
#[derive(Deserialize)]
pub(super) struct Given {
    token: String,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given")
    }
}

/// Signs in: exchanges a token for a cookie that scripts cannot read and that requests from other sites do not carry.
pub(super) async fn enter(
    State(state): State<AdminState>,
    peer: axum::Extension<super::listen::Peer>,
    headers: HeaderMap,
    given: Result<Form<Given>, FormRejection>,
) -> Response {
    let access = state.access();
    if let Err(refusal) = access.enter(&http::Method::POST, &headers, peer.0.0.ip()) {
        return refusal.into_response();
    }
    let Ok(Form(given)) = given else {
        return Refusal::Malformed("the body must be a form with a token".to_owned()).into_response();
    };
    let opened = access.session(given.token.trim().as_bytes(), state.host.shared.clock.unix_ms());
    let Some((role, value)) = opened else {
        if access.worth_a_line() {
            tracing::warn!(target: "triage::audit", peer = %peer.0.0, "a sign-in was refused");
        }
        return sign_in(StatusCode::UNAUTHORIZED, "This token is not a token of this host.");
    };
    tracing::info!(target: "triage::audit", peer = %peer.0.0, role = role.name(), "signed in");
    to_root(&cookie(&value, session::SESSION_LIFETIME.as_secs(), state.is_encrypted))
}

/// Signs out.
pub(super) async fn leave(
    State(state): State<AdminState>,
    peer: axum::Extension<super::listen::Peer>,
    headers: HeaderMap,
) -> Response {
    let access = state.access();
    if let Err(refusal) = access.enter(&http::Method::POST, &headers, peer.0.0.ip()) {
        return refusal.into_response();
    }
    access.sign_out(&headers);
    to_root(&cookie("", 0, state.is_encrypted))
}

fn cookie(value: &str, seconds: u64, is_encrypted: bool) -> String {
    let secure = if is_encrypted { "; Secure" } else { "" };
    format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", session::COOKIE)
}

fn to_root(cookie: &str) -> Response {
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

/// Fills in a page's template. Only values fixed at build time or start go into the HTML. Measured values arrive later as JSON and are
/// shown as text.
fn rendered(status: StatusCode, page: &str, values: &[(&str, &str)]) -> Response {
    let mut random = [0_u8; 16];
    if SystemRandom::new().fill(&mut random).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let nonce = HEXLOWER.encode(&random);
    let mut html = page.replace("{{style}}", STYLE).replace("{{nonce}}", &nonce);
    for (name, value) in values {
        html = html.replace(&format!("{{{{{name}}}}}"), value);
    }
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // The page's own requests must state their origin; `no-referrer` would make it `null`.
        (header::REFERRER_POLICY, "same-origin"),
        (http::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (http::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content security policy allows inline code only with the nonce, and nothing external.
    #[test]
    fn the_page_asks_for_nothing_that_its_policy_forbids() {
        for page in [SHELL, SIGN_IN, STYLE, SCRIPT] {
            for forbidden in
                [" style=\"", " onclick=\"", "javascript:", "http-equiv", "@import", "url(", "innerHTML", "eval("]
            {
                assert!(!page.contains(forbidden), "{forbidden}");
            }
            let others = page.match_indices("http").map(|(at, _)| &page[at..page.len().min(at + 30)]);
            let others: Vec<&str> =
                others.filter(|text| text.contains("://") && !text.contains("www.w3.org")).collect();
            assert!(others.is_empty(), "{others:?}");
        }
        assert_eq!(
            SHELL.matches("<script").count(),
            SHELL.matches("<script type=\"module\" nonce=\"{{nonce}}\">").count()
        );
    }
}
