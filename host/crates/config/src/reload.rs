//! Merges the running configuration with a newly loaded one on a reload.

use super::{
    build,
    problem::Problems,
    pybreaker,
    schema::{KEYS, Scope},
    settings::{EndpointOverride, Settings, Upstream},
    validate,
    value::Values,
};

/// The result of a reload.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// The configuration to run from now on.
    pub settings: Settings,
    /// Keys whose new values are in force.
    pub changed: Vec<String>,
    /// Keys whose new values need a restart.
    pub waiting: Vec<String>,
}

/// Merges a new configuration into the running one, as far as its keys can change while the host runs.
///
/// # Errors
/// [`Problems`] if the new values conflict with those that cannot change; then nothing must change.
pub fn reload(old: &Settings, new: &Settings) -> Result<Reload, Problems> {
    let mut changes = Changes::default();
    let stated = changes.merged("", Scope::Host, &old.stated, &new.stated);
    let mut upstreams = Vec::with_capacity(old.upstreams.len());
    for own in &old.upstreams {
        match new.upstreams.iter().find(|other| other.name == own.name) {
            Some(other) => upstreams.push(changes.upstream(own, other)),
            None => {
                changes.waiting.push(format!("upstreams.{}", own.name));
                upstreams.push(own.clone());
            }
        }
    }
    let is_new = |upstream: &&Upstream| old.upstreams.iter().all(|own| own.name != upstream.name);
    changes.waiting.extend(new.upstreams.iter().filter(is_new).map(|upstream| format!("upstreams.{}", upstream.name)));
    let mut settings = Settings { upstreams, server: build::server(&stated), stated, ..old.clone() };
    settings.admin.read_token.clone_from(&new.admin.read_token);
    settings.admin.write_token.clone_from(&new.admin.write_token);
    // Each configuration is valid alone, but the merged one may not be: a public admin listener from one, no token from the other.
    let problems = validate::admin(&settings).into_iter().chain(validate::upstreams(&settings));
    let problems = problems.chain(pybreaker::stated(&settings)).chain(validate::baselines(&settings));
    Problems::check(problems.collect())?;
    Ok(Reload { settings, changed: changes.changed, waiting: changes.waiting })
}

#[derive(Debug, Default)]
struct Changes {
    changed: Vec<String>,
    waiting: Vec<String>,
}

impl Changes {
    /// Each key's new value if it can be reloaded, else its old one.
    fn merged(&mut self, path: &str, scope: Scope, old: &Values, new: &Values) -> Values {
        let mut merged = Values::default();
        for key in KEYS.iter().filter(|key| key.scope == scope) {
            let (was, is) = (old.get(key.name), new.get(key.name));
            let same = was.map(|stated| &stated.value) == is.map(|stated| &stated.value);
            if !same {
                let list = if key.is_reloaded() { &mut self.changed } else { &mut self.waiting };
                list.push(format!("{path}{}", key.name));
            }
            if let Some(stated) = if same || key.is_reloaded() { is } else { was } {
                merged.set(key.name, stated.value.clone(), stated.source.clone());
            }
        }
        merged
    }

    fn upstream(&mut self, old: &Upstream, new: &Upstream) -> Upstream {
        let path = format!("upstreams.{}.", old.name);
        let stated = self.merged(&path, Scope::Upstream, &old.stated, &new.stated);
        self.merged(&format!("{path}defaults."), Scope::Endpoint, &old.defaults, &new.defaults);
        let none = Values::default();
        let values = |all: &[EndpointOverride], name: &str| {
            all.iter().find(|own| own.name == name).map_or_else(|| none.clone(), |own| own.values.clone())
        };
        let mut names: Vec<&str> = old.endpoints.iter().chain(&new.endpoints).map(|own| own.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let path = format!("{path}endpoints.{name}.");
            for scope in [Scope::Endpoint, Scope::Added] {
                self.merged(&path, scope, &values(&old.endpoints, name), &values(&new.endpoints, name));
            }
        }
        build::upstream_again(&old.name, stated, new.defaults.clone(), new.endpoints.clone())
    }
}
