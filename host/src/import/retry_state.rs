//! One request, asked until it is settled: what to do after each answer. Pure; chance is an argument.

use super::response::ResponseKind;
use std::time::Duration;

/// How often one request is asked again, and how long is waited at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Refusals with nothing sent. Default 8: with growing waits a minute, or 8 waits that the host asks for.
    pub refusals: u32,
    /// Connections lost after a send; the same key is sent again. Default 4.
    pub losses: u32,
    /// Answers that an earlier request is under way. Default 60, since the host may look for 75 s whether a create took place.
    pub in_flight: u32,
    /// The longest wait that is waited out; if the host asks for more, the request ends. Default 3 minutes.
    pub wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { refusals: 8, losses: 4, in_flight: 60, wait: Duration::from_mins(3) }
    }
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Done: the hospital's id, or how many hospitals became active.
    Applied(u64),
    /// Refused for good.
    Rejected(String),
    /// Nothing was ever sent.
    NotSent(String),
    /// It may or may not have been done.
    Unknown(String),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask again with the same key after a wait.
    Again {
        /// The wait.
        after: Duration,
        /// Why.
        why: String,
    },
    /// It is settled.
    Settled(RequestOutcome),
}

/// A request under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryState {
    patience: Patience,
    /// Whether anything may have been sent, now or in an earlier run. It never becomes false again: a later refusal says
    /// nothing about the earlier send.
    maybe_sent: bool,
    refusals: u32,
    losses: u32,
    in_flight: u32,
}

impl RetryState {
    /// Begins.
    pub fn new(patience: Patience, maybe_sent: bool) -> Self {
        Self { patience, maybe_sent, refusals: 0, losses: 0, in_flight: 0 }
    }

    /// Whether the host has to be told that the request may have been sent before.
    pub fn maybe_sent(&self) -> bool {
        self.maybe_sent
    }

    /// Takes what was heard. `random` is uniform.
    pub fn hear(&mut self, heard: ResponseKind, random: u64) -> Next {
        match heard {
            ResponseKind::Applied(number) => Next::Settled(RequestOutcome::Applied(number)),
            // Nothing was sent this time, but perhaps an earlier time.
            ResponseKind::Hopeless(why) if self.maybe_sent => Next::Settled(RequestOutcome::Unknown(why)),
            ResponseKind::Rejected(why) | ResponseKind::Hopeless(why) => Next::Settled(RequestOutcome::Rejected(why)),
            ResponseKind::Refused { after, why } => {
                self.refusals += 1;
                let tired = self.refusals >= self.patience.refusals;
                self.again(tired, after.unwrap_or_else(|| growing(self.refusals, random)), why)
            }
            ResponseKind::Lost(why) => {
                self.maybe_sent = true;
                self.losses += 1;
                self.again(self.losses >= self.patience.losses, growing(self.losses, random), why)
            }
            ResponseKind::InFlight(after) => {
                self.maybe_sent = true;
                self.in_flight += 1;
                let why = "an earlier request with this key is under way".to_owned();
                let tired = self.in_flight >= self.patience.in_flight;
                self.again(tired, after.unwrap_or_else(|| growing(self.in_flight, random)), why)
            }
            ResponseKind::Unknown(why) => {
                self.maybe_sent = true;
                Next::Settled(RequestOutcome::Unknown(why))
            }
        }
    }

    fn again(&self, tired: bool, after: Duration, why: String) -> Next {
        if !tired && after <= self.patience.wait {
            Next::Again { after, why }
        } else if self.maybe_sent {
            Next::Settled(RequestOutcome::Unknown(why))
        } else {
            Next::Settled(RequestOutcome::NotSent(why))
        }
    }
}

/// 0.5 s, doubled each time up to 16 s, of which the second half is chance, so that many rows do not come back at once.
fn growing(times: u32, random: u64) -> Duration {
    let whole = Duration::from_millis(500) * 2_u32.pow(times.saturating_sub(1).min(5));
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}
