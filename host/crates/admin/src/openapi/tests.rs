#![allow(clippy::unwrap_used)]

use crate::routes::openapi;
use serde_json::Value;

fn walk(value: &Value, visit: &mut dyn FnMut(&Value)) {
    visit(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, visit)),
        Value::Object(members) => members.values().for_each(|member| walk(member, visit)),
        _ => {}
    }
}

#[test]
fn references_lead_somewhere_and_operations_are_described() {
    let document: Value = serde_json::from_str(openapi()).unwrap();
    walk(&document, &mut |value| {
        if let Some(reference) = value["$ref"].as_str() {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
        if let Some(id) = value["operationId"].as_str() {
            assert!(value["summary"].as_str().is_some_and(|summary| summary.len() > 10), "{id}: {value}");
            assert!(value["responses"]["200"].is_object(), "{id}: {value}");
            assert!(value["security"].is_array(), "{id}: {value}");
        }
    });
}

#[test]
fn only_actions_need_the_write_token() {
    let document: Value = serde_json::from_str(openapi()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let role = operation["security"][0]["bearer"][0].as_str();
            let expected = match (path.as_str(), method.as_str()) {
                ("/healthz" | "/readyz", _) => None,
                (_, "get") => Some("read"),
                _ => Some("write"),
            };
            assert_eq!(role, expected, "{method} {path}");
        }
    }
}

#[test]
fn responses_have_every_property_and_requests_may_omit_them() {
    let document: Value = serde_json::from_str(openapi()).unwrap();
    let schemas = &document["components"]["schemas"];
    let breaker = &schemas["Breaker"];
    assert_eq!(breaker["required"].as_array().unwrap().len(), breaker["properties"].as_object().unwrap().len());
    assert_eq!(breaker["additionalProperties"], false);
    assert_eq!(schemas["Expiry"]["required"], Value::Null);
    assert_eq!(schemas["Announced"]["required"][0], "digest");
    let body = |path: &str| document["paths"][path]["post"]["requestBody"]["required"].clone();
    assert_eq!(body("/api/v1/policies/{upstream}/announce"), true);
    assert_eq!(body("/api/v1/policies/{upstream}/promote"), false);
}
