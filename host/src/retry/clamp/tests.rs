#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::policy::contract::BreakerSignal;
use proptest::prelude::*;

const SETTINGS: Settings =
    Settings { max_attempts: 3, min_wait: Duration::from_secs(2), max_wait: Duration::from_secs(10) };

fn verdict(class: Class, next: Next) -> Verdict {
    Verdict { class, breaker: BreakerSignal::Ignore, next, claim: None, pause: None, reason: String::new() }
}

fn facts() -> Facts {
    Facts {
        effect: Effect::Unsafe,
        granted: false,
        purpose: Purpose::Request,
        seen: Seen::Status(500),
        attempts: 1,
        probes: 0,
        unsettled: false,
        repeatable: true,
        sent_ago: Some(Duration::ZERO),
        commit_within: Some(Duration::from_secs(75)),
        remaining: Duration::from_secs(120),
        attempt_needs: Duration::from_secs(5),
        hint: None,
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

fn seen() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(Seen::NotSent), Just(Seen::Lost), (100_u16..600).prop_map(Seen::Status)]
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let effect = prop::sample::select(vec![Effect::Safe, Effect::Idempotent, Effect::Unsafe]);
    let purpose = prop::sample::select(vec![Purpose::Request, Purpose::Probe]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let counts = (1_u32..6, 0_u32..60);
    let times = (prop::option::of(0_u64..200), prop::option::of(1_u64..100), 0_u64..200, prop::option::of(0_u64..100));
    (effect, purpose, seen(), flags, counts, times).prop_map(
        |(effect, purpose, seen, (granted, unsettled, repeatable), (attempts, probes), (sent, within, left, hint))| {
            Facts {
                effect,
                granted,
                purpose,
                seen,
                attempts,
                probes,
                unsettled,
                repeatable,
                sent_ago: sent.map(Duration::from_secs),
                commit_within: within.map(Duration::from_secs),
                remaining: Duration::from_secs(left),
                attempt_needs: Duration::from_secs(5),
                hint: hint.map(Duration::from_secs),
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Invariant 1, against any guest.
    #[test]
    fn an_ungranted_unsafe_request_is_resent_only_with_proof(
        mut facts in any_facts(), class in class(), next in next(),
    ) {
        facts.granted = false;
        facts.effect = Effect::Unsafe;
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let Step::Retry(_) = clamped.step {
            let told = matches!(class, Class::NotApplied | Class::Throttled);
            let proven = facts.seen == Seen::NotSent || (matches!(facts.seen, Seen::Status(425 | 429)) && told);
            prop_assert!(proven && !facts.unsettled && facts.purpose == Purpose::Request, "{facts:?}");
        }
        prop_assert!(!matches!(clamped.step, Step::Verify(_) | Step::Replace(_)), "{clamped:?}");
        // A class that frees the idempotency key needs the same proof.
        if matches!(clamped.class, Class::NotApplied | Class::Throttled | Class::AlreadyApplied) {
            prop_assert!(!facts.unsettled && facts.seen != Seen::Lost, "{facts:?} {clamped:?}");
        }
    }

    /// Invariant 1, the granted half: absence counts only after commit-within.
    #[test]
    fn a_probe_that_finds_nothing_too_early_resends_nothing(mut facts in any_facts(), class in class(), next in next()) {
        facts.granted = true;
        facts.effect = Effect::Unsafe;
        facts.purpose = Purpose::Probe;
        facts.unsettled = true;
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let Step::Retry(_) = clamped.step {
            prop_assert!(facts.sent_ago.unwrap() >= facts.commit_within.unwrap(), "{facts:?}");
        }
    }

    /// Invariant 2.
    #[test]
    fn no_attempt_beyond_ceiling_deadline_or_body(facts in any_facts(), class in class(), next in next()) {
        let wished = next.clone();
        let clamped = clamp(verdict(class, next), &facts, &SETTINGS);
        if let Step::Retry(delay) = clamped.step {
            prop_assert!(facts.attempts < SETTINGS.max_attempts && facts.repeatable);
            prop_assert!(delay + facts.attempt_needs <= facts.remaining);
            prop_assert!(facts.hint.is_none_or(|hint| delay >= hint), "a clamp never shortens what the upstream asked for");
            prop_assert!(matches!(wished, Next::Retry(_)), "the host never invents a retry");
        }
        if let Step::Verify(probe) = &clamped.step {
            prop_assert!(facts.granted && facts.effect != Effect::Safe && probe.delay < facts.remaining);
        }
    }
}

type Case = (&'static str, Facts, Class, Next, Class, Step, Option<Limit>);

#[test]
fn what_is_done_with_each_verdict() {
    let granted = Facts { granted: true, ..facts() };
    let retry = || Next::Retry(Duration::from_secs(3));
    let cases: Vec<Case> = vec![
        ("lying not-applied", facts(), Class::NotApplied, retry(), Class::Unknown, Step::Deliver, Some(Limit::Effect)),
        (
            "lost and lying",
            Facts { seen: Seen::Lost, ..facts() },
            Class::NotApplied,
            retry(),
            Class::Unknown,
            Step::Unsettled,
            Some(Limit::Effect),
        ),
        (
            "refused connection",
            Facts { seen: Seen::NotSent, ..facts() },
            Class::NotApplied,
            retry(),
            Class::NotApplied,
            Step::Retry(Duration::from_secs(3)),
            None,
        ),
        (
            "throttled, wait does not fit",
            Facts { seen: Seen::Status(429), hint: Some(Duration::from_secs(600)), ..facts() },
            Class::Throttled,
            retry(),
            Class::Throttled,
            Step::Deliver,
            Some(Limit::Deadline),
        ),
        (
            "ungranted replace",
            facts(),
            Class::Applied,
            replacement(),
            Class::Unknown,
            Step::Deliver,
            Some(Limit::Grant),
        ),
        ("granted deliver", granted, Class::Unknown, Next::Deliver, Class::Unknown, Step::Deliver, None),
        (
            "absent too early",
            Facts { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(74)), ..granted },
            Class::NotApplied,
            retry(),
            Class::Unknown,
            Step::Unsettled,
            Some(Limit::TooEarly),
        ),
        (
            "refused for good, says a look that came too early",
            Facts { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(74)), ..granted },
            Class::Rejected,
            Next::Deliver,
            Class::Unknown,
            Step::Unsettled,
            None,
        ),
        (
            "absent in time",
            Facts { purpose: Purpose::Probe, unsettled: true, sent_ago: Some(Duration::from_secs(75)), ..granted },
            Class::NotApplied,
            retry(),
            Class::NotApplied,
            Step::Retry(Duration::from_secs(3)),
            None,
        ),
        (
            "read, third attempt",
            Facts { effect: Effect::Safe, attempts: 3, ..facts() },
            Class::Unknown,
            retry(),
            Class::Unknown,
            Step::Deliver,
            Some(Limit::Attempts),
        ),
        (
            "absurd delay",
            Facts { effect: Effect::Safe, ..facts() },
            Class::Unknown,
            Next::Retry(Duration::from_millis(u64::MAX)),
            Class::Unknown,
            Step::Retry(Duration::from_secs(10)),
            None,
        ),
    ];
    for (name, facts, said, next, class, step, limit) in cases {
        assert_eq!(clamp(verdict(said, next), &facts, &SETTINGS), Clamped { class, step, limit }, "{name}");
    }
}
