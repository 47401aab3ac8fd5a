//! The state of one request until it is settled: decides on the next step after each response. Pure; randomness is an argument.

use super::response::ResponseKind;
use std::time::Duration;

/// Limits for repetitions and waits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryLimits {
    /// Refusals with nothing sent. Default 8: about a minute of growing waits, or 8 waits that the host asks for.
    pub refusals: u32,
    /// Connections lost after a send, each followed by a send with the same key. Default 4.
    pub losses: u32,
    /// Responses that an earlier request is still running. Default 60, since the host may verify a create for 75 s.
    pub in_flight: u32,
    /// The longest wait. If the host asks for a longer one, the request ends. Default 3 min.
    pub wait: Duration,
}

impl Default for RetryLimits {
    fn default() -> Self {
        Self { refusals: 8, losses: 4, in_flight: 60, wait: Duration::from_mins(3) }
    }
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Applied. The number is the hospital's id, or how many hospitals became active.
    Applied(u64),
    /// Rejected permanently.
    Rejected(String),
    /// Never sent.
    NotSent(String),
    /// The effect is unknown.
    Unknown(String),
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Repeat with the same key after a wait.
    Again {
        /// Time to wait.
        after: Duration,
        /// The reason to repeat.
        why: String,
    },
    /// Settled.
    Settled(RequestOutcome),
}

/// The state of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryState {
    retry_limits: RetryLimits,
    /// Whether the request may ever have been sent, in this or an earlier run. Never becomes false again, because a later refusal says
    /// nothing about an earlier send.
    maybe_sent: bool,
    refusals: u32,
    losses: u32,
    in_flight: u32,
}

impl RetryState {
    /// The state before the first send of this run.
    pub fn new(retry_limits: RetryLimits, maybe_sent: bool) -> Self {
        Self { retry_limits, maybe_sent, refusals: 0, losses: 0, in_flight: 0 }
    }

    /// Whether the request must state that it may have been sent before.
    pub fn maybe_sent(&self) -> bool {
        self.maybe_sent
    }

    /// Decides after a response. `random` is uniformly distributed.
    pub fn decide(&mut self, response: ResponseKind, random: u64) -> Next {
        match response {
            ResponseKind::Applied(number) => Next::Settled(RequestOutcome::Applied(number)),
            // Nothing was sent this time, but an earlier request may have been.
            ResponseKind::Hopeless(why) if self.maybe_sent => Next::Settled(RequestOutcome::Unknown(why)),
            ResponseKind::Rejected(why) | ResponseKind::Hopeless(why) => Next::Settled(RequestOutcome::Rejected(why)),
            ResponseKind::Refused { after, why } => {
                self.refusals += 1;
                let tired = self.refusals >= self.retry_limits.refusals;
                self.again(tired, after.unwrap_or_else(|| growing(self.refusals, random)), why)
            }
            ResponseKind::Lost(why) => {
                self.maybe_sent = true;
                self.losses += 1;
                self.again(self.losses >= self.retry_limits.losses, growing(self.losses, random), why)
            }
            ResponseKind::InFlight(after) => {
                self.maybe_sent = true;
                self.in_flight += 1;
                let why = "an earlier request with this key is under way".to_owned();
                let tired = self.in_flight >= self.retry_limits.in_flight;
                self.again(tired, after.unwrap_or_else(|| growing(self.in_flight, random)), why)
            }
            ResponseKind::Unknown(why) => {
                self.maybe_sent = true;
                Next::Settled(RequestOutcome::Unknown(why))
            }
        }
    }

    fn again(&self, tired: bool, after: Duration, why: String) -> Next {
        if !tired && after <= self.retry_limits.wait {
            Next::Again { after, why }
        } else if self.maybe_sent {
            Next::Settled(RequestOutcome::Unknown(why))
        } else {
            Next::Settled(RequestOutcome::NotSent(why))
        }
    }
}

/// Exponential backoff: 0.5 s, doubled up to 16 s. The second half is random, so that many rows do not retry at once.
fn growing(times: u32, random: u64) -> Duration {
    let whole = Duration::from_millis(500) * 2_u32.pow(times.saturating_sub(1).min(5));
    let half = whole / 2;
    half + half.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}
