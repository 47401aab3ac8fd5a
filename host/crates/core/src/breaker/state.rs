//! The breaker's transitions: pure functions of state, event and time.

use super::{
    Settings,
    baseline::{Baseline, Usual},
    window::{Counts, Window},
};
use crate::{
    clock::{Timestamp, micros},
    contract::BreakerSignal,
};
use std::{fmt, time::Duration};

/// The state of a new breaker.
const INITIAL_STATE: State = State::Closed { failures_in_row: 0, window: Window::EMPTY };

/// Numbers the states of a breaker: every transition begins a new epoch, and a result from an older epoch changes nothing. `random` makes
/// sure that epochs do not repeat after the store lost its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    random: u64,
    counter: u64,
}

/// What tripped a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trip {
    /// This number of failures in a row.
    Consecutive(u32),
    /// The share of failures in the window, in percent.
    FailureRate(u32),
    /// The share of failures in the window, in percent, which is far above the usual share, in thousandths.
    Unusual(u32, u32),
    /// The share of slow calls in the window, in percent.
    SlowRate(u32),
    /// A probe failed.
    ProbeFailed,
    /// An operator opened it.
    Forced,
    /// Python workers that share it opened it.
    Pybreaker,
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consecutive(count) => write!(f, "{count} failures in a row"),
            Self::FailureRate(percent) => write!(f, "{percent} % of calls failed"),
            Self::Unusual(percent, usual) => {
                let (whole, tenth) = (usual / 10, usual % 10);
                write!(f, "{percent} % of calls failed; {whole}.{tenth} % is usual")
            }
            Self::SlowRate(percent) => write!(f, "{percent} % of calls were slow"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::Forced => f.write_str("an operator opened it"),
            Self::Pybreaker => f.write_str("pybreaker opened it"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Closed {
        failures_in_row: u32,
        window: Window,
    },
    Open {
        until: Timestamp,
        since: Timestamp,
        trips: u32,
        why: Trip,
    },
    /// An operator holds the breaker closed until this time: no result is counted.
    ForcedClosed {
        until: Timestamp,
    },
    /// Leases of the probes under way, by number and end.
    HalfOpen {
        leases: Vec<(u64, Timestamp)>,
        successes: u32,
        trips: u32,
        why: Trip,
    },
}

/// One breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    epoch: Epoch,
    next_lease: u64,
    state: State,
    /// The usual share of failures, learned only if a baseline is configured.
    usual: Usual,
}

/// The breaker's permit for one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    epoch: Epoch,
    lease: Option<u64>,
}

impl Ticket {
    /// Whether the attempt is a probe of a half-open breaker.
    pub fn is_probe(&self) -> bool {
        self.lease.is_some()
    }
}

/// Whether an attempt may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Pass(Ticket),
    /// Not now.
    Refused {
        /// The time until an attempt may be admitted.
        retry_after: Duration,
        /// What tripped the breaker.
        why: Trip,
    },
}

/// A change of state, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It opened.
    Opened {
        /// Why.
        why: Trip,
        /// For how long.
        open_for: Duration,
    },
    /// It closed.
    Closed,
    /// An operator forced it closed.
    Held {
        /// For how long.
        hold: Duration,
    },
}

impl BreakerState {
    /// The name in metrics and answers.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An operator's command to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Refuse all attempts for this time; then probes decide.
    Open(Duration),
    /// Admit all attempts for this time, whatever their results; then start anew, closed.
    Close(Duration),
    /// Start anew, closed, without the learned share of failures.
    Reset,
    /// End `Open` or `Close`: a breaker that was forced open admits probes now, one that was forced closed starts anew. Has no effect on a
    /// breaker that is not forced.
    Clear,
}

/// A breaker's status, for the admin API and metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerStatus {
    /// Closed, open or half-open.
    pub state: BreakerState,
    /// What tripped it; none while it is closed.
    pub why: Option<Trip>,
    /// Whether an operator forced it.
    pub forced: bool,
    /// The time until an open breaker admits probes, or until an operator's command ends.
    pub remaining: Option<Duration>,
    /// The time since it opened.
    pub open_since: Option<Duration>,
    /// Failures in a row.
    pub failures_in_row: u32,
    /// The weighted counts of the sliding window.
    pub counts: Counts,
    /// The usual share of failures, in thousandths; none without a baseline, or while the share is not known yet.
    pub usual_milli: Option<u32>,
    /// Probes under way.
    pub probes: usize,
    /// The number of transitions so far.
    pub epoch: u64,
}

/// The state of a breaker without its counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum BreakerState {
    /// Attempts pass.
    Closed,
    /// Attempts are refused.
    Open,
    /// Only probes pass.
    HalfOpen,
}

impl Breaker {
    /// A closed breaker. `random` tells its epochs from those of an earlier breaker.
    pub fn new(random: u64) -> Self {
        Self { epoch: Epoch { random, counter: 0 }, next_lease: 0, state: INITIAL_STATE, usual: Usual::default() }
    }

    /// Admits or refuses one attempt.
    pub fn admit(&mut self, now: Timestamp, settings: &Settings) -> Admission {
        if let State::Open { until, trips, why, .. } = self.state {
            if now < until {
                return Admission::Refused { retry_after: until.since(now), why };
            }
            self.enter(State::HalfOpen { leases: Vec::new(), successes: 0, trips, why });
        }
        if matches!(self.state, State::ForcedClosed { until } if until <= now) {
            self.enter(INITIAL_STATE);
        }
        let epoch = self.epoch;
        match &mut self.state {
            State::HalfOpen { leases, why, .. } => {
                leases.retain(|(_, ends)| *ends > now);
                if leases.len() >= settings.probes.max(1) as usize {
                    let first = leases.iter().map(|(_, ends)| ends.since(now)).min().unwrap_or_default();
                    return Admission::Refused { retry_after: first, why: *why };
                }
                let lease = self.next_lease;
                self.next_lease += 1;
                leases.push((lease, now.after(settings.probe_lease)));
                Admission::Pass(Ticket { epoch, lease: Some(lease) })
            }
            State::Closed { .. } | State::ForcedClosed { .. } | State::Open { .. } => {
                Admission::Pass(Ticket { epoch, lease: None })
            }
        }
    }

    /// Checks the ticket again right before the send, and renews a probe's lease, so that it runs from the send. False: the ticket is void.
    pub fn recheck(&mut self, ticket: &Ticket, now: Timestamp, settings: &Settings) -> bool {
        if ticket.epoch != self.epoch {
            return false;
        }
        match (&mut self.state, ticket.lease) {
            (State::HalfOpen { leases, .. }, Some(lease)) => {
                let Some((_, ends)) = leases.iter_mut().find(|(number, ends)| *number == lease && *ends > now) else {
                    return false;
                };
                *ends = now.after(settings.probe_lease);
                true
            }
            (State::Closed { .. } | State::ForcedClosed { .. }, None) => true,
            _ => false,
        }
    }

    /// Records a result. `random` spreads the open time.
    pub fn record(
        &mut self,
        ticket: &Ticket,
        signal: BreakerSignal,
        took: Duration,
        now: Timestamp,
        random: u64,
        settings: &Settings,
    ) -> Option<Transition> {
        if ticket.epoch != self.epoch {
            return None;
        }
        match (&mut self.state, ticket.lease) {
            (State::HalfOpen { leases, successes, trips, .. }, Some(lease)) => {
                let held = leases.iter().any(|(number, ends)| *number == lease && *ends > now);
                leases.retain(|(number, _)| *number != lease);
                match signal {
                    // The lease has ended: another probe may run in its stead, whose result decides.
                    _ if !held => None,
                    BreakerSignal::Ignore => None,
                    BreakerSignal::Failure => {
                        let trips = trips.saturating_add(1);
                        Some(self.open(Trip::ProbeFailed, trips, now, random, settings))
                    }
                    BreakerSignal::Success => {
                        *successes += 1;
                        if *successes < settings.probes.max(1) {
                            return None;
                        }
                        self.enter(INITIAL_STATE);
                        Some(Transition::Closed)
                    }
                }
            }
            (State::Closed { failures_in_row, window }, None) => {
                if signal == BreakerSignal::Ignore {
                    return None;
                }
                let failed = signal == BreakerSignal::Failure;
                let slow = settings.slow_call_after.is_some_and(|limit| took >= limit);
                *failures_in_row = if failed { failures_in_row.saturating_add(1) } else { 0 };
                let left = window.add(failed, slow, settings.window, now);
                if let (Some(_), Some(left)) = (settings.baseline_percent, left) {
                    self.usual.learn(left, now);
                }
                let why = tripped(*failures_in_row, window, failed || slow, self.usual, now, settings)?;
                Some(self.open(why, 0, now, random, settings))
            }
            _ => None,
        }
    }

    /// Extends the open time of a breaker to the time that the upstream asked for (`Retry-After`), at most the longest open time. Applies
    /// only if the breaker opened in the epoch of the answered attempt: by that attempt, or while it was in flight. Returns the new open
    /// time from now on; none if it did not change.
    pub fn lengthen(
        &mut self,
        ticket: &Ticket,
        asked: Duration,
        now: Timestamp,
        settings: &Settings,
    ) -> Option<Duration> {
        let opened_in = Epoch { counter: self.epoch.counter.checked_sub(1)?, ..self.epoch };
        let State::Open { until, why, .. } = &mut self.state else { return None };
        if ticket.epoch != opened_in || *why == Trip::Forced {
            return None;
        }
        let open_for = asked.min(settings.open_for_max.max(settings.open_for));
        let wanted = now.after(open_for);
        if wanted <= *until {
            return None;
        }
        *until = wanted;
        Some(open_for)
    }

    /// Returns an unused ticket: the lease of its probe is free again.
    pub fn give_back(&mut self, ticket: &Ticket) {
        if let (State::HalfOpen { leases, .. }, Some(lease)) = (&mut self.state, ticket.lease)
            && ticket.epoch == self.epoch
        {
            leases.retain(|(number, _)| *number != lease);
        }
    }

    /// Closed, open or half-open, as of the last event.
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed { .. } | State::ForcedClosed { .. } => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Executes an operator's command. None: no transition to report.
    pub fn force(&mut self, force: Force, now: Timestamp) -> Option<Transition> {
        match (force, &self.state) {
            (Force::Open(open_for), _) => {
                let why = Trip::Forced;
                self.enter(State::Open { until: now.after(open_for), since: now, trips: 0, why });
                Some(Transition::Opened { why, open_for })
            }
            (Force::Close(hold), _) => {
                self.enter(State::ForcedClosed { until: now.after(hold) });
                Some(Transition::Held { hold })
            }
            (Force::Clear, State::Open { why: Trip::Forced, since, .. }) => {
                let since = *since;
                self.enter(State::Open { until: now, since, trips: 0, why: Trip::Forced });
                None
            }
            (Force::Reset, _) | (Force::Clear, State::ForcedClosed { .. }) => {
                if force == Force::Reset {
                    self.usual = Usual::default();
                }
                self.enter(INITIAL_STATE);
                Some(Transition::Closed)
            }
            (Force::Clear, _) => None,
        }
    }

    /// Takes over the state of the fleet's breaker, so that this host continues from it if it loses shared state. A half-open state becomes
    /// an open one that ends now, so that the host sends its own probes then.
    pub fn follow(&mut self, state: BreakerState, forced: bool, why: Option<Trip>, left: Duration, now: Timestamp) {
        let until = now.after(left);
        self.enter(match (state, why) {
            (BreakerState::Closed, _) if forced => State::ForcedClosed { until },
            (BreakerState::Closed, _) | (_, None) => INITIAL_STATE,
            (BreakerState::Open | BreakerState::HalfOpen, Some(why)) => {
                State::Open { until, since: now, trips: 0, why }
            }
        });
    }

    /// Whether an operator's command is in force, which [`Force::Clear`] would end.
    pub fn is_forced(&self, now: Timestamp) -> bool {
        match self.state {
            State::Open { why: Trip::Forced, until, .. } | State::ForcedClosed { until } => now < until,
            _ => false,
        }
    }

    /// The status as of `now`: an open time or an operator's command that has ended counts as ended, although the next attempt makes the
    /// transition.
    pub fn view(&self, now: Timestamp, settings: &Settings) -> BreakerStatus {
        let mut view = BreakerStatus {
            state: BreakerState::Closed,
            why: None,
            forced: self.is_forced(now),
            remaining: None,
            open_since: None,
            failures_in_row: 0,
            counts: Counts::default(),
            usual_milli: settings.baseline_percent.and(self.usual.share_milli()),
            probes: self.leases(now),
            epoch: self.epoch.counter,
        };
        match &self.state {
            State::Closed { failures_in_row, window } => {
                view.failures_in_row = *failures_in_row;
                view.counts = window.counts(settings.window, now);
            }
            State::ForcedClosed { until } => view.remaining = view.forced.then(|| until.since(now)),
            State::Open { until, since, why, .. } => {
                let over = *until <= now;
                view.state = if over { BreakerState::HalfOpen } else { BreakerState::Open };
                view.why = Some(*why);
                view.remaining = (!over).then(|| until.since(now));
                view.open_since = Some(now.since(*since));
            }
            State::HalfOpen { why, .. } => {
                view.state = BreakerState::HalfOpen;
                view.why = Some(*why);
            }
        }
        view
    }

    /// Unexpired probe leases.
    pub fn leases(&self, now: Timestamp) -> usize {
        match &self.state {
            State::HalfOpen { leases, .. } => leases.iter().filter(|(_, ends)| *ends > now).count(),
            _ => 0,
        }
    }

    fn open(&mut self, why: Trip, trips: u32, now: Timestamp, random: u64, settings: &Settings) -> Transition {
        let open_for = open_time(trips, random, settings);
        self.enter(State::Open { until: now.after(open_for), since: now, trips, why });
        Transition::Opened { why, open_for }
    }

    fn enter(&mut self, state: State) {
        self.epoch.counter += 1;
        self.state = state;
    }
}

fn tripped(in_row: u32, window: &Window, bad: bool, usual: Usual, now: Timestamp, settings: &Settings) -> Option<Trip> {
    // A good call must not open a breaker, although older good calls that leave the window raise the share of failures.
    if !bad {
        return None;
    }
    let baseline = settings
        .baseline_percent
        .zip(usual.share_milli())
        .map(|(above, usual)| Baseline::new(usual, above, settings.failure_rate_percent));
    let by_chance = baseline.map_or(0, Baseline::in_row);
    if settings.consecutive_failures.is_some_and(|limit| in_row >= limit.max(by_chance)) {
        return Some(Trip::Consecutive(in_row));
    }
    let counts = window.counts(settings.window, now);
    if counts.calls_milli < u64::from(settings.minimum_calls.max(1)) * 1000 {
        return None;
    }
    let (failed, slow) = (counts.percent(counts.failures_milli), counts.percent(counts.slow_milli));
    if let Some(baseline) = baseline.filter(|baseline| baseline.is_exceeded(&counts)) {
        return Some(Trip::Unusual(failed, baseline.usual_milli));
    }
    // A baseline replaces the fixed limit, unless the fixed limit caps the baseline.
    let fixed = settings.failure_rate_percent.filter(|_| baseline.is_none_or(|baseline| baseline.is_capped));
    if fixed.is_some_and(|limit| failed >= limit) {
        return Some(Trip::FailureRate(failed));
    }
    let too_slow = settings.slow_call_after.is_some() && slow >= settings.slow_rate_percent;
    too_slow.then_some(Trip::SlowRate(slow))
}

/// Lua numbers are doubles, which hold 53 bits of integers: a random number loses this many bits.
pub const CHANCE_SHIFT: u32 = 11;

/// The open time: doubled with each failed probe up to the cap, then spread by half of the jitter up or down.
fn open_time(trips: u32, random: u64, settings: &Settings) -> Duration {
    let doubled =
        settings.open_for.saturating_mul(1 << trips.min(20)).min(settings.open_for_max.max(settings.open_for));
    let spread = micros(doubled) / 100 * u64::from(settings.jitter_percent.min(100));
    if spread == 0 {
        return doubled;
    }
    doubled.saturating_sub(Duration::from_micros(spread / 2)) + Duration::from_micros((random >> CHANCE_SHIFT) % spread)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "model_tests.rs"]
mod model;
