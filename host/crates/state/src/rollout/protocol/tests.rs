//! Tests of each transition.

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn host_status(host: &str, staged: Option<u64>) -> HostStatus {
    HostStatus { host: host.to_owned(), generation: 0, staged }
}

fn digest(of: u8) -> Digest {
    Digest::of(&[of])
}

fn artifact(of: u8) -> PolicyRef {
    PolicyRef::Artifact(digest(of))
}

fn say(agreement: &mut Agreement, host: &str, staged: Option<u64>, word: &Message, at: Timestamp) -> MessageOutcome {
    agreement.apply(&host_status(host, staged), &FleetState::default(), word, at).0
}

fn announce(id: u64, of: u8) -> Message {
    Message::Announce { id, digest: digest(of), promoted: false, from: digest(0), others: Vec::new() }
}

/// Three hosts, one of which has announced component 1 as proposal 7.
fn proposed() -> Agreement {
    let mut all = Agreement::default();
    for host in ["b", "c"] {
        say(&mut all, host, None, &Message::Heartbeat, NOW);
    }
    assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), MessageOutcome::Done);
    all
}

#[test]
fn all_hosts_have_it_before_any_switches() {
    let mut all = proposed();
    assert_eq!((all.state.generation, all.members["a"].staged), (0, Some(7)));
    say(&mut all, "b", Some(7), &Message::Heartbeat, NOW);
    assert_eq!(all.state.generation, 0);
    say(&mut all, "c", Some(7), &Message::Heartbeat, NOW);
    assert_eq!((all.state.generation, all.state.chosen), (1, PolicyRef::Artifact(digest(1))));
    assert_eq!((all.state.before, all.proposal), (Some(PolicyRef::Artifact(digest(0))), None));
}

#[test]
fn a_host_that_cannot_get_it_is_waited_for_and_left_behind() {
    let mut all = proposed();
    let mut at = NOW;
    while at < NOW.after(STAGING_TIME) {
        assert_eq!(all.state.generation, 0, "{at:?}");
        at = at.after(Duration::from_secs(1));
        say(&mut all, "a", Some(7), &Message::Heartbeat, at);
        say(&mut all, "c", None, &Message::Heartbeat, at);
    }
    assert_eq!((all.state.generation, all.members.len()), (1, 2), "b died");
}

#[test]
fn one_refusal_ends_it_for_all() {
    let mut all = proposed();
    let refuse = Message::Refuse { id: 7, step: "signature", reason: "no".to_owned() };
    assert_eq!(say(&mut all, "c", None, &refuse, NOW), MessageOutcome::Done);
    assert_eq!((all.state.generation, all.proposal.as_ref()), (0, None));
    assert_eq!(
        all.aborted.as_ref().map(|aborted| (aborted.by.as_str(), aborted.step.as_str())),
        Some(("c", "signature"))
    );
    assert_eq!(say(&mut all, "c", None, &refuse, NOW), MessageOutcome::Stale);
}

#[test]
fn a_rolled_back_component_returns_only_by_promotion() {
    let mut one = Agreement::default();
    assert_eq!(say(&mut one, "a", None, &announce(7, 1), NOW), MessageOutcome::Done);
    assert_eq!(one.state.generation, 1, "alone it waits for nobody");
    assert_eq!(say(&mut one, "a", None, &announce(8, 1), NOW), MessageOutcome::Serving);
    let back = |generation, of| Message::RollBack { generation, chosen: artifact(of), why: Why::Fault };
    assert_eq!(say(&mut one, "a", None, &back(0, 1), NOW), MessageOutcome::Stale);
    assert_eq!(say(&mut one, "a", None, &back(1, 2), NOW), MessageOutcome::Stale);
    assert_eq!(say(&mut one, "a", None, &back(1, 1), NOW), MessageOutcome::Done);
    assert_eq!((one.state.generation, one.state.chosen), (2, artifact(0)));
    assert_eq!(say(&mut one, "a", None, &back(2, 0), NOW), MessageOutcome::NoOther);
    assert_eq!(say(&mut one, "a", None, &announce(9, 1), NOW), MessageOutcome::Quarantined);
    let promote = Message::Announce { id: 10, digest: digest(1), promoted: true, from: digest(0), others: Vec::new() };
    assert_eq!(say(&mut one, "a", None, &promote, NOW), MessageOutcome::Done);
    assert_eq!((one.state.why, one.state.quarantined.len()), (Why::Promoted, 0));
}

#[test]
fn an_operator_takes_back_what_is_proposed_and_not_what_serves() {
    let mut all = Agreement::default();
    assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), MessageOutcome::Done);
    say(&mut all, "b", None, &Message::Heartbeat, NOW);
    assert_eq!(say(&mut all, "a", None, &announce(8, 2), NOW), MessageOutcome::Done);
    let before = all.state.clone();
    let back = Message::RollBack { generation: 1, chosen: artifact(1), why: Why::Operator };
    assert_eq!(say(&mut all, "b", None, &back, NOW), MessageOutcome::Aborted);
    assert_eq!((&all.state, &all.proposal), (&before, &None));
    assert_eq!(all.aborted.as_ref().map(|own| (own.id, own.step.as_str())), Some((8, "operator")));
    assert_eq!(say(&mut all, "b", None, &back, NOW), MessageOutcome::Done, "now it is what serves that is meant");
    assert_eq!((all.state.chosen, &all.state.quarantined[..]), (artifact(0), &[digest(1)][..]));
}

/// If the announced component is the configured one, there is no policy to roll back to.
#[test]
fn the_fleet_never_rolls_back_to_the_same_component() {
    let mut all = Agreement::default();
    assert_eq!(say(&mut all, "a", None, &announce(7, 0), NOW), MessageOutcome::Done);
    assert_eq!((all.state.generation, all.state.before), (1, None));
    let back = Message::RollBack { generation: 1, chosen: artifact(0), why: Why::Operator };
    assert_eq!(say(&mut all, "a", None, &back, NOW), MessageOutcome::NoOther);
    assert!(all.state.quarantined.is_empty());
}

#[test]
fn an_announcement_waits_until_every_living_host_is_known() {
    let mut lost = Agreement::default();
    let others = vec!["b".to_owned()];
    let announce = Message::Announce { id: 7, digest: digest(1), promoted: false, from: digest(0), others };
    assert_eq!(say(&mut lost, "a", None, &announce, NOW), MessageOutcome::Gathering);
    assert_eq!(lost.proposal, None);
    say(&mut lost, "b", None, &Message::Heartbeat, NOW);
    assert_eq!(say(&mut lost, "a", None, &announce, NOW), MessageOutcome::Done);
    assert_eq!(lost.state.generation, 0, "b is waited for");
}

/// An old copy on disk does not overrule a fleet that began a new line meanwhile.
#[test]
fn another_lines_generation_is_written_back_only_where_there_is_none() {
    let mut all = Agreement::default();
    assert_eq!(say(&mut all, "a", None, &announce(7, 1), NOW), MessageOutcome::Done);
    assert_eq!(all.state.line, 7);
    let young = all.state.clone();
    let old = FleetState { line: 3, generation: 9, chosen: artifact(5), ..FleetState::default() };
    all.apply(&host_status("old", None), &old, &Message::Heartbeat, NOW);
    assert_eq!(all.state, young);
    all.apply(&host_status("old", None), &FleetState { line: 7, ..old.clone() }, &Message::Heartbeat, NOW);
    assert_eq!((all.state.generation, all.state.chosen), (9, artifact(5)), "the same line");
    let mut lost = Agreement::default();
    lost.apply(&host_status("old", None), &old, &Message::Heartbeat, NOW);
    assert_eq!(lost.state, old);
}

#[test]
fn the_highest_generation_that_a_live_host_knows_is_written_back() {
    let mut lost = Agreement::default();
    let known = |generation| FleetState { generation, chosen: PolicyRef::Artifact(digest(1)), ..FleetState::default() };
    for (own, expected) in [(4, 4), (5, 5), (3, 5)] {
        lost.apply(&host_status("a", None), &known(own), &Message::Heartbeat, NOW);
        assert_eq!(lost.state.generation, expected);
    }
}

#[test]
fn a_clock_that_is_set_back_delays_no_switch() {
    let mut all = proposed();
    let back = Timestamp(NOW.0 / 2);
    say(&mut all, "a", Some(7), &Message::Heartbeat, back);
    let later = back.after(STAGING_TIME);
    say(&mut all, "a", Some(7), &Message::Heartbeat, later);
    assert_eq!((all.state.generation, all.members.len()), (1, 1));
}
