//! What this host knows of a group's shared breaker: pure.

use super::scripts::{Epoch, Memory};
use crate::{
    breaker::{self, Transition, Trip},
    clock::Timestamp,
};
use std::time::Duration;

/// How the shared breaker stands, as a step or a message tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SharedBreakerState {
    pub(super) epoch: Epoch,
    pub(super) state: State,
}

/// Its state; times are what is left of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Open { left: Duration, why: Trip },
    HalfOpen { why: Trip },
    Held { left: Duration },
}

impl SharedBreakerState {
    /// From the server's words: see `prelude.lua`.
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

    /// From a message: `breaker RANDOM COUNTER STATE LEFT WHY GROUP`, where the group may hold blanks.
    pub(super) fn heard(message: &str) -> Option<(&str, Self)> {
        let mut words = message.strip_prefix("breaker ")?.splitn(6, ' ');
        let mut word = || words.next();
        let epoch = Epoch { random: word()?.to_owned(), counter: word()?.parse().ok()? };
        let (state, left, why) = (word()?, Duration::from_micros(word()?.parse().ok()?), word()?);
        Some((word()?, Self::read(epoch, state, left, why)?))
    }
}

/// A pause from a message: `pause LEFT GROUP`.
pub(super) fn pause_heard(message: &str) -> Option<(&str, Duration)> {
    let (left, group) = message.strip_prefix("pause ")?.split_once(' ')?;
    Some((group, Duration::from_micros(left.parse().ok()?)))
}

/// A pause that was lifted, from a message: `lift NUMBER GROUP`; the number rises with each.
pub(super) fn lift_heard(message: &str) -> Option<(&str, u64)> {
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

/// The server's word for a cause.
pub(super) fn word(why: Trip) -> String {
    match why {
        Trip::Consecutive(count) => format!("c{count}"),
        // A baseline is a host's own, in its own memory: no server is told of it.
        Trip::FailureRate(percent) | Trip::Unusual(percent, _) => format!("f{percent}"),
        Trip::SlowRate(percent) => format!("s{percent}"),
        Trip::ProbeFailed => "p".to_owned(),
        Trip::Forced => "o".to_owned(),
        Trip::Pybreaker => "y".to_owned(),
    }
}

/// An open time that is told to be longer by less than this is the same one, read again.
const LENGTHENED: Duration = Duration::from_millis(500);

/// The latest of what was told, and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Fleet {
    known: Option<(SharedBreakerState, Timestamp)>,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    /// For logs and metrics; none for what is no transition to anybody outside.
    pub(super) transition: Option<Transition>,
    /// What this host's own breaker takes over.
    pub(super) state: State,
}

impl Fleet {
    /// Takes over what was told at `now`, unless it is older than what is known. `surely` is what the server answered itself: a
    /// message may come from before the server lost its data.
    pub(super) fn observe(&mut self, told: SharedBreakerState, now: Timestamp, surely: bool) -> Option<Change> {
        let before = match &self.known {
            None => None,
            Some((known, _)) if known.epoch.random != told.epoch.random && !surely => return None,
            Some((known, _)) if known.epoch.random == told.epoch.random => {
                if told.epoch.counter < known.epoch.counter {
                    return None;
                }
                if told.epoch.counter == known.epoch.counter {
                    let state = told.state;
                    let longer = self.stays_open_longer(&told, now);
                    self.known = Some((told, now));
                    return longer.then_some(Change { transition: None, state });
                }
                Some(known.state)
            }
            Some((known, _)) => Some(known.state),
        };
        let state = told.state;
        self.known = Some((told, now));
        let transition = match (before, state) {
            // What a host finds when it starts is nothing that happened.
            (None, _) | (_, State::HalfOpen { .. }) | (Some(State::Closed), State::Closed) => None,
            (Some(_), State::Open { left, why }) => Some(Transition::Opened { why, open_for: left }),
            (Some(_), State::Held { left }) => Some(Transition::Held { hold: left }),
            (Some(_), State::Closed) => Some(Transition::Closed),
        };
        Some(Change { transition, state })
    }

    /// Whether the upstream's wish has lengthened the open time: by more than a message's way takes.
    fn stays_open_longer(&self, told: &SharedBreakerState, now: Timestamp) -> bool {
        match (&self.known, told.state) {
            (
                Some((SharedBreakerState { state: State::Open { left: before, .. }, .. }, at)),
                State::Open { left, .. },
            ) => left > at.after(*before).since(now).saturating_add(LENGTHENED),
            _ => false,
        }
    }

    /// How long the breaker is known to stay open, and why: nobody needs to ask until then.
    pub(super) fn open(&self, now: Timestamp) -> Option<(Duration, Trip)> {
        match &self.known {
            Some((SharedBreakerState { state: State::Open { left, why }, .. }, at)) => {
                let left = at.after(*left).since(now);
                (!left.is_zero()).then_some((left, *why))
            }
            _ => None,
        }
    }

    /// For a server that has lost an open breaker: how long it stays open, its cause and its epoch.
    pub(super) fn memory(&self, now: Timestamp) -> Memory {
        let epoch = self.epoch().cloned();
        match (self.open(now), &epoch) {
            (Some((left, why)), Some(of)) => Memory { left, of: format!("{} {}", word(why), of.random), epoch },
            _ => Memory { epoch, ..Memory::default() },
        }
    }

    /// Whether attempts pass as far as is known, so that this host's own breaker has a say. So it is before anything is known.
    pub(super) fn is_closed(&self) -> bool {
        !matches!(&self.known, Some((SharedBreakerState { state: State::Open { .. } | State::HalfOpen { .. }, .. }, _)))
    }

    /// How it stands, once something is known.
    pub(super) fn state(&self) -> Option<State> {
        self.known.as_ref().map(|(known, _)| known.state)
    }

    /// The epoch, once something is known.
    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.known.as_ref().map(|(known, _)| &known.epoch)
    }

    /// What there is to see; nothing before anything is known.
    pub(super) fn seen(&self, now: Timestamp) -> Option<SharedBreakerStatus> {
        let (known, at) = self.known.as_ref()?;
        let still = |left: Duration| Some(at.after(left).since(now)).filter(|left| !left.is_zero());
        let (standing, forced, why, remaining) = match known.state {
            State::Closed => (breaker::BreakerState::Closed, false, None, None),
            State::HalfOpen { why } => (breaker::BreakerState::HalfOpen, false, Some(why), None),
            State::Held { left } => (breaker::BreakerState::Closed, still(left).is_some(), None, still(left)),
            State::Open { left, why } => match still(left) {
                Some(left) => (breaker::BreakerState::Open, why == Trip::Forced, Some(why), Some(left)),
                None => (breaker::BreakerState::HalfOpen, false, Some(why), None),
            },
        };
        Some(SharedBreakerStatus { standing, forced, why, remaining, epoch: known.epoch.counter })
    }
}

/// What there is to see of it: see [`breaker::View`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SharedBreakerStatus {
    pub(super) standing: breaker::BreakerState,
    pub(super) forced: bool,
    pub(super) why: Option<Trip>,
    pub(super) remaining: Option<Duration>,
    pub(super) epoch: u64,
}

impl SharedBreakerStatus {
    /// Of a group without a breaker.
    pub(super) const NONE: Self =
        Self { standing: breaker::BreakerState::Closed, forced: false, why: None, remaining: None, epoch: 0 };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn told(random: &str, counter: u64, state: State) -> SharedBreakerState {
        SharedBreakerState { epoch: Epoch { random: random.to_owned(), counter }, state }
    }

    fn open(seconds: u64) -> State {
        State::Open { left: Duration::from_secs(seconds), why: Trip::Consecutive(5) }
    }

    #[test]
    fn what_is_older_changes_nothing() {
        let mut fleet = Fleet::default();
        assert_eq!(fleet.observe(told("a", 3, State::Closed), NOW, true).unwrap().transition, None, "the first look");
        assert!(fleet.observe(told("a", 2, open(9)), NOW, true).is_none(), "an older epoch");
        assert!(fleet.observe(told("b", 9, open(9)), NOW, false).is_none(), "a message from before a loss");
        assert!(fleet.is_closed());
        let opened = fleet.observe(told("a", 4, open(9)), NOW, false).unwrap();
        assert!(matches!(opened.transition, Some(Transition::Opened { .. })), "{opened:?}");
        assert_eq!(fleet.open(NOW.after(Duration::from_secs(4))).unwrap().0, Duration::from_secs(5));
        assert_eq!(fleet.open(NOW.after(Duration::from_secs(9))), None);
        let lost = fleet.observe(told("b", 0, State::Closed), NOW, true).unwrap();
        assert_eq!(lost.transition, Some(Transition::Closed), "the server's own word");
    }

    #[test]
    fn an_open_time_that_the_upstream_lengthens_is_taken_over() {
        let mut fleet = Fleet::default();
        fleet.observe(told("a", 4, open(9)), NOW, true);
        let later = NOW.after(Duration::from_secs(1));
        assert_eq!(fleet.observe(told("a", 4, open(8)), later, true), None, "the same end, read again");
        let longer = fleet.observe(told("a", 4, open(120)), later, false).unwrap();
        assert_eq!(longer, Change { transition: None, state: open(120) }, "it is no transition");
        assert_eq!(fleet.open(later).unwrap().0, Duration::from_secs(120));
    }

    #[test]
    fn a_message_is_read_and_nonsense_is_none() {
        let (group, standing) = SharedBreakerState::heard("breaker 77 3 1 5000000 f60 api/list them").unwrap();
        assert_eq!(group, "api/list them");
        assert_eq!(standing.state, State::Open { left: Duration::from_secs(5), why: Trip::FailureRate(60) });
        for nonsense in
            ["", "breaker", "breaker 1 x 1 5 c5 g", "breaker 1 1 9 5 c5 g", "breaker 1 1 1 5 é g", "pause 5 g"]
        {
            assert!(SharedBreakerState::heard(nonsense).is_none(), "{nonsense}");
        }
        assert_eq!(pause_heard("pause 5 a b"), Some(("a b", Duration::from_micros(5))));
        assert_eq!(lift_heard("lift 7 a b"), Some(("a b", 7)));
        assert_eq!([lift_heard("lift x a"), lift_heard("lift 7"), lift_heard("pause 5 a")], [None; 3]);
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
