//! Loads the policy of an upstream from its source, after all checks.

use crate::{
    ServiceError, bounded_file,
    config::settings,
    policy::{COMPONENT_BYTES, Engine, LoadOptions, Policy, golden_tests, prebuilt, signature::Keys},
    registry::{Artifact, Pulled, Registry},
};
use std::sync::Arc;

/// Loads the policy from a pulled component after all checks: its signature if there are keys, its format, and the golden cases delivered
/// with it.
///
/// # Errors
/// [`ServiceError`], which names the phase.
pub fn checked(
    settings: &settings::Upstream,
    engine: &Engine,
    keys: &Keys,
    artifact: &Artifact,
    pulled: &Pulled,
) -> Result<Arc<Policy>, ServiceError> {
    let upstream = || settings.name.clone();
    keys.verify(pulled.signature.as_deref(), &pulled.component).map_err(|source| ServiceError::Unproven {
        upstream: upstream(),
        path: artifact.to_string().into(),
        source: Box::new(source),
    })?;
    let loading = LoadOptions { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
    let policy = Policy::load(engine, &pulled.component, &loading)
        .map_err(|source| ServiceError::Policy { upstream: upstream(), source })?;
    if let Some(text) = &pulled.cases {
        golden_tests::play(&policy, text).map_err(|source| ServiceError::Cases { upstream: upstream(), source })?;
    }
    Ok(policy)
}

/// The policy of an upstream, and whether it may settle unknown writes by default: only a policy that comes with the host may.
pub(crate) fn policy(
    settings: &settings::Upstream,
    engine: &Engine,
    keys: &Keys,
    registry: &Registry,
) -> Result<(Arc<Policy>, bool), ServiceError> {
    let loading = LoadOptions { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
    let upstream = || settings.name.clone();
    let refused = |source| ServiceError::Policy { upstream: upstream(), source };
    match &settings.policy {
        settings::PolicySource::Builtin => Ok((Policy::builtin(), true)),
        settings::PolicySource::Embedded(name) => {
            let component = prebuilt::embedded(name)
                .ok_or_else(|| ServiceError::NoSuchPolicy { upstream: upstream(), name: name.clone() })?;
            Ok((Policy::load(engine, component, &loading).map_err(refused)?, true))
        }
        settings::PolicySource::Registry(artifact) => {
            let unavailable = |source| ServiceError::Registry { upstream: upstream(), source: Box::new(source) };
            let pulled = registry.fetch(artifact).map_err(unavailable)?;
            Ok((checked(settings, engine, keys, artifact, &pulled)?, false))
        }
        settings::PolicySource::File(path) => {
            let component = bounded_file::read(path, COMPONENT_BYTES).map_err(|source| ServiceError::File {
                upstream: upstream(),
                path: path.clone(),
                source,
            })?;
            let path = path.clone();
            keys.check(&path, &component).map_err(|source| ServiceError::Unproven {
                upstream: upstream(),
                path,
                source: Box::new(source),
            })?;
            Ok((Policy::load(engine, &component, &loading).map_err(refused)?, false))
        }
    }
}
