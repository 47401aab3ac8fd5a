//! Stages a policy file: runs every check in order, without touching the live policy.

use super::{Event, Parts, PolicyRole, UpstreamPolicy};
use crate::{
    bounded_file,
    config::settings::{self, PolicySource},
    error_chain::error_chain,
    policy::{self, COMPONENT_BYTES, Digest, LoadOptions, Policy, golden_tests, signature::SignatureError},
    upstream_runtime::{StagePhase, UpstreamRuntime},
};
use std::{io, path::Path};

/// The largest file of golden cases.
const MAX_CASES_BYTES: u64 = 4 << 20;

/// Why a component was refused.
#[derive(Debug)]
pub struct Refused {
    digest: Option<Digest>,
    step: StagePhase,
    reason: String,
    again: bool,
}

impl Refused {
    /// Whether a file could not be read, so that a later read may succeed.
    pub fn may_succeed_later(&self) -> bool {
        self.again
    }

    /// Marks the refusal as a read error, which a retry may resolve, unless the file is too large.
    fn unread(self, error: &io::Error) -> Self {
        Self { again: error.kind() != io::ErrorKind::FileTooLarge, ..self }
    }

    /// The refusal after a check panicked: it is reported like any other, and the thread continues.
    fn panicked(panic: String) -> Self {
        let reason = format!("a check panicked on the component ({panic}); build it again, and report the panic");
        Self { digest: None, step: StagePhase::Load, reason, again: false }
    }

    /// Converts the refusal into an event.
    pub fn event(self, file: &Path) -> Event {
        Event::Refused { file: file.to_owned(), digest: self.digest, step: self.step, reason: self.reason }
    }
}

/// Reads and checks a component for an upstream: size, digest, checksum and signature, format, imports, exports, description, settings, its
/// golden cases (`NAME.cases.csv` beside it), and whether the configuration fits. Takes tens of milliseconds, so call it off the request
/// threads. None: this component already serves.
///
/// # Errors
/// [`Refused`] names the phase; the live policy is untouched.
pub fn stage(
    serving: &UpstreamPolicy,
    slot: PolicyRole,
    parts: &Parts,
    file: &Path,
) -> Result<Option<UpstreamRuntime>, Refused> {
    let staged = || -> Result<Option<UpstreamRuntime>, Refused> {
        let refused = |digest, step| move |reason: String| Refused { digest, step, reason, again: false };
        let bytes = bounded_file::read(file, COMPONENT_BYTES)
            .map_err(|error| refused(None, StagePhase::Read)(error.to_string()).unread(&error))?;
        #[cfg(test)]
        policy::panic_if_marked("check", &bytes);
        let digest = Digest::of(&bytes);
        if serving.digest_in(slot) == Some(digest) {
            return Ok(None);
        }
        let refused = |step| refused(Some(digest), step);
        if serving.is_quarantined(&digest) {
            let reason = "this component was rolled back before; fix it: the host does not load the same bytes again";
            return Err(refused(StagePhase::Quarantine)(reason.to_owned()));
        }
        if let Err(error) = parts.keys.check(file, &bytes) {
            let step = if error.is_checksum() { StagePhase::Checksum } else { StagePhase::Signature };
            let refused = refused(step)(error_chain(&error));
            return Err(match &error {
                SignatureError::Read { source, .. } => refused.unread(source),
                _ => refused,
            });
        }
        let settings: &settings::Upstream = &serving.configured();
        let loading =
            LoadOptions { settings: settings.policy_settings.clone(), reuse_instances: settings.reuse_instances };
        let policy = Policy::load(&parts.engine, &bytes, &loading)
            .map_err(|error| refused(StagePhase::Load)(error_chain(&error)))?;
        match bounded_file::read(&file.with_extension("cases.csv"), MAX_CASES_BYTES) {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text);
                golden_tests::play(&policy, &text).map_err(|error| refused(StagePhase::Cases)(error.to_string()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(StagePhase::Cases)(error.to_string()).unread(&error)),
        }
        UpstreamRuntime::with_policy(settings, policy, false, |name, endpoint| parts.gates.group(name, endpoint))
            .map(Some)
            .map_err(|error| refused(StagePhase::Configuration)(error_chain(&error)))
    };
    policy::contained(staged).unwrap_or_else(|panic| Err(Refused::panicked(panic)))
}

/// Loads the configured candidate at the start, if it is available. A refusal is only an event: it must not stop the live policy.
pub fn begin(serving: &UpstreamPolicy, parts: &Parts) {
    let Some(source) = serving.settings.candidate.as_ref().map(|candidate| &candidate.policy) else { return };
    match source {
        // The file may appear later.
        PolicySource::File(file) if !file.exists() => {}
        PolicySource::File(file) => match stage(serving, PolicyRole::Candidate, parts, file) {
            Ok(Some(service)) => serving.put(PolicyRole::Candidate, service),
            Ok(None) => {}
            Err(refused) => serving.refused(refused.event(file)),
        },
        PolicySource::Embedded(_) | PolicySource::Registry(_) | PolicySource::Builtin => {
            let Parts { engine, keys, registry, gates, .. } = parts;
            let groups = |name: &str, endpoint: &_| gates.group(name, endpoint);
            match UpstreamRuntime::load_candidate(&serving.settings, source, engine, keys, registry, groups) {
                Ok(service) => serving.put(PolicyRole::Candidate, service),
                Err(error) => {
                    let refused = Refused {
                        digest: None,
                        step: StagePhase::Configuration,
                        reason: error_chain(&error),
                        again: false,
                    };
                    serving.refused(refused.event(Path::new(&source.to_string())));
                }
            }
        }
    }
}
