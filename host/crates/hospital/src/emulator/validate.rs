//! The server's validation before a handler runs, with its error lists (422).

use super::{
    Request,
    call::Call,
    directory::{Draft, Patch, PhoneChange},
    response,
};
use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// A valid request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// The health check.
    Health,
    /// Create a hospital.
    Create(Draft),
    /// List all hospitals.
    List,
    /// Get a hospital. An integer outside the range of ids becomes 0, which no hospital has.
    Get(u64),
    /// Change a hospital.
    Update(u64, Patch),
    /// Delete a hospital.
    Delete(u64),
    /// List a batch's hospitals.
    ListBatch(Uuid),
    /// Activate a batch.
    Activate(Uuid),
    /// Delete a batch.
    DeleteBatch(Uuid),
}

/// Validates path parameter and body.
///
/// # Errors
/// The 422 response with every error.
pub fn validate(call: Call, parameter: &str, request: &Request) -> Result<Operation, Box<Response<Bytes>>> {
    let mut complaints = Vec::new();
    let operation = match call {
        Call::Health => Some(Operation::Health),
        Call::List => Some(Operation::List),
        Call::Get => hospital_id(parameter, &mut complaints).map(Operation::Get),
        Call::Delete => hospital_id(parameter, &mut complaints).map(Operation::Delete),
        Call::Update => {
            let id = hospital_id(parameter, &mut complaints);
            let patch = object(request, &mut complaints).and_then(|body| patch(&body, &mut complaints));
            id.zip(patch).map(|(id, patch)| Operation::Update(id, patch))
        }
        Call::Create => {
            object(request, &mut complaints).and_then(|body| draft(&body, &mut complaints)).map(Operation::Create)
        }
        Call::ListBatch => batch_id(parameter, &mut complaints).map(Operation::ListBatch),
        Call::Activate => batch_id(parameter, &mut complaints).map(Operation::Activate),
        Call::DeleteBatch => batch_id(parameter, &mut complaints).map(Operation::DeleteBatch),
    };
    match operation {
        Some(operation) if complaints.is_empty() => Ok(operation),
        _ => Err(Box::new(response::json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "detail": complaints })))),
    }
}

type Complaints = Vec<Value>;

fn complaint(kind: &str, location: &[&str], message: &str, input: &Value) -> Value {
    json!({ "type": kind, "loc": location, "msg": message, "input": input })
}

fn hospital_id(text: &str, complaints: &mut Complaints) -> Option<u64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = "Input should be a valid integer, unable to parse string as an integer";
        complaints.push(complaint("int_parsing", &["path", "hospital_id"], message, &json!(text)));
        return None;
    }
    Some(text.parse().unwrap_or(0))
}

fn batch_id(text: &str, complaints: &mut Complaints) -> Option<Uuid> {
    uuid_at(&["path", "batch_id"], text, complaints)
}

fn uuid_at(location: &[&str], text: &str, complaints: &mut Complaints) -> Option<Uuid> {
    Uuid::parse_str(text)
        .map_err(|error| {
            let message = format!("Input should be a valid UUID, {error}");
            complaints.push(complaint("uuid_parsing", location, &message, &json!(text)));
        })
        .ok()
}

/// Parses the body as a JSON object.
fn object(request: &Request, complaints: &mut Complaints) -> Option<Map<String, Value>> {
    if request.body.is_empty() {
        complaints.push(complaint("missing", &["body"], "Field required", &Value::Null));
        return None;
    }
    let json_sent = request.headers.get(header::CONTENT_TYPE).is_none_or(|value| {
        value.to_str().is_ok_and(|text| text.split(';').next().unwrap_or_default().trim().ends_with("json"))
    });
    let parsed = if json_sent {
        serde_json::from_slice(&request.body)
    } else {
        Ok(Value::String(String::from_utf8_lossy(&request.body).into_owned()))
    };
    match parsed {
        Ok(Value::Object(object)) => Some(object),
        Ok(other) => {
            let message = "Input should be a valid dictionary or object to extract fields from";
            complaints.push(complaint("model_attributes_type", &["body"], message, &other));
            None
        }
        Err(error) => {
            complaints.push(json!({ "type": "json_invalid", "loc": ["body", error.column().saturating_sub(1)],
                "msg": "JSON decode error", "input": {}, "ctx": { "error": "Expecting value" } }));
            None
        }
    }
}

fn draft(body: &Map<String, Value>, complaints: &mut Complaints) -> Option<Draft> {
    let name = required(body, "name", complaints);
    let address = required(body, "address", complaints);
    let phone = optional(body, "phone", complaints);
    let batch = match body.get("creation_batch_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => uuid_at(&["body", "creation_batch_id"], text, complaints),
        Some(other) => {
            let message = "UUID input should be a string, bytes or UUID object";
            complaints.push(complaint("uuid_type", &["body", "creation_batch_id"], message, other));
            None
        }
    };
    Some(Draft { name: name?, address: address?, phone, batch })
}

fn patch(body: &Map<String, Value>, complaints: &mut Complaints) -> Option<Patch> {
    let before = complaints.len();
    let mut sent =
        |field| body.get(field).filter(|value| !value.is_null()).and_then(|value| not_blank(field, value, complaints));
    let (name, address) = (sent("name"), sent("address"));
    let phone = if body.contains_key("phone") {
        PhoneChange::Set(optional(body, "phone", complaints))
    } else {
        PhoneChange::Keep
    };
    (complaints.len() == before).then_some(Patch { name, address, phone })
}

fn required(body: &Map<String, Value>, field: &str, complaints: &mut Complaints) -> Option<String> {
    if let Some(value) = body.get(field) {
        return not_blank(field, value, complaints);
    }
    complaints.push(complaint("missing", &["body", field], "Field required", &Value::Object(body.clone())));
    None
}

fn not_blank(field: &str, value: &Value, complaints: &mut Complaints) -> Option<String> {
    let text = text(field, value, complaints)?;
    if text.trim().is_empty() {
        let message = "String should have at least 1 character";
        complaints.push(complaint("string_too_short", &["body", field], message, value));
        return None;
    }
    Some(text)
}

fn optional(body: &Map<String, Value>, field: &str, complaints: &mut Complaints) -> Option<String> {
    body.get(field).filter(|value| !value.is_null()).and_then(|value| text(field, value, complaints))
}

fn text(field: &str, value: &Value, complaints: &mut Complaints) -> Option<String> {
    let text = value.as_str().map(str::to_owned);
    if text.is_none() {
        complaints.push(complaint("string_type", &["body", field], "Input should be a valid string", value));
    }
    text
}
