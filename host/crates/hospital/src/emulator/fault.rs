//! Faults on demand. Choosing a fault is pure: the random number is an argument.

use super::call::Call;
use http::StatusCode;
use std::{num::NonZeroU64, ops::RangeInclusive, time::Duration};

/// A fault of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Responds with this status at once, without an effect (500 by the server; 502, 503, 504 by an edge proxy).
    FailBefore(StatusCode),
    /// Applies the request, then responds with this status.
    FailAfter(StatusCode),
    /// Resets the connection at once, without an effect.
    ResetBefore,
    /// Applies the request, then resets the connection.
    ResetAfter,
    /// Resets the connection at once, and applies a create after a random time from this range.
    ResetThenCommit(RangeInclusive<Duration>),
    /// Applies the request, then responds 200 with half of the JSON and a matching length. Other statuses stay unchanged.
    Unreadable,
    /// Applies the request, then sends the head, half of the body, and a reset.
    CutShort,
    /// Does nothing and never responds.
    StallBefore,
    /// Applies the request and never responds.
    StallAfter,
    /// Responds 429 at once, with or without Retry-After (in whole seconds).
    RateLimited(Option<Duration>),
}

/// Which of its requests a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// All requests.
    Always,
    /// Every n-th request.
    Every(NonZeroU64),
    /// The first n requests.
    First(u64),
    /// Each request with this probability. The chances of several rules for one call partition one random draw, so that 0.10 and 0.05 apply
    /// to 10 % and 5 % of the requests.
    Chance(f64),
}

impl When {
    /// Every n-th request; 0 counts as 1.
    pub fn every(n: u64) -> Self {
        Self::Every(NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN))
    }
}

/// A rule: the fault, its requests and its call.
#[derive(Debug, Clone, PartialEq)]
struct Rule {
    call: Option<Call>,
    when: When,
    fault: Fault,
    seen: u64,
}

/// A list of rules. The first one that applies to a request wins.
///
/// ```
/// use triage_hospital::emulator::{Call, Fault, Faults, When};
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
    /// No faults.
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

    /// Closes connections at accept, before a byte is read. The emulator does not know the call then, so `when` counts connections. Without
    /// a network, each request counts as a connection.
    #[must_use]
    pub fn refuse(mut self, when: When) -> Self {
        self.refuse = Some((when, 0));
        self
    }

    /// The fault for this request, if any. Every matching rule counts the request. `random` is uniformly distributed.
    pub(super) fn choose(&mut self, call: Call, random: u64) -> Option<Fault> {
        let draw = unit(random);
        let mut below = 0.0;
        let mut injected = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.call.is_none_or(|wanted| wanted == call)) {
            rule.seen += 1;
            let applies = applies(rule.when, rule.seen, draw, &mut below);
            if applies && injected.is_none() {
                injected = Some(rule.fault.clone());
            }
        }
        injected
    }

    /// Whether to close a new connection.
    pub(super) fn refuses(&mut self, random: u64) -> bool {
        self.refuse.as_mut().is_some_and(|(when, seen)| {
            *seen += 1;
            applies(*when, *seen, unit(random), &mut 0.0)
        })
    }
}

fn applies(when: When, seen: u64, draw: f64, below: &mut f64) -> bool {
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

/// A number in [0, 1) from 64 random bits: the upper 53, which a double represents exactly.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// A random duration from the range.
pub(super) fn within(range: &RangeInclusive<Duration>, random: u64) -> Duration {
    range.end().saturating_sub(*range.start()).mul_f64(unit(random)) + *range.start()
}
