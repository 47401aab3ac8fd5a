//! Claims: the owner of each resource that an upstream created. Without a lock of its own: its user locks it.

use super::capacity::Capacity;
use crate::{
    clock::Timestamp,
    idempotency::{Claim, ClaimName, ClaimOwner, Claimant, RecordError},
};
use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    mem::size_of,
    time::Duration,
};

/// Memory of a claim: twice its entries, because the hash table doubles and nodes of the tree may be half full.
const CLAIM_BYTES: usize = 2 * (size_of::<(ClaimName, Owned)>() + 1) + 2 * size_of::<(Timestamp, ClaimName)>();

/// A younger claim is never removed to free space, because its owner may still be running. Longer than the default lock.
const YOUNG: Duration = Duration::from_mins(5);

/// Expired claims that one call removes at most.
const SWEEP: usize = 16;

/// Claims by name and by expiry.
pub struct Claims {
    max: usize,
    owners: HashMap<ClaimName, Owned>,
    order: BTreeSet<(Timestamp, ClaimName)>,
}

struct Owned {
    owner: ClaimOwner,
    since: Timestamp,
    until: Timestamp,
}

impl Claims {
    /// `max`: claims that are kept; at the limit new ones are refused.
    pub fn new(max: usize) -> Self {
        Self { max, owners: HashMap::new(), order: BTreeSet::new() }
    }

    /// Claims a name for its owner, unless another owner has it.
    ///
    /// # Errors
    /// [`RecordError::Full`] if there is no space for another claim.
    pub fn claim(
        &mut self,
        name: ClaimName,
        owner: ClaimOwner,
        keep: Duration,
        now: Timestamp,
        capacity: &Capacity,
    ) -> Result<Claim, RecordError> {
        self.sweep(now, SWEEP, capacity);
        let until = now.after(keep);
        match self.owners.entry(name) {
            Entry::Occupied(mut claim) => {
                let claim = claim.get_mut();
                if claim.owner != owner && now < claim.until {
                    return Ok(Claim::Taken);
                }
                // The owner claims again: extend the claim, because its record lives longer too.
                let longer = if claim.owner == owner { claim.until.max(until) } else { until };
                self.order.remove(&(claim.until, name));
                self.order.insert((longer, name));
                *claim = Owned { owner, since: now, until: longer };
            }
            Entry::Vacant(_) => {
                self.free_space(now, capacity)?;
                self.owners.insert(name, Owned { owner, since: now, until });
                self.order.insert((until, name));
            }
        }
        Ok(Claim::Ours)
    }

    pub(crate) fn claimant(&self, name: ClaimName, owner: ClaimOwner, now: Timestamp) -> Claimant {
        match self.owners.get(&name).filter(|claim| now < claim.until) {
            None => Claimant::Nobody,
            Some(claim) if claim.owner == owner => Claimant::Asker,
            Some(_) => Claimant::Other,
        }
    }

    /// Claims that have not expired, with the time left.
    pub fn living(&self, now: Timestamp) -> impl Iterator<Item = (ClaimName, ClaimOwner, Duration)> {
        let living = self.owners.iter().filter(move |(_, claim)| now < claim.until);
        living.map(move |(name, claim)| (*name, claim.owner, claim.until.since(now)))
    }

    pub(crate) fn len(&self) -> usize {
        self.owners.len()
    }

    /// Removes at most `most` expired claims.
    pub fn sweep(&mut self, now: Timestamp, most: usize, capacity: &Capacity) {
        for _ in 0..most {
            match self.order.first() {
                Some((until, expired)) if *until <= now => self.forget(*until, *expired, capacity),
                _ => break,
            }
        }
    }

    /// Counts the bytes of one more claim. Without space, removes the claim that expires next, unless it is young.
    fn free_space(&mut self, now: Timestamp, capacity: &Capacity) -> Result<(), RecordError> {
        let full = if self.owners.len() >= self.max {
            RecordError::Full { what: "claims", max: self.max }
        } else if capacity.extend(None, CLAIM_BYTES) {
            return Ok(());
        } else {
            RecordError::NoCapacity { what: "claims and idempotency records", max_bytes: capacity.max() }
        };
        match self.order.first().copied() {
            Some((until, name))
                if until <= now || self.owners.get(&name).is_none_or(|claim| now.since(claim.since) >= YOUNG) =>
            {
                self.forget(until, name, capacity);
                capacity.charge(None, CLAIM_BYTES);
                Ok(())
            }
            _ => Err(full),
        }
    }

    fn forget(&mut self, until: Timestamp, name: ClaimName, capacity: &Capacity) {
        self.order.remove(&(until, name));
        if self.owners.remove(&name).is_some() {
            capacity.give_back(None, CLAIM_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::idempotency::FencingToken;
    use proptest::prelude::*;

    fn name(n: u8) -> ClaimName {
        ClaimName::of("up", &n.to_string())
    }

    fn owner(n: u8) -> ClaimOwner {
        ClaimOwner::Request(FencingToken(n.into()))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(0).after(Duration::from_secs(seconds))
    }

    const KEEP: Duration = Duration::from_secs(1000);

    #[test]
    fn the_first_one_owns_until_it_expires() {
        let (mut claims, capacity) = (Claims::new(10), Capacity::new(1 << 20, 1 << 20));
        assert_eq!(claims.claim(name(1), owner(1), KEEP, at(0), &capacity).unwrap(), Claim::Ours);
        assert_eq!(claims.claim(name(1), owner(2), KEEP, at(999), &capacity).unwrap(), Claim::Taken);
        assert_eq!(claims.claim(name(1), owner(1), KEEP, at(999), &capacity).unwrap(), Claim::Ours);
        assert_eq!(
            claims.claim(name(1), owner(2), KEEP, at(1998), &capacity).unwrap(),
            Claim::Taken,
            "claimed again at 999"
        );
        assert_eq!(claims.claim(name(1), owner(2), KEEP, at(1999), &capacity).unwrap(), Claim::Ours);
    }

    #[test]
    fn a_full_table_forgets_the_old_and_refuses_for_the_young() {
        let (mut claims, capacity) = (Claims::new(2), Capacity::new(1 << 20, 1 << 20));
        for n in 1..=2 {
            assert_eq!(claims.claim(name(n), owner(n), KEEP, at(n.into()), &capacity).unwrap(), Claim::Ours);
        }
        let full = claims.claim(name(3), owner(3), KEEP, at(200), &capacity).unwrap_err();
        assert_eq!(
            full.to_string(),
            "claims hold 2 entries, the maximum, and all are in use; try again later or raise the limit"
        );
        assert_eq!(claims.claim(name(3), owner(3), KEEP, at(301), &capacity).unwrap(), Claim::Ours);
        assert_eq!(claims.claim(name(2), owner(9), KEEP, at(301), &capacity).unwrap(), Claim::Taken);
    }

    proptest! {
        #[test]
        fn a_claim_has_one_owner(calls in prop::collection::vec((0..6_u8, 0..4_u8, 0..400_u64), 1..80)) {
            let (mut claims, capacity) = (Claims::new(4), Capacity::new(1 << 20, 1 << 20));
            let mut model: HashMap<u8, (u8, u64)> = HashMap::new();
            let mut now = 0;
            for (resource, asking, pause) in calls {
                now += pause;
                let taken = model.get(&resource).copied().filter(|(_, until)| now < *until);
                match claims.claim(name(resource), owner(asking), KEEP, at(now), &capacity) {
                    Ok(Claim::Taken) => prop_assert!(taken.is_some_and(|(owner, _)| owner != asking)),
                    Ok(Claim::Ours) => {
                        if let Some((owner, until)) = taken {
                            // A claim may change its owner only if it was removed to free space, never while it was young.
                            prop_assert!(owner == asking || now >= until - 1000 + 300, "young claim lost");
                        }
                        model.insert(resource, (asking, now + 1000));
                    }
                    Err(_) => {
                        let forgotten = taken.is_none_or(|(_, until)| now >= until - 1000 + 300);
                        prop_assert!(forgotten, "an existing claim needs no space");
                    }
                }
                prop_assert!(claims.owners.len() <= 4 && claims.order.len() == claims.owners.len());
                prop_assert_eq!(capacity.taken(), claims.owners.len() * CLAIM_BYTES);
            }
        }
    }
}
