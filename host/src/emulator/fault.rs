//! Faults on demand. Choosing one is pure: the chance is an argument.

use super::call::Call;
use http::StatusCode;
use std::{num::NonZeroU64, ops::RangeInclusive, time::Duration};

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status at once, nothing done (500 by the server; 502, 503, 504 by an edge before it).
    FailBefore(StatusCode),
    /// Done, then answered with this status.
    FailAfter(StatusCode),
    /// The connection is reset at once, nothing done.
    ResetBefore,
    /// Done, then the connection is reset instead of an answer.
    ResetAfter,
    /// The connection is reset at once, and a create is committed only after a time from this range.
    ResetThenCommit(RangeInclusive<Duration>),
    /// Done, then answered 200 with half of the JSON and a length that agrees with the half. Other statuses pass.
    Unreadable,
    /// Done, then the head of the answer, half of the body, and a reset.
    CutShort,
    /// Nothing done and nothing answered, for ever.
    StallBefore,
    /// Done, then nothing answered, for ever.
    StallAfter,
    /// 429 at once, with or without Retry-After (in whole seconds).
    RateLimited(Option<Duration>),
}

/// Which of the requests that a rule is for it strikes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// Every one.
    Always,
    /// The n-th, the 2n-th and so on.
    Every(NonZeroU64),
    /// The first n, then none.
    First(u64),
    /// Each with this probability. The chances of several rules for one call are shares of one draw, so that 0.10 and
    /// 0.05 strike 10 % and 5 % of the requests.
    Chance(f64),
}

impl When {
    /// The n-th of every n; 0 counts as 1.
    pub fn every(n: u64) -> Self {
        Self::Every(NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN))
    }
}

/// One rule: what, when, and for which call.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    call: Option<Call>,
    when: When,
    fault: Fault,
    seen: u64,
}

/// A list of rules; the first that strikes counts.
///
/// ```
/// use triage::emulator::{Call, Fault, Faults, When};
/// let faults = Faults::none()
///     .on(Call::Create, When::every(3), Fault::ResetAfter)
///     .anywhere(When::Chance(0.05), Fault::FailBefore(http::StatusCode::BAD_GATEWAY));
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Faults {
    rules: Vec<Rule>,
    refuse: Option<(When, u64)>,
}

impl Faults {
    /// All goes well.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds a rule for one call.
    #[must_use]
    pub fn on(mut self, call: Call, when: When, fault: Fault) -> Self {
        self.rules.push(Rule { call: Some(call), when, fault, seen: 0 });
        self
    }

    /// Adds a rule for every call.
    #[must_use]
    pub fn anywhere(mut self, when: When, fault: Fault) -> Self {
        self.rules.push(Rule { call: None, when, fault, seen: 0 });
        self
    }

    /// Closes connections as they come in, before a byte was read. Which call it would have been is unknown then, so this
    /// counts connections; in-process every request is one.
    #[must_use]
    pub fn refuse(mut self, when: When) -> Self {
        self.refuse = Some((when, 0));
        self
    }

    /// The fault that strikes this request, if any; counts it for every rule it matches. `random` is uniform.
    pub(super) fn strike(&mut self, call: Call, random: u64) -> Option<Fault> {
        let draw = unit(random);
        let mut below = 0.0;
        let mut struck = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.call.is_none_or(|wanted| wanted == call)) {
            rule.seen += 1;
            let strikes = strikes(rule.when, rule.seen, draw, &mut below);
            if strikes && struck.is_none() {
                struck = Some(rule.fault.clone());
            }
        }
        struck
    }

    /// Whether a connection that comes in now is closed.
    pub(super) fn refuses(&mut self, random: u64) -> bool {
        self.refuse.as_mut().is_some_and(|(when, seen)| {
            *seen += 1;
            strikes(*when, *seen, unit(random), &mut 0.0)
        })
    }
}

fn strikes(when: When, seen: u64, draw: f64, below: &mut f64) -> bool {
    match when {
        When::Always => true,
        When::Every(n) => seen.is_multiple_of(n.get()),
        When::First(n) => seen <= n,
        When::Chance(share) => {
            let from = *below;
            *below += share.clamp(0.0, 1.0);
            (from..*below).contains(&draw)
        }
    }
}

/// A number in [0, 1) from 64 random bits: the upper 53, as many as a double holds.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// A time from the range, by chance.
pub(super) fn within(range: &RangeInclusive<Duration>, random: u64) -> Duration {
    range.end().saturating_sub(*range.start()).mul_f64(unit(random)) + *range.start()
}
