//! Counts the bytes of records, stored responses and claims, by tenant and in total.
//!
//! No record is evicted, so memory can only be bounded by refusing new keys. They are refused early: the rest is for the responses of
//! requests already under way.

use crate::idempotency::Tenant;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Enough that threads rarely contend. Tenants are hashes, so they spread evenly.
const SHARDS: usize = 16;

/// New keys are refused when this many eighths are used.
const NEW_KEYS_EIGHTHS: usize = 7;

/// The limit in bytes, and the bytes used.
pub struct Capacity {
    max: usize,
    tenant_max: usize,
    taken: AtomicUsize,
    /// Bytes by tenant; only tenants with records.
    tenants: [Mutex<HashMap<Tenant, usize>>; SHARDS],
}

impl Capacity {
    /// A limit of `max` bytes in total, and `tenant_max` for one tenant.
    pub fn new(max: usize, tenant_max: usize) -> Self {
        let tenants = std::array::from_fn(|_| Mutex::default());
        Self { max, tenant_max: tenant_max.min(max), taken: AtomicUsize::new(0), tenants }
    }

    /// Bytes used.
    pub fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    /// The limit in bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Counts the bytes of a new entry. False: the entry must be refused.
    pub fn admit(&self, tenant: Option<Tenant>, bytes: usize) -> bool {
        self.take(tenant, bytes, |max| max / 8 * NEW_KEYS_EIGHTHS)
    }

    /// Counts the bytes of an admitted request's response. False: it must be shortened.
    pub fn extend(&self, tenant: Option<Tenant>, bytes: usize) -> bool {
        self.take(tenant, bytes, |max| max)
    }

    /// Counts bytes even beyond the limit, for the few that cannot be left out.
    pub fn charge(&self, tenant: Option<Tenant>, bytes: usize) {
        self.take(tenant, bytes, |_| usize::MAX);
    }

    fn take(&self, tenant: Option<Tenant>, bytes: usize, most: impl Fn(usize) -> usize) -> bool {
        let fits = |taken: usize, max| taken.checked_add(bytes).filter(|all| *all <= most(max));
        if self.taken.fetch_update(Relaxed, Relaxed, |taken| fits(taken, self.max)).is_err() {
            return false;
        }
        let Some(tenant) = tenant else { return true };
        let mut tenants = self.shard(tenant).lock();
        let own = tenants.get(&tenant).copied().unwrap_or(0);
        let Some(all) = fits(own, self.tenant_max) else {
            self.taken.fetch_sub(bytes, Relaxed);
            return false;
        };
        tenants.insert(tenant, all);
        true
    }

    /// Subtracts bytes.
    pub fn give_back(&self, tenant: Option<Tenant>, bytes: usize) {
        self.taken.fetch_sub(bytes, Relaxed);
        let Some(tenant) = tenant else { return };
        let mut tenants = self.shard(tenant).lock();
        if let Some(own) = tenants.get_mut(&tenant) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                tenants.remove(&tenant);
            }
        }
    }

    fn shard(&self, tenant: Tenant) -> &Mutex<HashMap<Tenant, usize>> {
        let [first, ..] = tenant.as_bytes();
        &self.tenants[usize::from(*first) % SHARDS]
    }

    #[cfg(test)]
    pub(crate) fn tenants(&self) -> usize {
        self.tenants.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn tenant(n: u8) -> Tenant {
        let name = HeaderName::from_static("x-tenant");
        let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from(u16::from(n)))]);
        Tenant::of(&headers, std::slice::from_ref(&name))
    }

    #[test]
    fn new_entries_are_refused_before_answers_are() {
        let capacity = Capacity::new(800, 800);
        assert!(capacity.admit(None, 700) && !capacity.admit(None, 1), "seven eighths are taken");
        assert!(capacity.extend(None, 100) && !capacity.extend(None, 1), "all of it is taken");
        capacity.charge(None, 1);
        assert_eq!(capacity.taken(), 801);
        capacity.give_back(None, 801);
        assert!(capacity.admit(None, 700));
    }

    #[test]
    fn one_tenant_leaves_room_for_the_others() {
        let capacity = Capacity::new(800, 400);
        assert!(capacity.admit(Some(tenant(1)), 350) && !capacity.admit(Some(tenant(1)), 1));
        assert!(capacity.admit(Some(tenant(2)), 350), "another tenant has its own share");
        assert_eq!(capacity.taken(), 700, "what was refused took nothing");
    }

    proptest! {
        /// The count equals what is held at each step, and the limits hold.
        #[test]
        fn the_count_is_that_of_what_is_held(steps in prop::collection::vec((0..4_u8, 1..300_usize, any::<bool>()), 1..200)) {
            let capacity = Capacity::new(1600, 800);
            let mut held: Vec<(Option<Tenant>, usize)> = Vec::new();
            for (n, bytes, is_new) in steps {
                let own = (n > 0).then(|| tenant(n));
                if is_new {
                    if capacity.admit(own, bytes) {
                        held.push((own, bytes));
                    }
                } else if let Some((own, bytes)) = held.pop() {
                    capacity.give_back(own, bytes);
                }
                prop_assert_eq!(capacity.taken(), held.iter().map(|(_, bytes)| bytes).sum::<usize>());
                prop_assert!(capacity.taken() <= 1400);
            }
            for (own, bytes) in held.drain(..) {
                capacity.give_back(own, bytes);
            }
            prop_assert_eq!((capacity.taken(), capacity.tenants()), (0, 0));
        }
    }
}
