//! Applies a reloaded configuration, and reports reloads.

use super::Host;
use crate::{config::Reload, error_chain::error_chain, upstream_runtime::ServiceError};

impl Host {
    /// Applies a reloaded configuration to every upstream, or to none.
    ///
    /// # Errors
    /// [`ServiceError`] if a setting does not fit a policy.
    pub fn reload(&self, reload: &Reload) -> Result<(), ServiceError> {
        let rollout = &self.shared.rollout;
        let mut all = Vec::with_capacity(rollout.upstreams.len());
        for (upstream, settings) in rollout.upstreams.iter().zip(&reload.settings.upstreams) {
            all.push(upstream.reconfigured(settings, &rollout.parts.gates)?);
        }
        for (upstream, reconfigured) in rollout.upstreams.iter().zip(all) {
            upstream.reconfigure(reconfigured);
        }
        let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        let (changed, waiting) = (list(&reload.changed), list(&reload.waiting));
        tracing::info!(%changed, %waiting, "the configuration was read again");
        self.shared.events.note("reloaded", "config", format!("in effect: {changed}; needs a restart: {waiting}"));
        Ok(())
    }

    /// Logs that certificates and tokens were reloaded because their files changed.
    pub fn files_read(&self) {
        tracing::info!("certificates and tokens were read again, because their files changed");
        let text = "certificates and tokens: their files changed".to_owned();
        self.shared.events.note("reloaded", "files", text);
    }

    /// Logs that a changed configuration was refused and the old one stays in force.
    pub fn reload_refused(&self, error: &dyn std::error::Error) {
        let text = error_chain(error);
        tracing::warn!(error = %text, "the configuration was not read again; the present configuration stays in effect");
        self.shared.events.note("reload-refused", "config", text);
    }
}
