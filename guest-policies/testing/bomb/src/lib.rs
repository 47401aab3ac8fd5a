//! Allocates without end.

use triage_policy::{Attempt, Description, Outcome, Policy, Verdict, description, endpoint};

struct Guest;

impl Policy for Guest {
    type Settings = ();

    fn describe() -> Description {
        description("bomb", "0.1.0", vec![endpoint("any", "*", "/{*rest}")])
    }

    fn decide(_: &(), _: &Attempt, _: &Outcome) -> Verdict {
        let mut hoard: Vec<Vec<u8>> = Vec::new();
        loop {
            hoard.push(core::hint::black_box(vec![1; 1 << 20]));
        }
    }
}

triage_policy::export!(Guest);
