//! Tracks the addresses of an upstream's name over successive lookups, and decides when to replace its connections.

use std::{collections::BTreeSet, net::IpAddr};

/// The addresses seen by lookups so far.
///
/// The names of large services resolve to a few of many addresses, different ones each time, and a single lookup may be wrong. A change
/// therefore counts only if two lookups in a row agree on it.
#[derive(Debug, Default)]
pub struct Followed {
    /// The addresses that connections may use.
    known: BTreeSet<IpAddr>,
    before: BTreeSet<IpAddr>,
}

impl Followed {
    /// Registers a lookup. Returns whether connections must be replaced.
    pub fn found(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        if addresses.is_empty() {
            return false;
        }
        let is_first = self.known.is_empty();
        let moved = !is_first && addresses == self.before && addresses != self.known;
        if is_first || moved {
            self.known.clone_from(&addresses);
        }
        self.before = addresses;
        moved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn lookups(all: &[&[u8]]) -> Vec<bool> {
        let mut followed = Followed::default();
        let one = |found: &&[u8]| followed.found(found.iter().map(|last| IpAddr::from([127, 0, 0, *last])).collect());
        all.iter().map(one).collect()
    }

    #[test]
    fn a_change_counts_once_it_was_seen_twice() {
        for (what, found, expected) in [
            ("the same", &[&[1u8][..], &[1], &[1]][..], &[false, false, false][..]),
            ("moved", &[&[1], &[2], &[2], &[2]], &[false, false, true, false]),
            ("one lookup erred", &[&[1], &[2], &[1], &[1]], &[false, false, false, false]),
            ("nothing found", &[&[1], &[], &[], &[1]], &[false, false, false, false]),
            ("one more", &[&[1], &[1, 2], &[1, 2], &[1, 2]], &[false, false, true, false]),
            ("one less", &[&[1, 2], &[1], &[1], &[1]], &[false, false, true, false]),
            ("taking turns", &[&[1, 2], &[2, 1], &[1, 2]], &[false, false, false]),
            ("a few of many", &[&[1], &[2], &[3], &[4], &[5], &[1]], &[false; 6]),
            ("two of many", &[&[1, 2], &[2, 3], &[3, 4], &[4, 5], &[5, 1]], &[false; 5]),
            ("back and forth", &[&[1], &[2], &[2], &[1], &[1]], &[false, false, true, false, true]),
        ] {
            assert_eq!(lookups(found), expected, "{what}");
        }
    }

    proptest! {
        /// For any history: the last two lookups, if equal, determine the addresses.
        #[test]
        fn two_equal_lookups_determine_the_addresses(before in proptest::collection::vec(proptest::collection::btree_set(0..6_u8, 0..4), 0..20), last in proptest::collection::btree_set(0..6_u8, 1..4)) {
            let mut followed = Followed::default();
            let set = |all: &BTreeSet<u8>| all.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect::<BTreeSet<_>>();
            for found in &before {
                followed.found(set(found));
            }
            followed.found(set(&last));
            followed.found(set(&last));
            prop_assert_eq!(&followed.known, &set(&last));
            prop_assert!(!followed.found(set(&last)));
        }
    }
}
