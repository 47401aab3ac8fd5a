//! Compiled policies kept in memory.

use crate::policy::{Digest, Policy};
use std::sync::Arc;

/// The live policy, the previous one, the proposed one, and one more.
const MAX_POLICIES: usize = 4;

/// Policies by their manifests' digests, the latest last.
#[derive(Debug, Default)]
pub(super) struct PolicyCache(Vec<(Digest, Arc<Policy>)>);

impl PolicyCache {
    pub(super) fn digests(&self) -> Vec<Digest> {
        self.0.iter().map(|(digest, _)| *digest).collect()
    }

    pub(super) fn find(&self, digest: Digest) -> Option<Arc<Policy>> {
        self.0.iter().find(|(own, _)| *own == digest).map(|(_, policy)| Arc::clone(policy))
    }

    /// Adds a policy. If the cache is full, removes the oldest one that is not in `kept`.
    pub(super) fn put(&mut self, digest: Digest, policy: Arc<Policy>, kept: &[Option<Digest>]) {
        self.0.retain(|(own, _)| *own != digest);
        if self.0.len() >= MAX_POLICIES {
            let spare = self.0.iter().position(|(own, _)| !kept.contains(&Some(*own))).unwrap_or(0);
            self.0.remove(spare);
        }
        self.0.push((digest, policy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_never_evicts_a_kept_policy() {
        let (mut cache, digest) = (PolicyCache::default(), |of: u8| Digest::of(&[of]));
        let kept = [Some(digest(0)), Some(digest(1)), None];
        for of in 0..50 {
            cache.put(digest(of), Policy::builtin(), &kept);
        }
        assert_eq!(cache.digests(), [digest(0), digest(1), digest(48), digest(49)]);
        assert!(cache.find(digest(1)).is_some() && cache.find(digest(2)).is_none());
    }
}
