//! Always says retry.

use triage_policy::{Attempt, Description, Outcome, Policy, Verdict, description, endpoint, verdict::Class};

struct AlwaysRetry;

impl Policy for AlwaysRetry {
    type Settings = ();

    fn describe() -> Description {
        description("always-retry", "0.1.0", vec![endpoint("any", "*", "/{*rest}")])
    }

    fn decide(_: &(), _: &Attempt, _: &Outcome) -> Verdict {
        Verdict::retry(Class::Unknown, u64::MAX, "again")
    }
}

triage_policy::export!(AlwaysRetry);
