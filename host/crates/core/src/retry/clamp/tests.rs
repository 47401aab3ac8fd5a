#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::contract::BreakerSignal;
use proptest::prelude::*;

const SETTINGS: Settings =
    Settings { max_attempts: 3, min_wait: Duration::from_secs(2), max_wait: Duration::from_secs(10) };

fn verdict(class: Class, next: Next) -> Verdict {
    Verdict { class, breaker: BreakerSignal::Ignore, next, claim: None, pause: None, reason: String::new() }
}

fn facts() -> ClampInput {
    ClampInput {
        effect: Effect::Unsafe,
        granted: false,
        purpose: Purpose::Request,
        seen: ObservedResult::Status(500),
        attempts: 1,
        verifications: 0,
        unsettled: false,
        repeatable: true,
        sent_ago: Some(Duration::ZERO),
        commit_within: Some(Duration::from_secs(75)),
        remaining: Duration::from_secs(120),
        attempt_needs: Duration::from_secs(5),
        hint: None,
        upstream_key: None,
    }
}

fn probe(delay: Duration) -> Next {
    Next::Verify(Probe {
        method: http::Method::GET,
        path_and_query: "/".to_owned(),
        headers: http::HeaderMap::new(),
        delay,
    })
}

fn replacement() -> Next {
    Next::Replace(Replacement {
        status: http::StatusCode::OK,
        headers: http::HeaderMap::new(),
        body: bytes::Bytes::new(),
    })
}

fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(vec![
        Class::Applied,
        Class::AlreadyApplied,
        Class::NotApplied,
        Class::Throttled,
        Class::Unknown,
        Class::Rejected,
    ])
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        Just(Next::Deliver),
        any::<u64>().prop_map(|ms| Next::Retry(Duration::from_millis(ms))),
        (0_u64..100_000).prop_map(|ms| probe(Duration::from_millis(ms))),
        Just(replacement()),
    ]
}

fn seen() -> impl Strategy<Value = ObservedResult> {
    prop_oneof![
        Just(ObservedResult::NotSent),
        Just(ObservedResult::Lost),
        (100_u16..600).prop_map(ObservedResult::Status),
        // HTTP has no such status, but an upstream may send it.
        any::<u16>().prop_map(ObservedResult::Status)
    ]
}

fn any_facts() -> impl Strategy<Value = ClampInput> {
    let effect = prop::sample::select(vec![Effect::Safe, Effect::Idempotent, Effect::Unsafe]);
    let purpose = prop::sample::select(vec![Purpose::Request, Purpose::Probe]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let counts = (1_u32..6, 0_u32..60);
    let times = (prop::option::of(0_u64..200), prop::option::of(1_u64..100), 0_u64..200, prop::option::of(0_u64..100));
    (effect, purpose, seen(), flags, counts, times).prop_map(
        |(
            effect,
            purpose,
            seen,
            (granted, unsettled, repeatable),
            (attempts, verifications),
            (sent, within, left, hint),
        )| {
            ClampInput {
                effect,
                granted,
                purpose,
                seen,
                attempts,
                verifications,
                unsettled,
                repeatable,
                sent_ago: sent.map(Duration::from_secs),
                commit_within: within.map(Duration::from_secs),
                remaining: Duration::from_secs(left),
                attempt_needs: Duration::from_secs(5),
                hint: hint.map(Duration::from_secs),
                upstream_key: None,
            }
        },
    )
}

fn key_facts() -> impl Strategy<Value = KeyFacts> {
    let answers =
        [KeyAnswer::Silent, KeyAnswer::InProgress, KeyAnswer::Conflict, KeyAnswer::Mismatch, KeyAnswer::Replayed];
    let answer = prop::sample::select(answers.to_vec());
    (answer, prop::option::of(0_u64..200), 1_u64..200, any::<bool>(), 0_u32..60).prop_map(
        |(answer, first, valid_for, on_every_send, in_progress)| KeyFacts {
            answer,
            first_sent_ago: first.map(Duration::from_secs),
            valid_for: Duration::from_secs(valid_for),
            on_every_send,
            in_progress,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    /// Invariant 1, with a key of the upstream's own: it adds one proof, and only while that proof holds.
    #[test]
    fn a_key_allows_another_send_only_while_it_is_the_same_and_valid(
        mut facts in any_facts(), key in key_facts(), class in class(), next in next(),
    ) {
        let without = clamp(verdict(class, next.clone()), &facts, &SETTINGS);
        facts.upstream_key = Some(key);
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let NextAction::Resend(delay) = clamped.step {
            prop_assert!(facts.effect == Effect::Unsafe && clamped.class == Class::Unknown && facts.repeatable, "{facts:?}");
            prop_assert!(key.on_every_send, "a send without the key, or with another one");
            let arrives = key.first_sent_ago.unwrap() + delay + facts.attempt_needs;
            prop_assert!(arrives < key.valid_for, "the upstream may have forgotten the key: {facts:?}");
            prop_assert!(facts.hint.is_none_or(|hint| delay >= hint), "a clamp never shortens what the upstream asked for");
            prop_assert!(delay + facts.attempt_needs <= facts.remaining, "{facts:?}");
            prop_assert!(facts.attempts - facts.attempts.min(key.in_progress) < SETTINGS.max_attempts, "{facts:?}");
            let is_final = matches!(key.answer, KeyAnswer::Mismatch | KeyAnswer::Replayed);
            prop_assert!(facts.purpose == Purpose::Probe || !is_final, "{facts:?}");
        }
        // A retry by any other reason is one without the key too.
        if matches!(clamped.step, NextAction::Retry(_)) {
            prop_assert_eq!(&clamped.step, &without.step);
        }
        // What frees the record, or ends it as done, needs a reason of its own where the key does not speak for all sends.
        if !key.answers_for_all() && facts.effect == Effect::Unsafe && clamped.class != Class::Unknown {
            prop_assert_eq!(clamped.class, without.class);
        }
        // A refusal that is not a stored one says nothing of a send before it.
        let refused = matches!(clamped.class, Class::Rejected | Class::NotApplied | Class::Throttled);
        if facts.effect == Effect::Unsafe && facts.unsettled && facts.purpose == Purpose::Request && refused {
            prop_assert!(key.answer == KeyAnswer::Replayed && key.answers_for_all(), "{facts:?} {clamped:?}");
        }
    }

    /// Invariant 1, against any guest.
    #[test]
    fn an_ungranted_unsafe_request_is_resent_only_with_proof(
        mut facts in any_facts(), class in class(), next in next(),
    ) {
        facts.granted = false;
        facts.effect = Effect::Unsafe;
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let NextAction::Retry(_) = clamped.step {
            let proves = matches!(class, Class::NotApplied | Class::Throttled);
            let proven = facts.seen == ObservedResult::NotSent || (matches!(facts.seen, ObservedResult::Status(425 | 429)) && proves);
            prop_assert!(proven && !facts.unsettled && facts.purpose == Purpose::Request, "{facts:?}");
        }
        prop_assert!(!matches!(clamped.step, NextAction::Verify(_) | NextAction::Replace(_) | NextAction::Resend(_)), "{clamped:?}");
        // A class that frees the idempotency key needs the same proof.
        if matches!(clamped.class, Class::NotApplied | Class::Throttled | Class::AlreadyApplied) {
            prop_assert!(!facts.unsettled && facts.seen != ObservedResult::Lost, "{facts:?} {clamped:?}");
        }
    }

    /// Invariant 1, against a policy that the operator trusts: while an earlier send is unknown, an earlier owner's too, only a
    /// verification or the upstream's own key allows another one.
    #[test]
    fn no_word_of_a_policy_resends_what_is_unsettled(
        mut facts in any_facts(), attempts in 0_u32..3, class in class(), next in next(),
    ) {
        facts = ClampInput { granted: true, effect: Effect::Unsafe, purpose: Purpose::Request, unsettled: true, attempts, ..facts };
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        prop_assert!(!matches!(clamped.step, NextAction::Retry(_) | NextAction::Resend(_)), "{facts:?} {clamped:?}");
    }

    /// Invariant 1, for any grant: what the host counts as unknown it does not send again because a policy says so.
    #[test]
    fn no_unsafe_request_that_counts_as_unknown_is_retried(mut facts in any_facts(), class in class(), next in next()) {
        facts.effect = Effect::Unsafe;
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        // The host's own proof counts, whatever the policy says: nothing was sent.
        let was_sent = facts.seen != ObservedResult::NotSent;
        prop_assert!(
            clamped.class != Class::Unknown || !was_sent || !matches!(clamped.step, NextAction::Retry(_)),
            "{facts:?} {clamped:?}"
        );
    }

    /// Invariant 1, the granted half: absence counts only after commit-within.
    #[test]
    fn a_probe_that_finds_nothing_too_early_resends_nothing(mut facts in any_facts(), class in class(), next in next()) {
        facts.granted = true;
        facts.effect = Effect::Unsafe;
        facts.purpose = Purpose::Probe;
        facts.unsettled = true;
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let NextAction::Retry(_) = clamped.step {
            prop_assert!(facts.sent_ago.unwrap() >= facts.commit_within.unwrap(), "{facts:?}");
        }
    }

    /// Invariant 2.
    #[test]
    fn no_attempt_beyond_ceiling_deadline_or_body(facts in any_facts(), class in class(), next in next()) {
        let wished = next.clone();
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let NextAction::Retry(delay) = clamped.step {
            prop_assert!(facts.attempts < SETTINGS.max_attempts && facts.repeatable);
            prop_assert!(delay + facts.attempt_needs <= facts.remaining);
            prop_assert!(facts.hint.is_none_or(|hint| delay >= hint), "a clamp never shortens what the upstream asked for");
            prop_assert!(matches!(wished, Next::Retry(_)), "the host never invents a retry");
        }
        if let NextAction::Verify(probe) = &clamped.step {
            prop_assert!(facts.granted && facts.effect != Effect::Safe && probe.delay < facts.remaining);
        }
    }
}

type Case = (&'static str, ClampInput, Class, Next, Class, NextAction, Option<ClampReason>);

#[test]
fn each_verdict_is_clamped_by_the_facts() {
    let granted = ClampInput { granted: true, ..facts() };
    let retry = || Next::Retry(Duration::from_secs(3));
    let cases: Vec<Case> = vec![
        (
            "lying not-applied",
            facts(),
            Class::NotApplied,
            retry(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::Effect),
        ),
        (
            "lost and lying",
            ClampInput { seen: ObservedResult::Lost, ..facts() },
            Class::NotApplied,
            retry(),
            Class::Unknown,
            NextAction::Unsettled,
            Some(ClampReason::Effect),
        ),
        (
            "refused connection",
            ClampInput { seen: ObservedResult::NotSent, ..facts() },
            Class::NotApplied,
            retry(),
            Class::NotApplied,
            NextAction::Retry(Duration::from_secs(3)),
            None,
        ),
        (
            "throttled, wait does not fit",
            ClampInput { seen: ObservedResult::Status(429), hint: Some(Duration::from_secs(600)), ..facts() },
            Class::Throttled,
            retry(),
            Class::Throttled,
            NextAction::Deliver,
            Some(ClampReason::Deadline),
        ),
        (
            "ungranted replace",
            facts(),
            Class::Applied,
            replacement(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::Grant),
        ),
        ("granted deliver", granted, Class::Unknown, Next::Deliver, Class::Unknown, NextAction::Deliver, None),
        (
            "absent too early",
            ClampInput { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(74)), ..granted },
            Class::NotApplied,
            retry(),
            Class::Unknown,
            NextAction::Unsettled,
            Some(ClampReason::TooEarly),
        ),
        (
            "refused for good, says a verification that was sent too early",
            ClampInput { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(74)), ..granted },
            Class::Rejected,
            Next::Deliver,
            Class::Unknown,
            NextAction::Unsettled,
            None,
        ),
        (
            "absent in time",
            ClampInput { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(75)), ..granted },
            Class::NotApplied,
            retry(),
            Class::NotApplied,
            NextAction::Retry(Duration::from_secs(3)),
            None,
        ),
        (
            "read, third attempt",
            ClampInput { effect: Effect::Safe, attempts: 3, ..facts() },
            Class::Unknown,
            retry(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::Attempts),
        ),
        (
            "absurd delay",
            ClampInput { effect: Effect::Safe, ..facts() },
            Class::Unknown,
            Next::Retry(Duration::from_millis(u64::MAX)),
            Class::Unknown,
            NextAction::Retry(Duration::from_secs(10)),
            None,
        ),
    ];
    for (name, facts, said, next, class, step, limit) in cases {
        assert_eq!(clamp(verdict(said, next), &facts, &SETTINGS), Clamped { class, step, limit }, "{name}");
    }
}

#[test]
#[allow(clippy::too_many_lines)] // A table.
fn what_a_key_of_the_upstream_changes() {
    let seconds = Duration::from_secs;
    let key = KeyFacts {
        answer: KeyAnswer::Silent,
        first_sent_ago: Some(seconds(1)),
        valid_for: seconds(86_400),
        on_every_send: true,
        in_progress: 0,
    };
    let with = |key: KeyFacts| ClampInput { upstream_key: Some(key), ..facts() };
    let again = |facts: ClampInput| ClampInput { unsettled: true, attempts: 2, ..facts };
    let deliver = || Next::Deliver;
    let cases: Vec<Case> = vec![
        ("500", with(key), Class::Unknown, deliver(), Class::Unknown, NextAction::Resend(seconds(2)), None),
        (
            "no answer, after two attempts",
            ClampInput { seen: ObservedResult::Lost, ..again(with(key)) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Resend(seconds(4)),
            None,
        ),
        (
            "503 that asks for a wait",
            ClampInput { hint: Some(seconds(7)), ..with(key) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Resend(seconds(7)),
            None,
        ),
        (
            "a record that another owner left",
            ClampInput { seen: ObservedResult::Lost, attempts: 0, unsettled: true, ..with(key) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Resend(Duration::ZERO),
            None,
        ),
        (
            "the key is no longer valid",
            with(KeyFacts { first_sent_ago: Some(seconds(86_393)), ..key }),
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::UpstreamKey),
        ),
        (
            "a send did not carry it",
            with(KeyFacts { on_every_send: false, ..key }),
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::UpstreamKey),
        ),
        (
            "no attempts left",
            ClampInput { attempts: 3, unsettled: true, ..with(key) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Unsettled,
            Some(ClampReason::Attempts),
        ),
        (
            "in progress: the waits are no attempts",
            ClampInput {
                seen: ObservedResult::Status(409),
                attempts: 6,
                unsettled: true,
                ..with(KeyFacts { answer: KeyAnswer::InProgress, in_progress: 4, ..key })
            },
            Class::Rejected,
            deliver(),
            Class::Unknown,
            NextAction::Resend(seconds(10)),
            None,
        ),
        (
            "a conflict at the first attempt is an answer",
            ClampInput { seen: ObservedResult::Status(409), ..with(KeyFacts { answer: KeyAnswer::Conflict, ..key }) },
            Class::Rejected,
            deliver(),
            Class::Rejected,
            NextAction::Deliver,
            None,
        ),
        (
            "the same conflict after an unknown send may be the send itself",
            ClampInput {
                seen: ObservedResult::Status(409),
                ..again(with(KeyFacts { answer: KeyAnswer::Conflict, ..key }))
            },
            Class::Rejected,
            deliver(),
            Class::Unknown,
            NextAction::Resend(seconds(4)),
            None,
        ),
        (
            "success answers for all sends",
            ClampInput { seen: ObservedResult::Status(200), ..again(with(key)) },
            Class::Applied,
            deliver(),
            Class::Applied,
            NextAction::Deliver,
            None,
        ),
        (
            "a stored refusal does too",
            ClampInput {
                seen: ObservedResult::Status(402),
                ..again(with(KeyFacts { answer: KeyAnswer::Replayed, ..key }))
            },
            Class::Rejected,
            deliver(),
            Class::Rejected,
            NextAction::Deliver,
            None,
        ),
        (
            "a refusal that is not stored may be a gateway's",
            ClampInput { seen: ObservedResult::Status(401), attempts: 3, unsettled: true, ..with(key) },
            Class::Rejected,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            Some(ClampReason::Attempts),
        ),
        (
            "a stored 500 stays what it is",
            ClampInput {
                seen: ObservedResult::Status(500),
                ..again(with(KeyFacts { answer: KeyAnswer::Replayed, ..key }))
            },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            None,
        ),
        (
            "another request's key, at the first attempt",
            ClampInput { seen: ObservedResult::Status(400), ..with(KeyFacts { answer: KeyAnswer::Mismatch, ..key }) },
            Class::Rejected,
            deliver(),
            Class::Rejected,
            NextAction::Deliver,
            None,
        ),
        (
            "another request's key, after an unknown send",
            ClampInput {
                seen: ObservedResult::Status(422),
                ..again(with(KeyFacts { answer: KeyAnswer::Mismatch, ..key }))
            },
            Class::Rejected,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            None,
        ),
        (
            "the policy's verification found nothing in time",
            ClampInput { purpose: Purpose::Probe, seen: ObservedResult::Status(200), ..again(with(key)) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Resend(seconds(4)),
            None,
        ),
        (
            "an idempotent request needs none",
            ClampInput { effect: Effect::Idempotent, ..with(key) },
            Class::Unknown,
            deliver(),
            Class::Unknown,
            NextAction::Deliver,
            None,
        ),
    ];
    for (name, facts, said, next, class, step, limit) in cases {
        assert_eq!(clamp(verdict(said, next), &facts, &SETTINGS), Clamped { class, step, limit }, "{name}");
    }
}
