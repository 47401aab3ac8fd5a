//! Traps.

use triage_policy::{Attempt, Description, Outcome, Policy, Verdict, description, endpoint};

struct Guest;

impl Policy for Guest {
    type Settings = ();

    fn describe() -> Description {
        description("trap", "0.1.0", vec![endpoint("any", "*", "/{*rest}")])
    }

    fn decide(_: &(), _: &Attempt, _: &Outcome) -> Verdict {
        core::arch::wasm32::unreachable()
    }
}

triage_policy::export!(Guest);
