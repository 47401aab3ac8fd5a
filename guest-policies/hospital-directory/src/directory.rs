//! The API's bodies, as far as the policy reads them.

use serde::Deserialize;
use triage_policy::{Response, json};

/// 400 to a create.
pub const BATCH_FULL: &str = "Batch cannot exceed 20 hospitals";
/// 400 to an activation.
pub const ALREADY_ACTIVE: &str = "Cannot activate batch: one or more hospitals in the batch are already active";
/// 404 to a batch without hospitals.
pub const BATCH_EMPTY: &str = "No hospitals found with the specified batch ID";
/// 404 to a path that the server does not know.
pub const NO_ROUTE: &str = "Not Found";

/// What a caller asks to be created.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    pub name: String,
    pub address: String,
    #[serde(default)]
    pub phone: Option<String>,
    #[serde(default)]
    pub creation_batch_id: Option<String>,
}

/// A hospital as the server has it.
#[derive(Debug, Deserialize)]
pub struct Hospital {
    pub id: i64,
    pub name: String,
    pub address: String,
    #[serde(default)]
    pub phone: Option<String>,
    #[serde(default)]
    pub creation_batch_id: Option<String>,
    pub active: bool,
    pub created_at: String,
}

impl Hospital {
    /// A name that survives a restart of the server, where ids begin at 1 again: batch, id and time of creation.
    pub fn claim(&self) -> Option<String> {
        let batch = self.creation_batch_id.as_deref()?;
        Some(format!("{batch}/{}/{}", self.id, self.created_at))
    }

    /// Whether it is what was wanted. The server trims text before it keeps it.
    pub fn is(&self, wanted: &Wanted) -> bool {
        self.name.trim() == wanted.name.trim()
            && self.address.trim() == wanted.address.trim()
            && self.phone.as_deref().map(str::trim) == wanted.phone.as_deref().map(str::trim)
    }
}

/// The request of a create, if it can be read and is safe to put into a path.
pub fn wanted(body: &[u8]) -> Option<Wanted> {
    json::from_slice(body).ok()
}

/// The batch that a create names, if it has the form of a UUID.
pub fn batch(wanted: &Wanted) -> Option<&str> {
    wanted.creation_batch_id.as_deref().filter(|batch| is_uuid(batch))
}

/// The batch in the path of an activation.
pub fn batch_of_path(path: &str) -> Option<&str> {
    let batch = path.strip_prefix("/hospitals/batch/")?.split(['/', '?']).next()?;
    is_uuid(batch).then_some(batch)
}

fn is_uuid(text: &str) -> bool {
    matches!(text.len(), 32 | 36) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// The hospital that a create's answer names.
pub fn hospital(response: &Response) -> Option<Hospital> {
    whole(response).and_then(|body| json::from_slice(body).ok())
}

/// The hospitals of a batch's answer.
pub fn hospitals(response: &Response) -> Option<Vec<Hospital>> {
    whole(response).and_then(|body| json::from_slice(body).ok())
}

/// How many an activation says it activated.
pub fn activated(response: &Response) -> Option<u64> {
    #[derive(Deserialize)]
    struct Activated {
        activated_count: u64,
    }
    whole(response).and_then(|body| json::from_slice::<Activated>(body).ok()).map(|answer| answer.activated_count)
}

/// The text of an error.
pub fn detail(response: &Response) -> Option<String> {
    #[derive(Deserialize)]
    struct Detail {
        detail: String,
    }
    whole(response).and_then(|body| json::from_slice::<Detail>(body).ok()).map(|error| error.detail)
}

/// A part of an answer proves nothing.
fn whole(response: &Response) -> Option<&[u8]> {
    response.complete.then_some(&response.body)
}
