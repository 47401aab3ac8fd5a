//! Two concurrency limits in front of the same queue: this host's own, by Little's law, and Netflix's Gradient2 (concurrency-limits,
//! `Gradient2Limit`: long and short round trips, tolerance 1.5, a queue of 4, smoothing 0.2). There is no wait queue: a request over the
//! limit is refused.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};
use triage_core::clock::Timestamp;
use triage_overload::{Limiter, Sample, SampleOutcome};

/// The longest time that a caller waits, in microseconds.
const PATIENCE: u64 = 5_000_000;
/// A latency up to this is acceptable: a fifth of the callers' patience.
const HARMLESS: Duration = Duration::from_secs(1);

trait Limit {
    fn has_room(&self) -> bool;
    fn begin(&mut self);
    fn over(&mut self, sample: &Sample<'_>, now: Timestamp);
    fn refused(&mut self, now: Timestamp);
}

impl Limit for Limiter {
    fn has_room(&self) -> bool {
        Limiter::has_room(self)
    }

    fn begin(&mut self) {
        Limiter::begin(self);
    }

    fn over(&mut self, sample: &Sample<'_>, now: Timestamp) {
        self.observe(sample, now);
        self.end();
    }

    fn refused(&mut self, now: Timestamp) {
        self.pressed(now);
    }
}

/// No limit at all.
#[derive(Default)]
struct None;

impl Limit for None {
    fn has_room(&self) -> bool {
        true
    }

    fn begin(&mut self) {}

    fn over(&mut self, _: &Sample<'_>, _: Timestamp) {}

    fn refused(&mut self, _: Timestamp) {}
}

/// As in Netflix's library, with a window of at least 10 samples, shortened to 100 ms like this host's.
struct Gradient2 {
    limit: f64,
    under_way: usize,
    long: f64,
    windows: u32,
    since: Option<Timestamp>,
    sum: f64,
    count: u32,
    most: usize,
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self { limit: 20.0, under_way: 0, long: 0.0, windows: 0, since: Option::None, sum: 0.0, count: 0, most: 0 }
    }
}

impl Limit for Gradient2 {
    fn has_room(&self) -> bool {
        (self.under_way as f64) < self.limit.floor()
    }

    fn begin(&mut self) {
        self.under_way += 1;
        self.most = self.most.max(self.under_way);
    }

    fn over(&mut self, sample: &Sample<'_>, now: Timestamp) {
        self.under_way = self.under_way.saturating_sub(1);
        let since = *self.since.get_or_insert(now);
        self.sum += now.since(sample.sent).as_secs_f64();
        self.count += 1;
        if now.since(since) < Duration::from_millis(100) || self.count < 10 {
            return;
        }
        let (short, most) = (self.sum / f64::from(self.count), std::mem::take(&mut self.most));
        (self.since, self.sum, self.count) = (Option::None, 0.0, 0);
        // ExpAvgMeasurement(600, 10).
        self.windows += 1;
        self.long = if self.windows <= 10 {
            self.long + (short - self.long) / f64::from(self.windows)
        } else {
            self.long + (short - self.long) * 2.0 / 601.0
        };
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if (most as f64) < self.limit / 2.0 {
            return;
        }
        let gradient = (1.5 * self.long / short).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + 4.0;
        self.limit = (self.limit * 0.8 + wanted * 0.2).clamp(4.0, 10_000.0);
    }

    fn refused(&mut self, _: Timestamp) {}
}

/// Seconds, requests per second, and the service time in ms of each endpoint.
type Stretch = (u64, f64, [u64; 2]);

/// An upstream that handles `slots` requests at once, first come, first served, with two endpoints. The first one gets the given percentage
/// of requests.
struct Case {
    name: &'static str,
    slots: usize,
    first_percent: u64,
    stretches: &'static [Stretch],
}

const CASES: [Case; 4] = [
    Case {
        name: "5 x capacity for a minute",
        slots: 10,
        first_percent: 100,
        stretches: &[(20, 80.0, [100, 0]), (60, 500.0, [100, 0]), (20, 80.0, [100, 0])],
    },
    Case {
        name: "slower by 3, no overload",
        slots: 10,
        first_percent: 100,
        stretches: &[(30, 25.0, [100, 0]), (60, 25.0, [300, 0]), (30, 25.0, [100, 0])],
    },
    Case {
        name: "reads 20 ms, creates 2 s",
        slots: 50,
        first_percent: 90,
        stretches: &[(60, 180.0, [20, 2000]), (60, 180.0, [20, 2000])],
    },
    Case {
        name: "a burst each 10 s, 50 % load",
        slots: 10,
        first_percent: 100,
        stretches: &[
            (9, 45.0, [100, 0]),
            (1, 100.0, [100, 0]),
            (9, 45.0, [100, 0]),
            (1, 300.0, [100, 0]),
            (9, 45.0, [100, 0]),
            (1, 300.0, [100, 0]),
            (9, 45.0, [100, 0]),
        ],
    },
];

#[derive(Debug, Default)]
struct Score {
    asked: u64,
    in_time: u64,
    refused: u64,
    took: Vec<u64>,
}

fn play(case: &Case, limit: &mut dyn Limit) -> Score {
    let (mut score, mut now, mut chance) = (Score::default(), 3_600_000_000_u64, 5_u64);
    let mut random = move || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) as f64 / f64::from(1_u32 << 31)
    };
    let mut free: BinaryHeap<Reverse<u64>> = (0..case.slots).map(|_| Reverse(now)).collect();
    // End time, send time, whether it is the first endpoint, and whether it was answered.
    let mut ends: BinaryHeap<Reverse<(u64, u64, bool, bool)>> = BinaryHeap::new();
    let mut until = now;
    for (seconds, rate, service_ms) in case.stretches {
        until += seconds * 1_000_000;
        while now < until {
            now += ((-(1.0 - random()).ln() / rate) * 1e6) as u64 + 1;
            while let Some(Reverse((at, sent, first, answered))) =
                ends.peek().copied().filter(|Reverse(end)| end.0 <= now)
            {
                ends.pop();
                let outcome = if answered { SampleOutcome::Answered } else { SampleOutcome::TimedOut };
                let endpoint = if first { "read" } else { "create" };
                limit.over(&Sample { endpoint, harmless: HARMLESS, sent: Timestamp(sent), outcome }, Timestamp(at));
            }
            score.asked += 1;
            if !limit.has_room() {
                limit.refused(Timestamp(now));
                score.refused += 1;
                continue;
            }
            limit.begin();
            let first = random() * 100.0 < case.first_percent as f64;
            let service = service_ms[usize::from(!first)] * 1000;
            let Some(Reverse(idle)) = free.pop() else { continue };
            let done = idle.max(now) + service;
            // The upstream finishes requests whose callers have left.
            free.push(Reverse(done));
            let answered = done - now <= PATIENCE;
            ends.push(Reverse((done.min(now + PATIENCE), now, first, answered)));
            if answered {
                score.in_time += 1;
                score.took.push(done - now);
            }
        }
    }
    score
}

pub fn compare() {
    println!("A limit on concurrency, by itself: no line, Poisson arrivals, 5 s of patience.\n");
    println!("case                          limit           asked  in time  refused  p50 ms  p99 ms");
    for case in &CASES {
        let (mut little, mut gradient, mut none) = (Limiter::default(), Gradient2::default(), None);
        let limits: [(&str, &mut dyn Limit); 3] =
            [("none", &mut none), ("Little's law", &mut little), ("Gradient2", &mut gradient)];
        for (name, limit) in limits {
            let mut score = play(case, limit);
            score.took.sort_unstable();
            let percentile =
                |percent: usize| score.took.get(score.took.len() * percent / 100).map_or(0, |us| us / 1000);
            let (p50, p99) = (percentile(50), percentile(99));
            let Score { asked, in_time, refused, .. } = score;
            println!("{:29} {name:14} {asked:6} {in_time:8} {refused:8} {p50:7} {p99:7}", case.name);
        }
    }
}
