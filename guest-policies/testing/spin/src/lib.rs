//! Never returns.

use triage_policy::{Attempt, Description, Outcome, Policy, Verdict, description, endpoint};

struct Guest;

impl Policy for Guest {
    type Settings = ();

    fn describe() -> Description {
        description("spin", "0.1.0", vec![endpoint("any", "*", "/{*rest}")])
    }

    fn decide(_: &(), _: &Attempt, _: &Outcome) -> Verdict {
        loop {
            core::hint::black_box(());
        }
    }
}

triage_policy::export!(Guest);
