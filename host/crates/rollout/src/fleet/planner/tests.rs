#![allow(clippy::unwrap_used)]

//! The actions of one host, without a server.

use super::*;
use crate::{
    fleet::{notices::Notice, staging::Unstaged},
    state::rollout::Host,
    upstream_runtime::StagePhase,
};

const NOW: Timestamp = Timestamp(1_000_000_000);

fn digest(of: u8) -> Digest {
    Digest::of(&[of])
}

/// A host whose configuration names component 0.
fn course() -> Planner {
    Planner::new("a".to_owned(), digest(0), FleetState::default())
}

fn state(generation: u64, of: u8, why: Why) -> FleetState {
    FleetState { generation, chosen: PolicyRef::Artifact(digest(of)), why, by: "b".to_owned(), ..FleetState::default() }
}

fn proposal(id: u64, of: u8) -> Proposed {
    Proposed { id, digest: digest(of), by: "b".to_owned(), promoted: false, left: Duration::from_secs(30) }
}

fn hear(course: &mut Planner, state: FleetState, proposed: Option<Proposed>) -> Vec<Notice> {
    let view = FleetStatus { state, proposed, ..FleetStatus::default() };
    course.process_reply(&Message::Heartbeat, &MessageReply { outcome: MessageOutcome::Done, flawed: false, view }, NOW)
}

/// Staging because the fleet already serves the component.
fn catch_up(of: u8) -> Next {
    Next::Stage { digest: digest(of), promoted: false, within: None }
}

/// Staging for a proposal: with a time limit.
fn stage(of: u8) -> Next {
    Next::Stage { digest: digest(of), promoted: false, within: Some(STAGING_TIME) }
}

fn refused() -> Unstaged {
    Unstaged::Refused(StagePhase::Load, "no".to_owned())
}

#[test]
fn a_host_stages_a_proposal_and_serves_it_after_the_switch() {
    let mut own = course();
    let serving = Some(digest(0));
    assert_eq!(own.next(serving, &[digest(0)], NOW), Next::Rest);
    let notices = hear(&mut own, FleetState::default(), Some(proposal(7, 1)));
    assert!(matches!(&notices[..], [Notice::Proposed(_)]), "{notices:?}");
    assert_eq!(hear(&mut own, FleetState::default(), Some(proposal(7, 1))), [], "reported once");
    assert_eq!(own.next(serving, &[digest(0)], NOW), stage(1));
    own.begin(digest(1));
    assert_eq!(own.next(serving, &[digest(0)], NOW), Next::Rest, "one at a time");
    own.end(digest(1));
    let shelf = [digest(0), digest(1)];
    assert_eq!((own.next(serving, &shelf, NOW), own.host_status(serving, &shelf).staged), (Next::Rest, Some(7)));
    hear(&mut own, state(1, 1, Why::Announced), None);
    assert_eq!(own.next(serving, &shelf, NOW), Next::Install { digest: digest(1), promoted: false });
    assert_eq!(own.settle(serving), None, "it does not serve yet");
    assert!(own.behind(serving) && own.host_status(serving, &shelf).generation == 0);
    assert!(matches!(own.settle(Some(digest(1))), Some(Notice::Serves { generation: 1, .. })));
    assert_eq!((own.next(Some(digest(1)), &shelf, NOW), own.settle(Some(digest(1)))), (Next::Rest, None));
}

#[test]
fn a_host_reports_a_refusal_to_the_fleet_and_does_not_try_again() {
    let mut own = course();
    hear(&mut own, FleetState::default(), Some(proposal(7, 1)));
    assert!(matches!(own.failed(digest(1), refused(), NOW), Some(Notice::NotStaged { .. })));
    let word = own.next_message();
    assert_eq!(word, Message::Refuse { id: 7, step: "load", reason: "no".to_owned() });
    let later = NOW.after(MAX_WAIT);
    assert_eq!(own.next(Some(digest(0)), &[], later), Next::Rest);
    let view = FleetStatus { proposed: Some(proposal(7, 1)), ..FleetStatus::default() };
    own.process_reply(&word, &MessageReply { outcome: MessageOutcome::Done, flawed: false, view }, NOW);
    assert_eq!(own.next_message(), Message::Heartbeat, "said once");
}

#[test]
fn an_unavailable_component_is_tried_again_at_growing_intervals() {
    let mut own = course();
    hear(&mut own, state(1, 1, Why::Announced), Some(proposal(7, 2)));
    let (serving, away) = (Some(digest(0)), Unstaged::Away("no".to_owned()));
    let mut at = NOW;
    for (round, seconds) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        for of in [1, 2] {
            assert_eq!(own.failed(digest(of), away.clone(), at).is_some(), round == 0, "reported once");
        }
        assert_eq!(own.next(serving, &[], at.after(Duration::from_millis(seconds * 1000 - 1))), Next::Rest, "{round}");
        at = at.after(Duration::from_secs(seconds));
        assert_eq!(own.next(serving, &[], at), catch_up(1), "{round}");
    }
    assert_eq!(own.next_message(), Message::Heartbeat, "it is no reason to refuse it");
    assert!(own.why_behind().unwrap().starts_with("pull: "));
}

#[test]
fn a_fault_is_said_until_it_is_heard_and_only_of_the_fleets_own() {
    let mut own = course();
    assert!(!own.fault(Some(digest(0))), "the fleet has said nothing");
    hear(&mut own, state(3, 1, Why::Announced), None);
    assert!(!own.fault(Some(digest(0))), "another one");
    assert!(own.fault(Some(digest(1))));
    let word = own.next_message();
    assert_eq!(word, Message::RollBack { generation: 3, chosen: PolicyRef::Artifact(digest(1)), why: Why::Fault });
    let (view, outcome) =
        (FleetStatus { state: state(3, 1, Why::Announced), ..FleetStatus::default() }, MessageOutcome::NoOther);
    let notices = own.process_reply(&word, &MessageReply { outcome, flawed: false, view }, NOW);
    assert_eq!(
        (&notices[..], own.next_message()),
        (&[Notice::NotRolledBack { generation: 3 }][..], Message::Heartbeat)
    );
    assert!(own.settle(Some(digest(1))).is_some());
    assert_eq!(own.host_status(Some(digest(0)), &[]).generation, 2, "it fell back by itself");
}

#[test]
fn a_pardon_is_for_once() {
    let mut own = course();
    hear(&mut own, state(1, 1, Why::Promoted), None);
    let next = |own: &Planner| own.next(Some(digest(0)), &[digest(1)], NOW);
    assert_eq!(next(&own), Next::Install { digest: digest(1), promoted: true });
    own.installed();
    hear(&mut own, state(1, 1, Why::Promoted), None);
    assert_eq!(next(&own), Next::Install { digest: digest(1), promoted: false });
}

#[test]
fn an_older_answer_changes_nothing_and_a_flaw_is_noticed_once() {
    let mut own = course();
    hear(&mut own, state(5, 1, Why::Announced), None);
    hear(&mut own, state(4, 2, Why::Announced), None);
    assert_eq!((own.known().generation, own.target()), (5, digest(1)));
    hear(&mut own, state(5, 3, Why::Announced), None);
    assert_eq!(own.target(), digest(3), "what stands there counts");
    assert_eq!((own.flawed(), own.flawed()), (Some(Notice::Flawed), None));
    hear(&mut own, state(5, 3, Why::Announced), None);
    assert_eq!(own.flawed(), Some(Notice::Flawed));
}

#[test]
fn a_host_begins_where_it_was() {
    let own = Planner::new("a".to_owned(), digest(0), state(4, 1, Why::Announced));
    assert_eq!((own.elsewhere(), own.known().generation), (Some(digest(1)), 4));
    assert_eq!(course().elsewhere(), None);
}

/// Two policies with one number: invalid data may hold one, and after the last number no other follows.
#[test]
fn a_generation_is_known_by_what_it_is_and_not_only_by_its_number() {
    let mut own = course();
    hear(&mut own, state(5, 1, Why::Announced), None);
    assert!(own.settle(Some(digest(1))).is_some());
    assert_eq!(own.host_status(Some(digest(1)), &[]).generation, 5);
    hear(&mut own, state(5, 2, Why::Announced), None);
    assert_eq!(own.host_status(Some(digest(1)), &[]).generation, 4, "it is behind");
    assert_eq!(own.next(Some(digest(1)), &[digest(2)], NOW), Next::Install { digest: digest(2), promoted: false });
    assert!(matches!(own.settle(Some(digest(2))), Some(Notice::Serves { generation: 5, .. })));
    assert_eq!(own.host_status(Some(digest(2)), &[]).generation, 5);
}

/// A host's state of one line says nothing about another line.
#[test]
fn another_lines_generation_is_followed_though_its_number_is_lower() {
    let mut own = Planner::new("a".to_owned(), digest(0), FleetState { line: 1, ..state(9, 1, Why::Announced) });
    hear(&mut own, FleetState { line: 2, ..state(3, 2, Why::Announced) }, None);
    assert_eq!((own.known().generation, own.target()), (3, digest(2)));
    hear(&mut own, FleetState { line: 2, ..state(2, 1, Why::Announced) }, None);
    hear(&mut own, FleetState::default(), None);
    assert_eq!((own.known().generation, own.target()), (3, digest(2)), "answers that were overtaken");
}

#[test]
fn the_one_to_go_back_to_is_brought_when_there_is_nothing_else_to_do() {
    let mut own = course();
    let back = || FleetState { before: Some(PolicyRef::Artifact(digest(2))), ..state(4, 1, Why::Announced) };
    hear(&mut own, back(), None);
    let serving = Some(digest(1));
    assert_eq!(own.next(Some(digest(0)), &[], NOW), catch_up(1), "not before what should serve");
    assert_eq!(own.next(serving, &[digest(1)], NOW), stage(2));
    assert_eq!(own.next(serving, &[digest(1), digest(2)], NOW), Next::Rest);
    own.begin(digest(3));
    assert_eq!(own.next(serving, &[digest(1)], NOW), Next::Rest, "something else is under way");
    own.end(digest(3));
    let notices = own.failed(digest(2), Unstaged::Away("no".to_owned()), NOW);
    assert!(matches!(notices, Some(Notice::NotKept { .. })), "{notices:?}");
    let later = NOW.after(MAX_WAIT);
    assert_eq!(own.next(serving, &[digest(1)], later), stage(2), "and tried again");
    own.failed(digest(2), refused(), NOW);
    assert_eq!(own.next(serving, &[digest(1)], later.after(MAX_WAIT)), Next::Rest, "unless it is refused");
    assert_eq!(own.next_message(), Message::Heartbeat);
}

/// A slow pull of one component must not delay another one.
#[test]
fn a_slow_pull_holds_no_proposal_up() {
    let mut own = course();
    hear(&mut own, state(1, 1, Why::Announced), Some(proposal(7, 2)));
    assert_eq!(own.next(Some(digest(0)), &[], NOW), catch_up(1));
    own.begin(digest(1));
    assert_eq!(own.next(Some(digest(0)), &[], NOW), stage(2));
    own.begin(digest(2));
    hear(&mut own, state(1, 1, Why::Announced), Some(proposal(8, 3)));
    assert_eq!(own.next(Some(digest(0)), &[], NOW), Next::Rest, "two at most");
    own.end(digest(2));
    assert_eq!(own.next(Some(digest(0)), &[], NOW), stage(3));
}

#[test]
fn a_host_does_not_claim_a_component_that_it_rolled_back() {
    let mut own = course();
    hear(&mut own, FleetState::default(), Some(proposal(7, 1)));
    assert_eq!((own.claimed(&[]), own.claimed(&[digest(1)])), (None, Some(digest(1))));
    own.failed(digest(1), Unstaged::quarantined(), NOW);
    assert_eq!((own.claimed(&[digest(1)]), own.host_status(Some(digest(0)), &[digest(1)]).staged), (None, None));
    assert!(matches!(own.next_message(), Message::Refuse { id: 7, step: "quarantine", .. }));
    hear(&mut own, FleetState::default(), Some(Proposed { promoted: true, ..proposal(8, 1) }));
    assert_eq!((own.claimed(&[digest(1)]), own.host_status(None, &[digest(1)]).staged), (None, Some(8)), "pardoned");
}

#[test]
fn a_host_is_stranded_where_it_serves_what_was_rolled_back_and_refuses_the_rest() {
    let mut own = course();
    let back = FleetState { quarantined: vec![digest(1)], ..state(2, 2, Why::Operator) };
    hear(&mut own, back, None);
    assert!(!own.is_stranded(Some(digest(1))), "it may come yet");
    own.failed(digest(2), Unstaged::Away("no".to_owned()), NOW);
    assert!(!own.is_stranded(Some(digest(1))));
    own.failed(digest(2), Unstaged::quarantined(), NOW);
    assert!(own.is_stranded(Some(digest(1))) && !own.is_stranded(Some(digest(0))) && !own.is_stranded(Some(digest(2))));
    own.unquarantine();
    assert!(!own.is_stranded(Some(digest(1))));
    assert_eq!(own.next(Some(digest(1)), &[digest(2)], NOW), Next::Install { digest: digest(2), promoted: true });
}

#[test]
fn hosts_that_were_just_heard_of_are_named() {
    let mut own = course();
    let host = |name: &str, silent| Host { name: name.to_owned(), silent, generation: 0, staged: None };
    let hosts = vec![host("a", Duration::ZERO), host("b", Duration::from_secs(1)), host("c", Duration::from_secs(4))];
    let hear = |own: &mut Planner, hosts, at| {
        let view = FleetStatus { hosts, ..FleetStatus::default() };
        own.process_reply(
            &Message::Heartbeat,
            &MessageReply { outcome: MessageOutcome::Done, flawed: false, view },
            at,
        );
    };
    hear(&mut own, hosts, NOW);
    assert_eq!(own.others(NOW), ["b"], "not this host, and not one that may be gone");
    hear(&mut own, Vec::new(), NOW);
    assert_eq!(own.others(NOW), ["b"], "also where shared state has lost it");
    assert_eq!(own.others(NOW.after(MAX_STATUS_AGE)), [""; 0]);
}
