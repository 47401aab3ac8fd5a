//! A rate that adapts to the upstream's capacity: additive increase, multiplicative decrease. Pure.
//!
//! Chiu and Jain (1989) show that senders which follow this rule reach equal shares of a capacity without communication. TCP's congestion
//! avoidance follows it too (RFC 5681, section 3.1). Here each host of a fleet is a sender. Two details are TCP's as well. A burst of
//! throttled responses causes one decrease, because requests sent before the decrease say nothing about the new rate (RFC 6582). And the
//! decrease starts from the measured throughput, not from the permitted rate (RFC 5681, section 3.1: `FlightSize`).

use crate::clock::Timestamp;
use std::{collections::BTreeMap, time::Duration};

/// The factor of a decrease: 0.7, as in RFC 9438 (CUBIC) and in the AWS SDK's adaptive retry.
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

/// The lower bound of a rate, and how fast it rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The lowest rate, in requests a minute: without requests, the host could not learn that the upstream accepts more. Default 6, or half
    /// of the configured limits' rate if that is less.
    pub floor_per_minute: u32,
    /// The rise of the rate within a minute, in requests a minute. Default 600: 10 a second, the seed's limit. It must be equal on all
    /// hosts of a fleet, or their shares differ.
    pub rise_per_minute: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { floor_per_minute: 6, rise_per_minute: 600 }
    }
}

impl Settings {
    /// The lowest rate, in requests a minute, if the configured limits admit `ceiling`: a limit of a few requests an hour needs a fraction.
    pub fn floor(&self, ceiling: f64) -> f64 {
        let floor = f64::from(self.floor_per_minute);
        if floor < ceiling { floor } else { ceiling / 2.0 }
    }
}

/// One sender's rate. Before the first throttled response there is none, and no request waits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdaptiveRate {
    learned: Option<RateEstimate>,
    taken: Throughput,
    /// The moment after the last reservation: the next one is due then at the earliest.
    free: Timestamp,
    /// Refunded reservations before `free`, by their moments.
    freed: BTreeMap<Timestamp, Reservation>,
    /// The sum of all pauses, by which reservations were delayed.
    moved: Duration,
    decreases: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct RateEstimate {
    /// Requests a minute right after the decrease.
    base: f64,
    since: Timestamp,
    /// When the upstream last accepted a request that was sent after the decrease.
    took: Option<Timestamp>,
    /// For how long the upstream has accepted the rate, by its responses.
    borne: Duration,
}

/// The requests that the upstream accepted lately, in two buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Throughput {
    from: Timestamp,
    count: u32,
    before: Option<(Timestamp, u32)>,
}

/// A reserved moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reservation {
    /// The moment of the send.
    pub due: Timestamp,
    made: Timestamp,
    before: Timestamp,
    /// The sum of all pauses when the reservation was made.
    moved: Duration,
}

impl Reservation {
    fn moved_to(self, moved: Duration) -> Self {
        let by = moved.saturating_sub(self.moved);
        Self { due: self.due.after(by), made: self.made.after(by), before: self.before.after(by), moved }
    }
}

/// The number of decreases before an attempt was sent. A throttled response to the attempt is no reason for a further decrease if the rate
/// was lowered after the send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecreaseEpoch(u64);

impl AdaptiveRate {
    /// The rate in requests a minute. None if no rate was learned, or if the learned rate is not below `ceiling`, the rate of the
    /// configured limits (infinite without limits), because those limits apply in any case.
    pub fn per_minute(&self, settings: &Settings, ceiling: f64, now: Timestamp) -> Option<f64> {
        let learned = self.learned.filter(|learned| now.since(learned.since) < FORGET_AFTER)?;
        let risen = f64::from(settings.rise_per_minute) * learned.borne.as_secs_f64() / 60.0;
        let rate = (learned.base + risen).max(settings.floor(ceiling));
        (rate < ceiling).then_some(rate)
    }

    /// The epoch of an attempt that is sent now.
    pub fn decrease_epoch(&self) -> DecreaseEpoch {
        DecreaseEpoch(self.decreases)
    }

    /// The number of decreases so far.
    pub fn decreases(&self) -> u64 {
        self.decreases
    }

    /// Reserves the first moment from `from` on: a refunded one, or the one that the rate admits after the last reservation. A change of
    /// the rate does not move existing reservations.
    ///
    /// # Errors
    /// The wait from `now` on, if it is longer than `max_wait`; then nothing is reserved.
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

    /// The upstream rejected a request for a reason other than its load. The request counts as throughput, but does not let the rate rise.
    pub fn rejected(&mut self, now: Timestamp) {
        self.taken.add(now);
    }

    /// The upstream accepted a request, which lets the rate rise, unless the request was sent before the last decrease.
    pub fn took(&mut self, sent: DecreaseEpoch, now: Timestamp) {
        self.taken.add(now);
        if sent != self.decrease_epoch() {
            return;
        }
        if let Some(learned) = &mut self.learned {
            // Only responses prove that the upstream accepts the rate: a time without responses lets it rise by one bucket at most.
            let last = learned.took.unwrap_or(learned.since);
            learned.borne += now.since(last).min(BUCKET_TIME);
            learned.took = Some(last.max(now));
        }
    }

    /// The upstream throttled a request. Lowers the rate to `DECREASE_FACTOR` of the present throughput and returns the new rate; none if
    /// an earlier throttled response has lowered it already.
    pub fn throttled(&mut self, settings: &Settings, ceiling: f64, sent: DecreaseEpoch, now: Timestamp) -> Option<f64> {
        let current = self.per_minute(settings, ceiling, now);
        let known = self.learned.filter(|learned| now.since(learned.since) < FORGET_AFTER);
        let is_news =
            known.is_none_or(|learned| learned.took.is_some() || now.since(learned.since) >= MIN_DECREASE_INTERVAL);
        if sent != self.decrease_epoch() || !is_news {
            return None;
        }
        let floor = settings.floor(ceiling);
        let measured = self.taken.per_minute(now);
        let reached = match (current, measured) {
            (Some(current), Some(measured)) => current.min(measured),
            (Some(alone), None) | (None, Some(alone)) => alone,
            // Without a measured throughput, the configured limits are the only bound.
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

    /// Accepted requests a minute; none if there were none lately.
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
