//! This host's copy of a group's shared breaker. Pure.

use super::scripts::{Epoch, Memory};
use crate::{
    breaker::{self, Transition, Trip},
    clock::Timestamp,
};
use std::time::Duration;

/// A state of the shared breaker, from a script's reply or a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SharedBreakerState {
    pub(super) epoch: Epoch,
    pub(super) state: State,
}

/// `left` is the time until the state ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Open { left: Duration, why: Trip },
    HalfOpen { why: Trip },
    Held { left: Duration },
}

impl SharedBreakerState {
    /// From a script's values: see `prelude.lua`.
    pub(super) fn read(epoch: Epoch, state: &str, left: Duration, why: &str) -> Option<Self> {
        let state = match state {
            "0" => State::Closed,
            "1" => State::Open { left, why: cause(why)? },
            "2" => State::HalfOpen { why: cause(why)? },
            "3" => State::Held { left },
            _ => return None,
        };
        Some(Self { epoch, state })
    }

    /// From a message: `breaker RANDOM COUNTER STATE LEFT WHY GROUP`; the group's name may contain spaces.
    pub(super) fn parse(message: &str) -> Option<(&str, Self)> {
        let mut words = message.strip_prefix("breaker ")?.splitn(6, ' ');
        let mut word = || words.next();
        let epoch = Epoch { random: word()?.to_owned(), counter: word()?.parse().ok()? };
        let (state, left, why) = (word()?, Duration::from_micros(word()?.parse().ok()?), word()?);
        Some((word()?, Self::read(epoch, state, left, why)?))
    }
}

/// A pause from a message: `pause LEFT GROUP`.
pub(super) fn parse_pause(message: &str) -> Option<(&str, Duration)> {
    let (left, group) = message.strip_prefix("pause ")?.split_once(' ')?;
    Some((group, Duration::from_micros(left.parse().ok()?)))
}

/// A lifted pause from a message: `lift NUMBER GROUP`; the number increases with each.
pub(super) fn parse_lift(message: &str) -> Option<(&str, u64)> {
    let (mark, group) = message.strip_prefix("lift ")?.split_once(' ')?;
    Some((group, mark.parse().ok()?))
}

fn cause(word: &str) -> Option<Trip> {
    let number = || word.get(1..)?.parse().ok();
    match word.get(..1)? {
        "c" => number().map(Trip::Consecutive),
        "f" => number().map(Trip::FailureRate),
        "s" => number().map(Trip::SlowRate),
        "p" => Some(Trip::ProbeFailed),
        "o" => Some(Trip::Forced),
        "y" => Some(Trip::Pybreaker),
        _ => None,
    }
}

/// The text of a cause in Redis.
pub(super) fn word(why: Trip) -> String {
    match why {
        Trip::Consecutive(count) => format!("c{count}"),
        // A baseline is local to a host, so Redis has no cause for it.
        Trip::FailureRate(percent) | Trip::Unusual(percent, _) => format!("f{percent}"),
        Trip::SlowRate(percent) => format!("s{percent}"),
        Trip::ProbeFailed => "p".to_owned(),
        Trip::Forced => "o".to_owned(),
        Trip::Pybreaker => "y".to_owned(),
    }
}

/// A smaller difference in the end of the open time is due to the message's delay, and no extension.
const MIN_LENGTHENING: Duration = Duration::from_millis(500);

/// The last known state, and when this host learned it.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet {
    known: Option<(SharedBreakerState, Timestamp)>,
}

/// A change of the fleet's breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// For logs and metrics; `None` for changes that operators do not see as a transition.
    pub(super) transition: Option<Transition>,
    /// The state that this host's own breaker must follow.
    pub(super) state: State,
}

impl Fleet {
    /// Applies a state learned at `now`, unless it is older than the known one. `surely`: the server itself replied it. A message may be
    /// from before the server lost its data, so it cannot begin a new random epoch.
    pub(super) fn observe(&mut self, observed: SharedBreakerState, now: Timestamp, surely: bool) -> Option<Change> {
        let before = match &self.known {
            None => None,
            Some((known, _)) if known.epoch.random != observed.epoch.random && !surely => return None,
            Some((known, _)) if known.epoch.random == observed.epoch.random => {
                if observed.epoch.counter < known.epoch.counter {
                    return None;
                }
                if observed.epoch.counter == known.epoch.counter {
                    let state = observed.state;
                    let longer = self.stays_open_longer(&observed, now);
                    self.known = Some((observed, now));
                    return longer.then_some(Change { transition: None, state });
                }
                Some(known.state)
            }
            Some((known, _)) => Some(known.state),
        };
        let state = observed.state;
        self.known = Some((observed, now));
        let transition = match (before, state) {
            // The first state that a host learns is no transition.
            (None, _) | (_, State::HalfOpen { .. }) | (Some(State::Closed), State::Closed) => None,
            (Some(_), State::Open { left, why }) => Some(Transition::Opened { why, open_for: left }),
            (Some(_), State::Held { left }) => Some(Transition::Held { hold: left }),
            (Some(_), State::Closed) => Some(Transition::Closed),
        };
        Some(Change { transition, state })
    }

    /// Whether the upstream has extended the open time, by more than the delay of a message.
    fn stays_open_longer(&self, observed: &SharedBreakerState, now: Timestamp) -> bool {
        match (&self.known, observed.state) {
            (
                Some((SharedBreakerState { state: State::Open { left: before, .. }, .. }, at)),
                State::Open { left, .. },
            ) => left > at.after(*before).since(now).saturating_add(MIN_LENGTHENING),
            _ => false,
        }
    }

    /// How long the breaker stays open as far as known, and why. No script call is needed until then.
    pub(super) fn open(&self, now: Timestamp) -> Option<(Duration, Trip)> {
        match &self.known {
            Some((SharedBreakerState { state: State::Open { left, why }, .. }, at)) => {
                let left = at.after(*left).since(now);
                (!left.is_zero()).then_some((left, *why))
            }
            _ => None,
        }
    }

    /// This host's copy, for a server that has lost an open breaker.
    pub(super) fn memory(&self, now: Timestamp) -> Memory {
        let epoch = self.epoch().cloned();
        match (self.open(now), &epoch) {
            (Some((left, why)), Some(of)) => Memory { left, of: format!("{} {}", word(why), of.random), epoch },
            _ => Memory { epoch, ..Memory::default() },
        }
    }

    /// Whether the fleet's breaker admits attempts, so that this host's own breaker decides too. True before anything is known.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(&self.known, Some((SharedBreakerState { state: State::Open { .. } | State::HalfOpen { .. }, .. }, _)))
    }

    /// The known state, if any.
    pub(super) fn state(&self) -> Option<State> {
        self.known.as_ref().map(|(known, _)| known.state)
    }

    /// The known epoch, if any.
    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.known.as_ref().map(|(known, _)| &known.epoch)
    }

    /// Status for operators; `None` before anything is known.
    pub(super) fn seen(&self, now: Timestamp) -> Option<SharedBreakerStatus> {
        let (known, at) = self.known.as_ref()?;
        let still = |left: Duration| Some(at.after(left).since(now)).filter(|left| !left.is_zero());
        let (state, forced, why, remaining) = match known.state {
            State::Closed => (breaker::BreakerState::Closed, false, None, None),
            State::HalfOpen { why } => (breaker::BreakerState::HalfOpen, false, Some(why), None),
            State::Held { left } => (breaker::BreakerState::Closed, still(left).is_some(), None, still(left)),
            State::Open { left, why } => match still(left) {
                Some(left) => (breaker::BreakerState::Open, why == Trip::Forced, Some(why), Some(left)),
                None => (breaker::BreakerState::HalfOpen, false, Some(why), None),
            },
        };
        Some(SharedBreakerStatus { state, forced, why, remaining, epoch: known.epoch.counter })
    }
}

/// Status of the shared breaker: see [`breaker::BreakerStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedBreakerStatus {
    pub(super) state: breaker::BreakerState,
    pub(super) forced: bool,
    pub(super) why: Option<Trip>,
    pub(super) remaining: Option<Duration>,
    pub(super) epoch: u64,
}

impl SharedBreakerStatus {
    /// The status of a group without a breaker.
    pub(super) const NONE: Self =
        Self { state: breaker::BreakerState::Closed, forced: false, why: None, remaining: None, epoch: 0 };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn observed(random: &str, counter: u64, state: State) -> SharedBreakerState {
        SharedBreakerState { epoch: Epoch { random: random.to_owned(), counter }, state }
    }

    fn open(seconds: u64) -> State {
        State::Open { left: Duration::from_secs(seconds), why: Trip::Consecutive(5) }
    }

    #[test]
    fn an_older_observation_leaves_the_shared_breaker_as_it_is() {
        let mut fleet = Fleet::default();
        assert_eq!(
            fleet.observe(observed("a", 3, State::Closed), NOW, true).unwrap().transition,
            None,
            "the first observation"
        );
        assert!(fleet.observe(observed("a", 2, open(9)), NOW, true).is_none(), "an older epoch");
        assert!(fleet.observe(observed("b", 9, open(9)), NOW, false).is_none(), "a message from before a loss");
        assert!(fleet.is_closed());
        let opened = fleet.observe(observed("a", 4, open(9)), NOW, false).unwrap();
        assert!(matches!(opened.transition, Some(Transition::Opened { .. })), "{opened:?}");
        assert_eq!(fleet.open(NOW.after(Duration::from_secs(4))).unwrap().0, Duration::from_secs(5));
        assert_eq!(fleet.open(NOW.after(Duration::from_secs(9))), None);
        let lost = fleet.observe(observed("b", 0, State::Closed), NOW, true).unwrap();
        assert_eq!(lost.transition, Some(Transition::Closed), "the server's own word");
    }

    #[test]
    fn an_open_time_that_the_upstream_lengthens_is_taken_over() {
        let mut fleet = Fleet::default();
        fleet.observe(observed("a", 4, open(9)), NOW, true);
        let later = NOW.after(Duration::from_secs(1));
        assert_eq!(fleet.observe(observed("a", 4, open(8)), later, true), None, "the same end, read again");
        let longer = fleet.observe(observed("a", 4, open(120)), later, false).unwrap();
        assert_eq!(longer, Change { transition: None, state: open(120) }, "it is no transition");
        assert_eq!(fleet.open(later).unwrap().0, Duration::from_secs(120));
    }

    #[test]
    fn a_message_is_read_and_nonsense_is_none() {
        let (group, shared) = SharedBreakerState::parse("breaker 77 3 1 5000000 f60 api/list them").unwrap();
        assert_eq!(group, "api/list them");
        assert_eq!(shared.state, State::Open { left: Duration::from_secs(5), why: Trip::FailureRate(60) });
        for nonsense in
            ["", "breaker", "breaker 1 x 1 5 c5 g", "breaker 1 1 9 5 c5 g", "breaker 1 1 1 5 é g", "pause 5 g"]
        {
            assert!(SharedBreakerState::parse(nonsense).is_none(), "{nonsense}");
        }
        assert_eq!(parse_pause("pause 5 a b"), Some(("a b", Duration::from_micros(5))));
        assert_eq!(parse_lift("lift 7 a b"), Some(("a b", 7)));
        assert_eq!([parse_lift("lift x a"), parse_lift("lift 7"), parse_lift("pause 5 a")], [None; 3]);
        for why in [
            Trip::Consecutive(5),
            Trip::FailureRate(50),
            Trip::SlowRate(80),
            Trip::ProbeFailed,
            Trip::Forced,
            Trip::Pybreaker,
        ] {
            assert_eq!(cause(&word(why)), Some(why), "{why}");
        }
    }
}
