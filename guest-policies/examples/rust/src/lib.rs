//! parcels: what went wrong, and whether to try again.

use triage_policy::{Attempt, Description, Effect, Outcome, Policy, Verdict, description, endpoint, verdict::Class};

struct Mine;

impl Policy for Mine {
    /// The table `policy_settings` of the configuration; any type with `Deserialize` and `Default`.
    type Settings = ();

    fn describe() -> Description {
        let mut any = endpoint("any", "*", "/{*rest}");
        // All that `decide` sees of an answer besides its status.
        any.interest.response_headers = vec!["retry-after".to_owned()];
        any.interest.response_body_bytes = 200;
        description("parcels", env!("CARGO_PKG_VERSION"), vec![any])
    }

    fn decide(_settings: &(), attempt: &Attempt, outcome: &Outcome) -> Verdict {
        match outcome {
            // An API that answers 200 while it still works on it.
            Outcome::Response(r) if r.body.starts_with(b"PENDING") => {
                Verdict::retry(Class::NotApplied, 2000, "pending")
            }
            Outcome::Response(r) if r.status < 400 => Verdict::deliver(Class::Applied, "success"),
            Outcome::Response(r) if r.status == 429 => Verdict::throttled(5000, Some(5000)),
            Outcome::Response(r) if r.status < 500 => Verdict::deliver(Class::Rejected, "refused"),
            // A write that may have been done is never sent again blindly.
            _ if attempt.effect == Effect::Unsafe => Verdict::deliver(Class::Unknown, "it may have been done"),
            _ => Verdict::retry(Class::Unknown, 2000, "no usable answer"),
        }
    }
}

triage_policy::export!(Mine);
