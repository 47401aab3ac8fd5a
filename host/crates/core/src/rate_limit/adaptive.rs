//! A rate that follows what the upstream takes: additive increase, multiplicative decrease. Pure.
//!
//! Chiu and Jain (1989) show that senders which do so without a word between them come to equal shares of what they
//! share; TCP's congestion avoidance is the same (RFC 5681, section 3.1). Here each host of a fleet is such a sender.
//! The particulars are TCP's too: one burst of throttled answers is one decrease (RFC 6582: what was sent before it
//! tells nothing new), and what is lowered is what was really sent and taken, not what might have been (RFC 5681,
//! section 3.1: `FlightSize`).

use crate::clock::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// What a throttled answer leaves of the rate: RFC 9438 (CUBIC) and the AWS SDK's adaptive retry have 0.7.
const DECREASE_FACTOR: f64 = 0.7;
/// After this time without a throttled response, the learned rate is forgotten: the upstream may have more capacity now.
pub const FORGET_AFTER: Duration = Duration::from_mins(10);
/// The shortest time between two decreases of the rate if nothing was sent by the lowered rate in between: both throttled responses then
/// belong to the same window of the upstream's limit.
const MIN_DECREASE_INTERVAL: Duration = Duration::from_mins(1);
/// The length of a bucket. Throughput is measured over one to two buckets.
const BUCKET_TIME: Duration = Duration::from_secs(5);
/// The lowest rate, in requests per minute, so that the distance between two reservations is finite.
const MIN_RATE_PER_MINUTE: f64 = 0.001;
/// The maximum number of refunded reservations that other attempts can take. Further ones are forfeited.
const MAX_FREED: usize = 1024;
/// The shortest time over which throughput is measured: over less, a burst would count as a rate.
const MIN_MEASURED_TIME: Duration = Duration::from_secs(1);

/// Between which bounds a rate moves, and how fast it rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Requests a minute that it never falls below, so that it goes on finding out. Default 6, or half of what the
    /// limits admit where that is less.
    pub floor_per_minute: u32,
    /// By how many requests a minute it rises within a minute. Default 600: 10 a second, the seed's limit. Hosts of a
    /// fleet have the same, or their shares are not the same.
    pub rise_per_minute: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { floor_per_minute: 6, rise_per_minute: 600 }
    }
}

impl Settings {
    /// Requests a minute that it never falls below beside limits that admit `ceiling`: limits of a few an hour leave no
    /// whole number.
    pub fn floor(&self, ceiling: f64) -> f64 {
        let floor = f64::from(self.floor_per_minute);
        if floor < ceiling { floor } else { ceiling / 2.0 }
    }
}

/// One sender's rate. It begins open: before the first throttled answer nothing waits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdaptiveRate {
    learned: Option<RateEstimate>,
    taken: Throughput,
    /// The earliest moment that no reservation has.
    free: Timestamp,
    /// Refunded reservations before `free`, by their moments.
    freed: BTreeMap<Timestamp, Reservation>,
    /// How far pauses have moved all that is reserved, since the start.
    moved: Duration,
    decreases: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct RateEstimate {
    /// Requests a minute right after the decrease.
    base: f64,
    since: Timestamp,
    /// When the upstream last took one that was sent since.
    took: Option<Timestamp>,
    /// How long it has borne it.
    borne: Duration,
}

/// What the upstream has taken lately, in two buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Throughput {
    from: Timestamp,
    count: u32,
    before: Option<(Timestamp, u32)>,
}

/// A reserved moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reservation {
    /// When it is.
    pub due: Timestamp,
    made: Timestamp,
    before: Timestamp,
    /// How far pauses had moved everything by then.
    moved: Duration,
}

impl Reservation {
    fn moved_to(self, moved: Duration) -> Self {
        let by = moved.saturating_sub(self.moved);
        Self { due: self.due.after(by), made: self.made.after(by), before: self.before.after(by), moved }
    }
}

/// Which decreases an attempt was sent after: a throttled answer to it tells nothing of later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecreaseEpoch(u64);

impl AdaptiveRate {
    /// Requests a minute; none while it is open. It is open too where it would be no less than `ceiling`, the
    /// configured limits' rate (infinite without limits): these hold anyway.
    pub fn per_minute(&self, settings: &Settings, ceiling: f64, now: Timestamp) -> Option<f64> {
        let learned = self.learned.filter(|learned| now.since(learned.since) < FORGET_AFTER)?;
        let risen = f64::from(settings.rise_per_minute) * learned.borne.as_secs_f64() / 60.0;
        let rate = (learned.base + risen).max(settings.floor(ceiling));
        (rate < ceiling).then_some(rate)
    }

    /// What the next throttled answer will be measured by.
    pub fn lesson(&self) -> DecreaseEpoch {
        DecreaseEpoch(self.decreases)
    }

    /// How often it was lowered.
    pub fn decreases(&self) -> u64 {
        self.decreases
    }

    /// Takes the next moment from `from` on: one that was left, or an even distance after the last. What is reserved
    /// stays where it is when the rate changes: that is less than a line's worth.
    ///
    /// # Errors
    /// The wait from `now` on, where it is longer than `max_wait`; nothing was taken then.
    pub fn reserve(
        &mut self,
        per_minute: f64,
        from: Timestamp,
        now: Timestamp,
        max_wait: Duration,
    ) -> Result<Reservation, Duration> {
        let from = from.max(now);
        let left = self.freed.range(from..).next().map(|(due, _)| *due);
        let due = left.unwrap_or(self.free.max(from));
        if due.since(now) > max_wait {
            return Err(due.since(now));
        }
        if let Some(reservation) = self.freed.remove(&due) {
            return Ok(reservation.moved_to(self.moved));
        }
        let before = std::mem::replace(&mut self.free, due.after(distance(per_minute)));
        Ok(Reservation { due, made: self.free, before, moved: self.moved })
    }

    /// Refunds an unused reservation. The last one moves `free` back; any other one goes to the next attempt while its moment is in the
    /// future.
    pub fn refund(&mut self, reservation: &Reservation, now: Timestamp) {
        let reservation = reservation.moved_to(self.moved);
        if self.free != reservation.made {
            self.freed = self.freed.split_off(&now);
            if reservation.due >= now && self.freed.len() < MAX_FREED {
                self.freed.insert(reservation.due, reservation);
            }
            return;
        }
        self.free = reservation.before;
        while let Some(last) = self.freed.last_entry().filter(|last| last.get().made == self.free) {
            self.free = last.remove().before;
        }
    }

    /// Delays all reservations by this much, because of a pause.
    pub fn delay(&mut self, by: Duration) {
        self.free = self.free.after(by);
        self.moved = self.moved.saturating_add(by);
        let moved = self.freed.values().map(|reservation| reservation.moved_to(self.moved));
        self.freed = moved.map(|reservation| (reservation.due, reservation)).collect();
    }

    /// Moves `free` back by this much, because a pause was lifted. Existing reservations keep their moments.
    pub fn move_back(&mut self, by: Duration) {
        self.free = self.free.before(by);
    }

    /// The upstream answered a request and did not do what it asks for, for a reason that is not its load: that has a
    /// place in what it bears, and proves nothing.
    pub fn rejected(&mut self, now: Timestamp) {
        self.taken.add(now);
    }

    /// The upstream took a request. An attempt that was sent before the last decrease proves nothing of the rate since.
    pub fn took(&mut self, sent: DecreaseEpoch, now: Timestamp) {
        self.taken.add(now);
        if sent != self.lesson() {
            return;
        }
        if let Some(learned) = &mut self.learned {
            // Only answers prove that the rate was borne: silence and pauses earn nothing.
            let last = learned.took.unwrap_or(learned.since);
            learned.borne += now.since(last).min(BUCKET_TIME);
            learned.took = Some(last.max(now));
        }
    }

    /// The upstream wants fewer. The rate from now on, where this tells something new: what is sent and taken at
    /// present, lowered.
    pub fn throttled(&mut self, settings: &Settings, ceiling: f64, sent: DecreaseEpoch, now: Timestamp) -> Option<f64> {
        let current = self.per_minute(settings, ceiling, now);
        let known = self.learned.filter(|learned| now.since(learned.since) < FORGET_AFTER);
        let is_news =
            known.is_none_or(|learned| learned.took.is_some() || now.since(learned.since) >= MIN_DECREASE_INTERVAL);
        if sent != self.lesson() || !is_news {
            return None;
        }
        let floor = settings.floor(ceiling);
        let measured = self.taken.per_minute(now);
        let reached = match (current, measured) {
            (Some(current), Some(measured)) => current.min(measured),
            (Some(alone), None) | (None, Some(alone)) => alone,
            // Nothing was taken, so that the limits say at most what may be.
            (None, None) if ceiling.is_finite() => ceiling,
            (None, None) => floor,
        };
        let base = (reached.min(ceiling) * DECREASE_FACTOR).max(floor);
        self.learned = Some(RateEstimate { base, since: now, took: None, borne: Duration::ZERO });
        self.decreases += 1;
        Some(base)
    }
}

fn distance(per_minute: f64) -> Duration {
    Duration::from_secs_f64(60.0 / per_minute.max(MIN_RATE_PER_MINUTE))
}

impl Throughput {
    fn add(&mut self, now: Timestamp) {
        let age = now.since(self.from);
        if age >= BUCKET_TIME {
            let recent = self.count > 0 && age < 2 * BUCKET_TIME;
            *self = Self { from: now, count: 0, before: recent.then_some((self.from, self.count)) };
        }
        self.count = self.count.saturating_add(1);
    }

    /// None: nothing was taken lately.
    fn per_minute(&self, now: Timestamp) -> Option<f64> {
        if self.count == 0 || now.since(self.from) >= 2 * BUCKET_TIME {
            return None;
        }
        let (from, before) = self.before.unwrap_or((self.from, 0));
        let count = f64::from(self.count) + f64::from(before);
        Some(count * 60.0 / now.since(from).max(MIN_MEASURED_TIME).as_secs_f64())
    }
}

#[cfg(test)]
#[path = "adaptive/tests.rs"]
mod tests;
