//! An in-process FHIR server with conditional creates and updates that race like real ones: it searches before it writes, so two concurrent
//! requests with one condition both find nothing.

use super::faulty::whole;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use triage_engine::contract::Failure;
use triage_upstream::{Inbound, Outbound, Transport, full};

/// A received request.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub method: Method,
    pub path_and_query: String,
    pub headers: HeaderMap,
}

/// The server, shared by `Arc`.
#[derive(Debug, Default)]
pub struct FhirServer {
    /// The time between search and write.
    pub write_time: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    patients: Vec<Value>,
    arrived: Vec<Arrived>,
}

impl FhirServer {
    pub fn new(write_time: Duration) -> Arc<Self> {
        Arc::new(Self { write_time, state: Mutex::default() })
    }

    /// The number of patients by identifier value.
    pub fn patients(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for patient in &self.state.lock().unwrap().patients {
            *counted.entry(identifier(patient).1.to_owned()).or_insert(0) += 1;
        }
        counted
    }

    /// All received requests in order.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.state.lock().unwrap().arrived.clone()
    }

    /// The number of received requests with this method.
    pub fn count(&self, method: &Method) -> usize {
        self.state.lock().unwrap().arrived.iter().filter(|arrived| arrived.method == *method).count()
    }

    /// Adds a patient without checking conditions.
    pub fn add(&self, system: &str, value: &str) {
        let patient = json!({"resourceType": "Patient", "identifier": [{"system": system, "value": value}]});
        self.write(patient);
    }

    fn matching(&self, query: &str) -> Vec<Value> {
        let query = percent_decoded(query.rsplit('?').next().unwrap_or_default());
        let wanted = query.strip_prefix("identifier=").and_then(|token| token.split_once('|'));
        let patients = &self.state.lock().unwrap().patients;
        patients.iter().filter(|patient| wanted.is_none_or(|wanted| identifier(patient) == wanted)).cloned().collect()
    }

    fn write(&self, mut patient: Value) -> Value {
        let patients = &mut self.state.lock().unwrap().patients;
        let last = patients.last().map_or(0, |last| last["id"].as_str().unwrap().parse::<usize>().unwrap());
        patient["id"] = json!((last + 1).to_string());
        patient["meta"] = json!({"versionId": "1"});
        patients.push(patient.clone());
        patient
    }

    /// The name and version of the patient with this identifier value.
    pub fn name(&self, identifier: &str) -> (String, String) {
        let state = self.state.lock().unwrap();
        let found = state.patients.iter().find(|patient| self::identifier(patient).1 == identifier).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&found["name"][0]["text"]), text(&found["meta"]["versionId"]))
    }

    fn update(&self, id: &Value, mut patient: Value) -> Value {
        let patients = &mut self.state.lock().unwrap().patients;
        let found = patients.iter_mut().find(|patient| patient["id"] == *id).unwrap();
        let version: u64 = found["meta"]["versionId"].as_str().unwrap().parse().unwrap();
        patient["id"] = id.clone();
        patient["meta"] = json!({"versionId": (version + 1).to_string()});
        *found = patient.clone();
        patient
    }

    async fn answer(self: Arc<Self>, request: Outbound) -> Inbound {
        let Outbound { method, path_and_query, headers, body, .. } = request;
        let condition = headers.get("if-none-exist").map(|value| value.to_str().unwrap().to_owned());
        let arrived = Arrived { method: method.clone(), path_and_query: path_and_query.clone(), headers };
        self.state.lock().unwrap().arrived.push(arrived);
        let body = whole(body).await;
        let (path, query) = path_and_query.split_once('?').unwrap_or((&path_and_query, ""));
        match (method.as_str(), path) {
            ("POST", "/Patient") => {
                if let Some(condition) = condition {
                    match self.matching(&condition).as_slice() {
                        [] => {}
                        [found] => return of(200, found),
                        _ => return of(412, &outcome("multiple-matches")),
                    }
                }
                tokio::time::sleep(self.write_time).await;
                match serde_json::from_slice(&body) {
                    Ok(patient) => of(201, &self.write(patient)),
                    Err(_) => of(400, &outcome("structure")),
                }
            }
            ("PUT", "/Patient") => {
                let found = self.matching(query);
                if found.len() > 1 {
                    return of(412, &outcome("multiple-matches"));
                }
                tokio::time::sleep(self.write_time).await;
                let Ok(patient) = serde_json::from_slice(&body) else { return of(400, &outcome("structure")) };
                match found.as_slice() {
                    [found] => of(200, &self.update(&found["id"], patient)),
                    _ => of(201, &self.write(patient)),
                }
            }
            ("DELETE", "/Patient") => {
                let found: Vec<Value> = self.matching(query).iter().map(|found| found["id"].clone()).collect();
                tokio::time::sleep(self.write_time).await;
                self.state.lock().unwrap().patients.retain(|patient| !found.contains(&patient["id"]));
                of(204, &json!({}))
            }
            ("GET", "/Patient") | ("POST", "/Patient/_search") => of(200, &bundle(&self.matching(query))),
            ("GET", "/$export" | "/Patient/$export") => of(202, &json!({})),
            _ => of(404, &outcome("not-found")),
        }
    }
}

/// The server as an upstream.
#[derive(Debug, Clone)]
pub struct InProcess(pub Arc<FhirServer>);

impl Transport for InProcess {
    fn stops_when_dropped(&self) -> bool {
        true
    }

    fn send(&self, request: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let server = Arc::clone(&self.0);
        Box::pin(async move { Ok(server.answer(request).await) })
    }
}

fn identifier(patient: &Value) -> (&str, &str) {
    let identifier = &patient["identifier"][0];
    (identifier["system"].as_str().unwrap_or_default(), identifier["value"].as_str().unwrap_or_default())
}

fn bundle(found: &[Value]) -> Value {
    let entries: Vec<Value> =
        found.iter().map(|found| json!({"resource": found, "search": {"mode": "match"}})).collect();
    json!({"resourceType": "Bundle", "type": "searchset", "total": found.len(), "entry": entries})
}

fn outcome(code: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]})
}

fn of(status: u16, body: &Value) -> Inbound {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/fhir+json"));
    let body = full(Bytes::from(body.to_string()));
    Inbound { status: StatusCode::from_u16(status).unwrap(), headers, body }
}

fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let digits = if byte == b'%' { bytes.next().zip(bytes.next()) } else { None };
        decoded.push(
            digits.map_or(byte, |(high, low)| {
                u8::from_str_radix(std::str::from_utf8(&[high, low]).unwrap(), 16).unwrap()
            }),
        );
    }
    String::from_utf8(decoded).unwrap()
}
