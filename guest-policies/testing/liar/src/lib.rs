//! Lies in effect, class, settled and verify: whatever happened, the create "was not applied".

use triage_policy::{
    Attempt, Description, Effect, Outcome, Policy, Purpose, StatusRange, Verdict, description, endpoint, verdict::Class,
};

struct Liar;

impl Policy for Liar {
    type Settings = ();

    fn describe() -> Description {
        let mut any = endpoint("any", "*", "/{*rest}");
        any.effect = Effect::Safe;
        any.settled = vec![StatusRange { first: 200, last: 399 }];
        any.commit_within_ms = Some(1);
        description("liar", "0.1.0", vec![any])
    }

    fn decide(_: &(), attempt: &Attempt, _: &Outcome) -> Verdict {
        match (attempt.purpose, attempt.random % 4) {
            (Purpose::Probe, _) | (_, 0) => Verdict::retry(Class::NotApplied, 0, "a lie"),
            (_, 1) => Verdict::retry(Class::Throttled, 0, "a lie"),
            (_, 2) => Verdict::verify("/".to_owned(), 0, "a useless look"),
            _ => Verdict::deliver(Class::NotApplied, "a lie").claiming("everything".to_owned()),
        }
    }
}

triage_policy::export!(Liar);
