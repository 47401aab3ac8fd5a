//! Decides, as a pure function, whether the record of an ended request is finished, released or kept as unknown.
//!
//! A key is released only with proof that the request has no effect, because the next request with a released key is sent.

use crate::contract::{Class, Effect};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With an answer that can be replayed: the upstream's, or one that a policy made.
    Answered,
    /// With a refusal of the host's own.
    Refused {
        /// Whether a byte of the request may have been sent.
        maybe_sent: bool,
        /// Whether the refusal says itself that the effect is unknown.
        effect_unknown: bool,
    },
}

/// The facts that [`retention`] depends on.
// The flags are independent: no two of them form one state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The strictest of method, policy and configuration.
    pub effect: Effect,
    /// Whether the operator trusts the policy to settle unknown writes here.
    pub granted: bool,
    /// The class of the last outcome, clamped; `not-applied` where nothing was sent.
    pub class: Class,
    /// Whether an attempt's effect is unknown.
    pub unsettled: bool,
    /// Whether the request has an idempotency key. Without one, only an unknown effect keeps the record: no later request can ask
    /// for a replay.
    pub keyed: bool,
    /// Whether the record holds a proof of absence that its caller needs when the request is refused.
    pub keeps_proof: bool,
    /// How the request ended.
    pub ending: Ending,
}

/// The result of [`retention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// The record is finished: repetitions get a replay of the answer.
    Finish,
    /// The record is deleted: the next request with the key is sent.
    Release,
    /// The record stays, with an unknown effect: the next request with the key first verifies the effect.
    KeepUnknown,
}

/// Decides whether the record is finished, released or kept as unknown.
pub fn retention(ended: &Ended) -> Retention {
    let Ended { effect, granted, class, unsettled, keyed, keeps_proof, ending } = *ended;
    let is_free = match (ending, class) {
        (Ending::Answered, Class::Applied | Class::AlreadyApplied) if keyed => return Retention::Finish,
        (Ending::Answered, Class::Applied | Class::AlreadyApplied) => return Retention::Release,
        // Without a grant, only the guest claims the rejection: replay it, but never free the key for another send.
        (Ending::Answered, Class::Rejected) if effect == Effect::Unsafe && !granted && keyed => {
            return Retention::Finish;
        }
        (Ending::Answered, Class::NotApplied | Class::Throttled | Class::Rejected) => true,
        (Ending::Refused { effect_unknown, .. }, Class::NotApplied | Class::Throttled | Class::Rejected) => {
            !effect_unknown && !keeps_proof
        }
        (Ending::Refused { maybe_sent, .. }, Class::Unknown) => !maybe_sent && !keeps_proof,
        // Keep the record: the effect is unknown, or the write was applied but has no answer to replay.
        (Ending::Answered, Class::Unknown) | (Ending::Refused { .. }, Class::Applied | Class::AlreadyApplied) => false,
    };
    if is_free && !unsettled { Retention::Release } else { Retention::KeepUnknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Ending = Ending::Refused { maybe_sent: false, effect_unknown: false };

    const ENDED: Ended = Ended {
        effect: Effect::Unsafe,
        granted: true,
        class: Class::Unknown,
        unsettled: false,
        keyed: true,
        keeps_proof: false,
        ending: REFUSED,
    };

    fn kept(class: Class, ending: Ending) -> Retention {
        retention(&Ended { class, ending, ..ENDED })
    }

    #[test]
    fn each_class_with_an_answer_and_without_one() {
        use Retention::{Finish, KeepUnknown, Release};
        for (class, answered, refused) in [
            (Class::Applied, Finish, KeepUnknown),
            (Class::AlreadyApplied, Finish, KeepUnknown),
            (Class::NotApplied, Release, Release),
            (Class::Throttled, Release, Release),
            (Class::Rejected, Release, Release),
            (Class::Unknown, KeepUnknown, Release),
        ] {
            assert_eq!(kept(class, Ending::Answered), answered, "{class:?} with an answer");
            assert_eq!(kept(class, REFUSED), refused, "{class:?}, and nothing was sent");
        }
    }

    #[test]
    fn a_write_that_may_have_been_sent_is_kept_as_unknown() {
        let sent = Ending::Refused { maybe_sent: true, effect_unknown: false };
        assert_eq!(kept(Class::Unknown, sent), Retention::KeepUnknown);
        let unknown = Ending::Refused { maybe_sent: true, effect_unknown: true };
        assert_eq!(kept(Class::NotApplied, unknown), Retention::KeepUnknown);
    }

    #[test]
    fn an_earlier_attempt_that_is_unknown_keeps_the_record() {
        for class in [Class::NotApplied, Class::Throttled, Class::Rejected, Class::Unknown] {
            for ending in [Ending::Answered, REFUSED] {
                let ended = Ended { class, unsettled: true, ending, ..ENDED };
                assert_eq!(retention(&ended), Retention::KeepUnknown, "{ended:?}");
            }
        }
    }

    #[test]
    fn a_rejection_by_a_policy_without_a_grant_is_replayed() {
        let ended = Ended { granted: false, class: Class::Rejected, ending: Ending::Answered, ..ENDED };
        assert_eq!(retention(&ended), Retention::Finish);
    }

    #[test]
    fn without_a_key_only_what_is_unknown_is_kept() {
        for class in [Class::Applied, Class::AlreadyApplied, Class::Rejected, Class::NotApplied] {
            for granted in [true, false] {
                let ended = Ended { granted, class, keyed: false, ending: Ending::Answered, ..ENDED };
                assert_eq!(retention(&ended), Retention::Release, "{ended:?}");
            }
        }
        let unknown = Ended { keyed: false, ending: Ending::Answered, ..ENDED };
        assert_eq!(retention(&unknown), Retention::KeepUnknown);
    }

    #[test]
    fn a_proof_of_absence_that_the_caller_needs_is_kept() {
        for class in [Class::NotApplied, Class::Unknown] {
            let ended = Ended { class, keeps_proof: true, ..ENDED };
            assert_eq!(retention(&ended), Retention::KeepUnknown, "{ended:?}");
        }
    }
}
