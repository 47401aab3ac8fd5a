//! The calls of the API: routing and rate limits.

use super::response;
use bytes::Bytes;
use http::{Method, Response};

/// A call of the hospital directory API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// `GET /`
    Health,
    /// `POST /hospitals/`
    Create,
    /// `GET /hospitals/`
    List,
    /// `GET /hospitals/{id}`
    Get,
    /// `PUT /hospitals/{id}`
    Update,
    /// `DELETE /hospitals/{id}`
    Delete,
    /// `GET /hospitals/batch/{uuid}`
    ListBatch,
    /// `PATCH /hospitals/batch/{uuid}/activate`
    Activate,
    /// `DELETE /hospitals/batch/{uuid}`
    DeleteBatch,
}

impl Call {
    /// Maximum calls by one client address in each window of one minute.
    pub fn limit(self) -> u32 {
        match self {
            Self::Health => 100,
            Self::Create => 30,
            _ => 50,
        }
    }
}

/// The result of routing.
#[derive(Debug)]
pub enum Route<'a> {
    /// A call with its path parameter, not yet validated (empty for a call without one).
    Call(Call, &'a str),
    /// No call matches, and the router responds itself.
    Answered(Response<Bytes>),
}

/// Routes a method and a path.
pub fn route<'a>(method: &Method, path_and_query: &'a str) -> Route<'a> {
    let path = path_and_query.split(['?', '#']).next().unwrap_or_default();
    let calls: (&[(Method, Call)], &str) = match segments(path).as_slice() {
        [""] => (&[(Method::GET, Call::Health)], ""),
        ["hospitals"] => return Route::Answered(response::redirect("/hospitals/")),
        ["hospitals", ""] => (&[(Method::POST, Call::Create), (Method::GET, Call::List)], ""),
        ["hospitals", id] => {
            (&[(Method::GET, Call::Get), (Method::PUT, Call::Update), (Method::DELETE, Call::Delete)], id)
        }
        ["hospitals", "batch", batch] if !batch.is_empty() => {
            (&[(Method::GET, Call::ListBatch), (Method::DELETE, Call::DeleteBatch)], batch)
        }
        ["hospitals", "batch", batch, "activate"] if !batch.is_empty() => (&[(Method::PATCH, Call::Activate)], batch),
        _ => return Route::Answered(response::not_found()),
    };
    match calls.0.iter().find(|(allowed, _)| allowed == method) {
        Some((_, call)) => Route::Call(*call, calls.1),
        None => Route::Answered(response::method_not_allowed(calls.0.iter().map(|(allowed, _)| allowed.as_str()))),
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.strip_prefix('/').unwrap_or(path).split('/').take(6).collect()
}
