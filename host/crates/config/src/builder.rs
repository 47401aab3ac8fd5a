//! The values collected from the layers so far.

use super::{
    layers::Raw,
    problem::{Problem, Source},
    schema::{self, Key, KeyScope, Owner},
    settings::PolicySource,
    value::{Value, Values},
    value_type::{self, Kind},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct UpstreamDraft {
    pub(super) own: Values,
    pub(super) defaults: Values,
    pub(super) endpoints: BTreeMap<String, Values>,
    /// Whether a base URL was given, even an invalid one: then none is missing.
    pub(super) has_base_url: bool,
}

/// All values, each layer merged over the previous one, and all problems.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) host: Values,
    pub(super) upstreams: BTreeMap<String, UpstreamDraft>,
    pub(super) problems: Vec<Problem>,
    refused_names: BTreeSet<String>,
}

impl Draft {
    /// Adds one value, or records what is wrong with it.
    pub(super) fn state(&mut self, path: &[String], raw: &Raw, source: Source) {
        match schema::scope(path) {
            KeyScope::Leaf(owner, key) => self.leaf(path, owner, key, raw, source),
            KeyScope::Branch | KeyScope::Upstream(_) | KeyScope::Endpoint(..) => {
                self.fault(
                    Problem::value(
                        schema::joined(path),
                        value_type::without_userinfo(raw).to_string(),
                        "a table of keys",
                    ),
                    &source,
                );
            }
            KeyScope::Unknown(near) => self.fault(Problem::unknown(schema::joined(path), near), &source),
        }
    }

    fn leaf(&mut self, path: &[String], owner: Owner, key: &'static Key, raw: &Raw, source: Source) {
        let upstream = match &owner {
            Owner::Host => None,
            Owner::Upstream(name) | Owner::Defaults(name) | Owner::Endpoint(name, _) => Some(name.clone()),
        };
        if let Some(name) = &upstream
            && !self.upstream(name, &source)
        {
            return;
        }
        if let Owner::Endpoint(name, endpoint) = &owner
            && !self.endpoint(name, endpoint, &source)
        {
            return;
        }
        let value = self.read(&schema::joined(path), key.kind, key.may_be_off(), raw, &source);
        if let (Owner::Upstream(name), "base_url") = (&owner, key.name)
            && let Some(upstream) = self.upstreams.get_mut(name)
        {
            upstream.has_base_url = true;
        }
        if let (Some(value), Some(values)) = (value, self.values(&owner)) {
            values.set(key.name, from_the_files_folder(value, &source), source);
        }
    }

    /// Parses a value and records what is wrong with it.
    pub(super) fn read(&mut self, path: &str, kind: Kind, off: bool, raw: &Raw, source: &Source) -> Option<Value> {
        let mut found = Vec::new();
        let value = kind.read(path, raw, off, &mut found);
        self.problems.extend(found.into_iter().map(|problem| problem.from(source)));
        value
    }

    fn values(&mut self, owner: &Owner) -> Option<&mut Values> {
        match owner {
            Owner::Host => Some(&mut self.host),
            Owner::Upstream(name) => self.upstreams.get_mut(name).map(|upstream| &mut upstream.own),
            Owner::Defaults(name) => self.upstreams.get_mut(name).map(|upstream| &mut upstream.defaults),
            Owner::Endpoint(name, endpoint) => self.upstreams.get_mut(name)?.endpoints.get_mut(endpoint),
        }
    }

    /// Adds an upstream unless it exists. False if the name is invalid.
    pub(super) fn upstream(&mut self, name: &str, source: &Source) -> bool {
        if !self.name_is_fine(&["upstreams".to_owned(), name.to_owned()], source) {
            return false;
        }
        self.upstreams.entry(name.to_owned()).or_default();
        true
    }

    /// Adds an endpoint unless it exists. False if a name is invalid.
    pub(super) fn endpoint(&mut self, upstream: &str, name: &str, source: &Source) -> bool {
        let path = ["upstreams", upstream, "endpoints", name].map(str::to_owned);
        if !self.upstream(upstream, source) || !self.name_is_fine(&path, source) {
            return false;
        }
        if let Some(upstream) = self.upstreams.get_mut(upstream) {
            upstream.endpoints.entry(name.to_owned()).or_default();
        }
        true
    }

    fn name_is_fine(&mut self, path: &[String], source: &Source) -> bool {
        let Some(name) = path.last() else { return false };
        if value_type::is_name(name) {
            return true;
        }
        let key = schema::joined(path);
        if self.refused_names.insert(key.clone()) {
            let got = format!("the name {}", Raw::Text(name.clone()));
            self.fault(Problem::value(key, got, format!("a name of {}", value_type::NAME)), source);
        }
        false
    }

    pub(super) fn fault(&mut self, problem: Problem, source: &Source) {
        self.problems.push(problem.from(source));
    }

    /// The upstreams that use the policy `hospital-directory`.
    pub(super) fn hospital_directories(&self) -> Vec<String> {
        let wanted = PolicySource::Embedded("hospital-directory".to_owned());
        let names = self.upstreams.iter().filter(|(_, upstream)| upstream.own.read("policy").as_ref() == Some(&wanted));
        names.map(|(name, _)| name.clone()).collect()
    }
}

/// Resolves a path in a file against the file's folder, so that the host's working directory does not matter.
fn from_the_files_folder(value: Value, source: &Source) -> Value {
    let Source::File { path: file, .. } = source else { return value };
    let Some(folder) = file.parent() else { return value };
    match value {
        Value::File(path) => Value::File(folder.join(path)),
        Value::Keys(keys) => Value::Keys(keys.into_iter().map(|key| key.in_folder(folder)).collect()),
        Value::Policy(PolicySource::File(path)) => Value::Policy(PolicySource::File(folder.join(path))),
        other => other,
    }
}
