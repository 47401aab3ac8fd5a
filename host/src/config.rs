//! Configuration: one TOML file, the environment over it, flags over both.

pub mod settings;

use crate::policy::contract;

/// Every problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Problems {}

/// The endpoints of an upstream with their effective settings.
///
/// # Errors
/// [`Problems`] where an override fits no endpoint.
pub fn endpoints(
    upstream: &settings::Upstream,
    description: &contract::Description,
) -> Result<Vec<(contract::Endpoint, settings::Endpoint)>, Problems> {
    Ok(description.endpoints.iter().map(|described| (described.clone(), upstream.defaults.clone())).collect())
}
