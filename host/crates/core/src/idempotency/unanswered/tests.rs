#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::rng::Rng;
use proptest::prelude::*;
use std::collections::HashMap;

const TERMS: Terms = Terms { lease: Duration::from_secs(8), kept: Duration::from_mins(10) };

fn id(n: u64) -> RecordId {
    RecordId::draw(&Rng::seeded(n))
}

fn at(seconds: u64) -> Timestamp {
    Timestamp(1_000_000).after(Duration::from_secs(seconds))
}

/// The tripwire: each of these fails if nothing is adopted, or what has a caller is.
#[test]
fn only_an_orphan_is_adopted_and_once() {
    let mut list = Unanswered::default();
    let arrive =
        |list: &mut Unanswered, n: u64, seconds| list.arrive(id(n), FencingToken(n.into()), TERMS, at(seconds));
    assert_eq!(arrive(&mut list, 1, 0), Arrival::Listed { others: false });
    assert_eq!(arrive(&mut list, 2, 0), Arrival::Listed { others: true }, "both callers are there");
    assert!(list.abandon(id(1), FencingToken(1), TERMS, at(1)));
    assert_eq!(arrive(&mut list, 3, 1), Arrival::Adopted(id(1)));
    assert_eq!(arrive(&mut list, 4, 1), Arrival::Listed { others: true }, "it was adopted already");
    assert!(!list.abandon(id(1), FencingToken(1), TERMS, at(1)), "it has another owner");
    assert!(!list.remove(id(1), FencingToken(1)), "it has another owner");
    assert!(list.remove(id(1), FencingToken(3)));
    assert_eq!(list.len(), 2);
}

#[test]
fn the_oldest_orphan_is_adopted_first() {
    let mut list = Unanswered::default();
    for n in 1..=3 {
        let _ = list.arrive(id(n), FencingToken(n.into()), TERMS, at(0));
    }
    for n in [3, 1, 2] {
        assert!(list.abandon(id(n), FencingToken(n.into()), TERMS, at(n)));
    }
    let adopted = (4..=6).map(|n| list.arrive(id(n), FencingToken(n.into()), TERMS, at(5))).collect::<Vec<_>>();
    assert_eq!(adopted, [1, 2, 3].map(|n| Arrival::Adopted(id(n))), "in the order of arrival");
}

#[test]
fn a_host_that_says_nothing_leaves_an_orphan() {
    let mut list = Unanswered::default();
    let _ = list.arrive(id(1), FencingToken(1), TERMS, at(0));
    assert!(list.renew(id(1), FencingToken(1), TERMS, at(7)));
    assert_eq!(list.recheck_orphan(id(2), FencingToken(2), TERMS, at(14)), None, "it is not listed itself");
    assert_eq!(list.arrive(id(2), FencingToken(2), TERMS, at(14)), Arrival::Listed { others: true });
    assert_eq!(list.recheck_orphan(id(2), FencingToken(2), TERMS, at(14)), None);
    assert_eq!(list.recheck_orphan(id(2), FencingToken(2), TERMS, at(15)), Some(id(1)), "its lease is over");
    assert!(!list.renew(id(1), FencingToken(1), TERMS, at(15)), "the first owner has lost it");
    assert_eq!(list.len(), 1, "its own entry is gone");
}

#[test]
fn an_entry_that_lapsed_is_no_orphan_to_its_owner() {
    let mut list = Unanswered::default();
    let _ = list.arrive(id(1), FencingToken(1), TERMS, at(0));
    assert_eq!(list.recheck_orphan(id(1), FencingToken(1), TERMS, at(100)), None);
    assert!(list.renew(id(1), FencingToken(1), TERMS, at(100)));
    assert_eq!(list.arrive(id(2), FencingToken(2), TERMS, at(100)), Arrival::Listed { others: true });
}

#[test]
fn an_orphan_is_kept_for_its_time() {
    let mut list = Unanswered::default();
    let _ = list.arrive(id(1), FencingToken(1), TERMS, at(0));
    assert!(list.abandon(id(1), FencingToken(1), TERMS, at(1)));
    let late = list.clone().arrive(id(2), FencingToken(2), TERMS, at(600));
    assert_eq!(late, Arrival::Adopted(id(1)));
    assert_eq!(list.arrive(id(2), FencingToken(2), TERMS, at(601)), Arrival::Listed { others: false });
}

#[test]
fn a_crowd_of_equals_goes_on_without_a_place() {
    let mut list = Unanswered::default();
    for n in 0..MAX_EQUAL as u64 {
        assert!(matches!(list.arrive(id(n), FencingToken(n.into()), TERMS, at(0)), Arrival::Listed { .. }));
    }
    assert_eq!(list.arrive(id(100), FencingToken(100), TERMS, at(0)), Arrival::Full);
    assert!(list.abandon(id(9), FencingToken(9), TERMS, at(0)));
    assert_eq!(list.arrive(id(100), FencingToken(100), TERMS, at(0)), Arrival::Adopted(id(9)), "that needs no space");
}

#[derive(Debug, Clone)]
enum Event {
    Arrive,
    LookAgain(usize),
    Renew(usize),
    Abandon(usize),
    Answered(usize),
    Pass(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let who = || 0..8_usize;
    let event = prop_oneof![
        4 => Just(Event::Arrive),
        2 => who().prop_map(Event::LookAgain),
        2 => who().prop_map(Event::Renew),
        3 => who().prop_map(Event::Abandon),
        2 => who().prop_map(Event::Answered),
        3 => prop_oneof![0..12_u64, 590..610_u64].prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 1..80)
}

/// A request as the model sees it: its entry, and until when its owner has said that it lives.
struct Owner {
    id: RecordId,
    fence: FencingToken,
    until: Timestamp,
    gone: bool,
}

proptest! {
    /// Whatever happens, an entry has one owner at a time, and one whose owner lives is never given away.
    #[test]
    fn an_entry_with_a_living_owner_is_never_adopted(events in events()) {
        let mut list = Unanswered::default();
        let mut owners: Vec<Owner> = Vec::new();
        let (mut now, mut drawn) = (at(0), 0_u64);
        for event in events {
            let adopted = |owners: &mut Vec<Owner>, id: RecordId, fence, now: Timestamp| {
                let before = owners.iter().position(|owner| owner.id == id).expect("an entry that was never listed");
                let before = owners.swap_remove(before);
                assert!(before.gone || before.until <= now, "its owner lives");
                owners.push(Owner { id, fence, until: now.after(TERMS.lease), gone: false });
            };
            match event {
                Event::Pass(seconds) => now = now.after(Duration::from_secs(seconds)),
                Event::Arrive => {
                    drawn += 1;
                    let (own, fence) = (id(drawn), FencingToken(drawn.into()));
                    match list.arrive(own, fence, TERMS, now) {
                        Arrival::Adopted(orphan) => adopted(&mut owners, orphan, fence, now),
                        Arrival::Listed { .. } => {
                            let until = now.after(TERMS.lease);
                            owners.push(Owner { id: own, fence, until, gone: false });
                        }
                        Arrival::Full => prop_assert!(list.len() >= MAX_EQUAL),
                    }
                }
                Event::LookAgain(n) if !owners.is_empty() => {
                    let own = n % owners.len();
                    let (id, fence) = (owners[own].id, owners[own].fence);
                    if let Some(orphan) = list.recheck_orphan(id, fence, TERMS, now) {
                        prop_assert_ne!(orphan, id);
                        owners.swap_remove(own);
                        adopted(&mut owners, orphan, fence, now);
                    }
                }
                Event::Renew(n) if !owners.is_empty() => {
                    let own = n % owners.len();
                    let owner = &mut owners[own];
                    if !owner.gone && list.renew(owner.id, owner.fence, TERMS, now) {
                        owner.until = now.after(TERMS.lease);
                    }
                }
                Event::Abandon(n) if !owners.is_empty() => {
                    let own = n % owners.len();
                    let owner = &mut owners[own];
                    if list.abandon(owner.id, owner.fence, TERMS, now) {
                        owner.gone = true;
                        owner.until = now;
                    }
                }
                Event::Answered(n) if !owners.is_empty() => {
                    let owner = owners.swap_remove(n % owners.len());
                    list.remove(owner.id, owner.fence);
                    prop_assert!(!list.remove(owner.id, owner.fence));
                }
                _ => {}
            }
            owners.retain(|owner| now < owner.until.after(TERMS.kept));
            list.purge_expired(TERMS.kept, now);
            let listed: HashMap<_, _> = list.0.iter().map(|entry| (entry.id, entry.owner)).collect();
            prop_assert_eq!(listed.len(), list.len(), "an entry is there once");
            let known: HashMap<_, _> = owners.iter().map(|owner| (owner.id, owner.fence)).collect();
            prop_assert_eq!(listed, known);
        }
    }
}
