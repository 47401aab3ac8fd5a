//! `config show`: the effective values as TOML, each with its source.

use super::{
    merge::{OWN_LIMITS, merged},
    problem::Source,
    resolve::{described_and_added, idempotency},
    schema::{KEYS, Scope},
    settings::{Settings, Upstream},
    value::{Sourced, Value, Values},
};
use crate::policy::contract::Description;
use http::Method;
use std::fmt::Write as _;

/// Renders every effective value with its source, as TOML that loads to the same settings. Secrets are hidden.
///
/// `descriptions` belong to the upstreams' policies, in the upstreams' order. Without a description, only endpoints from the configuration
/// are shown. Values that an endpoint inherits from the upstream's `defaults` are not repeated.
pub fn show(settings: &Settings, descriptions: &[Description]) -> String {
    let mut page = Page::default();
    page.lines("", &settings.stated, &[Scope::Host], None);
    for (index, upstream) in settings.upstreams.iter().enumerate() {
        page.blank();
        page.upstream(upstream, descriptions.get(index));
    }
    page.rendered()
}

/// Lines of `key = value` and their sources; a line without a source gets no comment.
#[derive(Debug, Default)]
struct Page(Vec<(String, Option<String>)>);

impl Page {
    fn upstream(&mut self, upstream: &Upstream, description: Option<&Description>) {
        let path = format!("upstreams.{}.", upstream.name);
        let mut own = upstream.stated.clone();
        let lock = description.map_or(upstream.idempotency.lock, |description| idempotency(upstream, description).lock);
        if own.read("idempotency.lock") != Some(lock) {
            own.set("idempotency.lock", Value::Duration(lock), Source::Adapted("the longest deadline"));
        }
        self.lines(&path, &own, &[Scope::Upstream], None);
        self.blank();
        let defaults = merged(&Values::default(), &upstream.defaults, None);
        self.lines(&format!("{path}defaults."), &defaults, &[Scope::Endpoint], None);
        match description {
            Some(description) => {
                for (endpoint, values) in described_and_added(upstream, description) {
                    self.blank();
                    let method = endpoint.method.as_ref().map_or("*", Method::as_str);
                    self.comment(&format!("{method} {}", endpoint.path));
                    self.endpoint(&path, &endpoint.name, &values, &defaults);
                }
            }
            None => {
                for own in &upstream.endpoints {
                    self.blank();
                    let values = merged(&Values::default(), &upstream.defaults, Some(&own.values));
                    self.endpoint(&path, &own.name, &values, &defaults);
                }
            }
        }
    }

    fn endpoint(&mut self, path: &str, name: &str, values: &Values, defaults: &Values) {
        self.lines(&format!("{path}endpoints.{name}."), values, &[Scope::Added, Scope::Endpoint], Some(defaults));
        if let Some(Sourced { value, source }) = values.get(OWN_LIMITS) {
            self.0.push((format!("# as its own limit also: limits = {value}"), Some(source.to_string())));
        }
    }

    fn lines(&mut self, path: &str, values: &Values, scopes: &[Scope], known: Option<&Values>) {
        for key in KEYS.iter().filter(|key| scopes.contains(&key.scope)) {
            let stated = values.get(key.name);
            if let Some(Sourced { value, source }) = stated.filter(|_| known.and_then(|k| k.get(key.name)) != stated) {
                self.0.push((format!("{path}{} = {value}", key.name), Some(source.to_string())));
            }
        }
    }

    fn comment(&mut self, text: &str) {
        self.0.push((format!("# {}", one_line(text)), None));
    }

    fn blank(&mut self) {
        self.0.push((String::new(), None));
    }

    fn rendered(&self) -> String {
        /// Longer lines get no aligned comment: one long value would push every comment off the screen.
        const MAX_LINE_CHARS: usize = 88;
        let widths = self.0.iter().filter(|(_, source)| source.is_some()).map(|(line, _)| line.chars().count());
        let width = widths.filter(|width| *width <= MAX_LINE_CHARS).max().unwrap_or_default();
        let mut text = String::new();
        for (line, source) in &self.0 {
            // Writing to a string cannot fail.
            let _ = match source {
                Some(source) => writeln!(text, "{line:width$}  # {}", one_line(source)),
                None => writeln!(text, "{line}"),
            };
        }
        text
    }
}

/// A TOML comment ends with its line. A line break in a file name must not start a line of TOML.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
