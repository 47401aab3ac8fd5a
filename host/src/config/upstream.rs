//! An upstream's table.

use super::{
    endpoint,
    section::{Section, shown},
    settings::{PolicySource, Upstream},
    value::{COUNT, DURATION, FLAG, SIZE},
};
use crate::{idempotency, policy::prebuilt, upstream};
use http::{HeaderName, Uri};
use std::path::PathBuf;

/// Reads `[upstreams.NAME]`. Where there is no usable base URL, that is noted and a placeholder stands in its place.
pub(super) fn read(name: &str, section: &Section<'_>) -> Upstream {
    let url_form =
        "be an absolute http or https URL without user, query or fragment, such as \"http://127.0.0.1:8000\"";
    let base_url = section.parsed("base_url", url_form, base_url);
    if section.raw("base_url").is_none() {
        section.reading.wrong(&section.key("base_url"), "", "be given: the API's URL");
    }
    let connection = connection(section, base_url);
    let policy_settings = policy_settings(section);
    let policy_form = format!("be one of {}, or the path of a .wasm component", prebuilt::names().join(", "));
    let upstream = Upstream {
        name: name.to_owned(),
        connection: connection.unwrap_or_else(|| upstream::Settings::new(Uri::from_static("http://invalid"))),
        path_prefix: section
            .parsed("path_prefix", "start with '/'", |text| text.starts_with('/').then(|| text.to_owned())),
        host: section.parsed("host", "be a host name without port", host),
        listen: section
            .parsed("listen", "be an address with port, such as \"127.0.0.1:8081\"", |text| text.parse().ok()),
        policy: section
            .parsed("policy", &policy_form, policy)
            .unwrap_or_else(|| PolicySource::Embedded("http-standard".to_owned())),
        policy_settings,
        reuse_instances: section.get("reuse_instances", FLAG).unwrap_or(false),
        max_buffered_request_bytes: section.get("max_buffered_request", SIZE).unwrap_or(1 << 20),
        deadline_header: header(section, "deadline_header").unwrap_or(HeaderName::from_static("triage-deadline-ms")),
        idempotency: keys(&section.section("idempotency")),
        defaults: endpoint::read("", &section.section("defaults")),
        endpoints: section
            .section("endpoints")
            .sections()
            .iter()
            .map(|(name, own)| endpoint::read(name, own))
            .collect(),
    };
    section.finish();
    upstream
}

fn connection(section: &Section<'_>, base_url: Option<Uri>) -> Option<upstream::Settings> {
    let connect_timeout = section.get("connect_timeout", DURATION);
    let idle_timeout = section.get("idle_timeout", DURATION);
    let max_idle = section.get("max_idle", COUNT);
    let ca_file = section.parsed("ca_file", "be the path of a PEM file", |text| Some(PathBuf::from(text)));
    let http2_prior_knowledge = section.get("http2_prior_knowledge", FLAG);
    let defaults = upstream::Settings::new(base_url?);
    Some(upstream::Settings {
        connect_timeout: connect_timeout.unwrap_or(defaults.connect_timeout),
        idle_timeout: idle_timeout.unwrap_or(defaults.idle_timeout),
        max_idle: max_idle.map_or(defaults.max_idle, |most| most as usize),
        ca_file,
        http2_prior_knowledge: http2_prior_knowledge.unwrap_or(false),
        ..defaults
    })
}

fn base_url(text: &str) -> Option<Uri> {
    let uri: Uri = text.parse().ok()?;
    let authority = uri.authority()?;
    let plain = matches!(uri.scheme_str(), Some("http" | "https"))
        && !authority.as_str().contains('@')
        && uri.query().is_none()
        && !text.contains('#');
    plain.then_some(uri)
}

fn host(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    fits.then(|| text.to_ascii_lowercase())
}

fn policy(text: &str) -> Option<PolicySource> {
    if text == "builtin" {
        return Some(PolicySource::Builtin);
    }
    if prebuilt::names().contains(&text) {
        return Some(PolicySource::Embedded(text.to_owned()));
    }
    let file = std::path::Path::new(text).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("wasm"));
    file.then(|| PolicySource::File(PathBuf::from(text)))
}

/// The policy's own settings go to it as JSON.
fn policy_settings(section: &Section<'_>) -> String {
    match section.raw("policy_settings") {
        None => "{}".to_owned(),
        Some(value) if value.is_table() => serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned()),
        Some(value) => {
            section.reading.wrong(&section.key("policy_settings"), shown(value), "be a table");
            "{}".to_owned()
        }
    }
}

fn header(section: &Section<'_>, name: &'static str) -> Option<HeaderName> {
    section.parsed(name, "be a header name", |text| text.parse().ok())
}

fn keys(section: &Section<'_>) -> idempotency::Settings {
    let defaults = idempotency::Settings::default();
    let read = idempotency::Settings {
        keep: section.get("keep", DURATION).unwrap_or(defaults.keep),
        lock: section.get("lock", DURATION).unwrap_or(defaults.lock),
        max_request_bytes: section.get("max_request", SIZE).unwrap_or(defaults.max_request_bytes),
        max_response_bytes: section.get("max_response", SIZE).unwrap_or(defaults.max_response_bytes),
        max_records: section.get("max_records", COUNT).map_or(defaults.max_records, |most| most as usize),
        tenant_header: header(section, "tenant_header"),
    };
    section.finish();
    read
}
