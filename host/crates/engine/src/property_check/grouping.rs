//! Groups what a check found, so that a person can read it: statuses as ranges, and what the attempts have in common.

use super::{
    Finding, Kind,
    outcomes::{Came, REQUESTS, VERIFICATIONS, Variant},
};
use crate::contract::{Effect, Purpose};
use std::collections::BTreeMap;

/// What outcomes of one group have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) endpoint: usize,
    pub(super) effect: Effect,
    pub(super) purpose: Purpose,
    pub(super) says: String,
    pub(super) reason: Option<&'static str>,
    pub(super) host: Option<String>,
}

/// The outcomes of a key: for each, the variants of attempts for which it was found.
#[derive(Debug, Default)]
struct Outcomes {
    endpoint: String,
    statuses: BTreeMap<u16, u32>,
    failures: Vec<(String, u32)>,
    variants: BTreeMap<u32, Variant>,
}

#[derive(Debug, Default)]
pub(super) struct Groups(BTreeMap<Key, Outcomes>);

impl Groups {
    pub(super) fn add(&mut self, key: Key, endpoint: &str, came: Came, variant: &Variant) {
        let outcomes = self.0.entry(key).or_default();
        if outcomes.endpoint.is_empty() {
            endpoint.clone_into(&mut outcomes.endpoint);
        }
        outcomes.variants.insert(variant.id, *variant);
        let bit = 1 << variant.id;
        match came {
            Came::Status(status) => *outcomes.statuses.entry(status.as_u16()).or_default() |= bit,
            Came::Failed(failure) => {
                let name = format!("{}{}", failure.kind.name(), if failure.sent { "+sent" } else { "" });
                match outcomes.failures.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, variants)) => *variants |= bit,
                    None => outcomes.failures.push((name, bit)),
                }
            }
        }
    }

    /// One finding for each key and set of variants.
    pub(super) fn findings(self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (key, outcomes) in self.0 {
            let mut sets: Vec<u32> =
                outcomes.statuses.values().copied().chain(outcomes.failures.iter().map(|(_, set)| *set)).collect();
            // The sets with the most variants first: the general rule before its exceptions.
            sets.sort_by_key(|set| (std::cmp::Reverse(set.count_ones()), *set));
            sets.dedup();
            for set in sets {
                let of_set = outcomes.statuses.iter().filter(|(_, own)| **own == set).map(|(status, _)| *status);
                let failures = outcomes.failures.iter().filter(|(_, own)| *own == set).map(|(name, _)| name.clone());
                findings.push(Finding {
                    kind: key.kind,
                    endpoint: outcomes.endpoint.clone(),
                    effect: key.effect,
                    purpose: key.purpose,
                    outcomes: ranges(of_set).into_iter().chain(failures).collect(),
                    only: common(set, key.purpose, &outcomes.variants),
                    says: key.says.clone(),
                    reason: key.reason,
                    host: key.host.clone(),
                });
            }
        }
        findings
    }
}

/// Sorted numbers as ranges.
fn ranges(numbers: impl Iterator<Item = u16>) -> Vec<String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect()
}

/// What the variants of a set have in common that not all variants have.
fn common(set: u32, purpose: Purpose, variants: &BTreeMap<u32, Variant>) -> Vec<String> {
    let count = if purpose == Purpose::Probe { VERIFICATIONS } else { REQUESTS };
    if set.count_ones() == count {
        return Vec::new();
    }
    let of_set: Vec<&Variant> =
        variants.iter().filter(|(id, _)| set & (1 << **id) != 0).map(|(_, variant)| variant).collect();
    let all = |is: &dyn Fn(&Variant) -> bool| of_set.iter().all(|variant| is(variant));
    let mut common = Vec::new();
    let mut flag = |is: &dyn Fn(&Variant) -> bool, yes: &str, no: &str| {
        if all(is) {
            common.push(yes.to_owned());
        } else if all(&|variant| !is(variant)) {
            common.push(no.to_owned());
        }
    };
    flag(&|variant| variant.number > 1, "second attempt", "first attempt");
    if purpose == Purpose::Probe {
        flag(&|variant| variant.is_late == Some(true), "after commit-within", "before commit-within");
        flag(&|variant| variant.body.is_empty(), "without a body", "an empty list");
    } else {
        flag(&|variant| variant.keyed, "with a key", "without a key");
        flag(&|variant| variant.prior_unknown, "after an unknown attempt", "nothing unknown before");
        flag(&|variant| variant.hinted, "x-should-retry: true", "without hints");
    }
    if common.is_empty() {
        common.push("some attempts".to_owned());
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_are_a_range() {
        assert_eq!(ranges([100, 101, 102, 200, 500, 501].into_iter()), ["100-102", "200", "500-501"]);
        assert!(ranges(std::iter::empty()).is_empty());
    }

    #[test]
    fn only_what_distinguishes_the_attempts_is_said() {
        let variants: BTreeMap<u32, Variant> = Variant::of_requests().map(|variant| (variant.id, variant)).collect();
        let set = |is: fn(&Variant) -> bool| {
            variants.values().filter(|variant| is(variant)).map(|variant| 1 << variant.id).sum::<u32>()
        };
        let told = |is| common(set(is), Purpose::Request, &variants);
        assert!(told(|_| true).is_empty());
        assert_eq!(told(|variant| variant.prior_unknown), ["after an unknown attempt"]);
        assert_eq!(told(|variant| !variant.keyed && variant.number == 2), ["second attempt", "without a key"]);
        assert_eq!(told(|variant| variant.id != 3), ["some attempts"]);
    }
}
