//! Panics, with a text that quotes the request.

use triage_policy::{Attempt, Description, Outcome, Policy, Verdict, description, endpoint};

struct Guest;

impl Policy for Guest {
    type Settings = ();

    fn describe() -> Description {
        let mut any = endpoint("any", "*", "/{*rest}");
        any.interest.path = true;
        description("panic", "0.1.0", vec![any])
    }

    fn decide(_: &(), attempt: &Attempt, _: &Outcome) -> Verdict {
        panic!("no verdict for {:?}", attempt.path);
    }
}

triage_policy::export!(Guest);
