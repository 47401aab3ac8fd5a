//! The arithmetic of the limit: pure functions of samples and time.
//!
//! Little's law: with a rate of R answers a second and N attempts under way, an answer takes N / R. So the most that may be under
//! way is R times what an answer may take at most. That is known at once, long before the first answer is late, and it is right
//! only while the upstream is what limits R: while answers take far longer than they usually do.

use crate::clock::Timestamp;
use std::{collections::HashMap, time::Duration};

/// The most: where the limit begins, so that nobody is refused before there is a reason.
pub const MAX_LIMIT: f64 = 10_000.0;
/// The least. Low enough for an upstream that works on one at a time, and enough to go on measuring.
pub const MIN_LIMIT: f64 = 4.0;
/// From so many times the usual on, answers are slow: the upstream is what limits the rate.
const SLOW: f64 = 1.25;
/// They may take so many times the usual: Netflix's concurrency-limits tolerates 1.5 to 2.
const TOLERANCE: f64 = 2.0;
/// A window has at least so many samples over so long ...
const SAMPLES: usize = 10;
const WINDOW: Duration = Duration::from_millis(100);
/// ... and looks at the last ones of them.
const KEPT: usize = 128;
/// Samples that are older say nothing of now.
const STALE: Duration = Duration::from_secs(10);
/// Rates are averaged over about so long: an upstream that stands still for a moment has not become slower.
const AVERAGED: Duration = Duration::from_millis(500);
/// How fast the usual time follows where nothing binds: up within minutes, so that a queue that grows slowly is no custom ...
const UP: Duration = Duration::from_secs(60);
/// ... and down by this part in each window.
const DOWN: f64 = 0.2;
/// Once the limit has bound for so long, the usual time is measured anew, for it may be the upstream that has become slower.
/// Each time is twice as long as the one before, up to [`MEASURE_AT_LAST`].
const MEASURE_FIRST: Duration = Duration::from_secs(2);
const MEASURE_AT_LAST: Duration = Duration::from_secs(64);
/// What nobody waits for any more is still worked on, and slows the others down: nothing is measured so soon after it.
const WORKED_OFF: Duration = Duration::from_secs(5);
/// At this part of the limit: where that is [`TOLERANCE`] times what the upstream works on, no answer waits for its turn, and
/// no rate is lost.
const MEASURE_AT: f64 = TOLERANCE;
/// Endpoints whose usual times are known; those that generations of policies have left behind are forgotten at this.
const ENDPOINTS: usize = 1000;

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleOutcome {
    /// An answer came.
    Answered,
    /// None came in time.
    TimedOut,
    /// It says nothing of the load: a refused connection, an answer that broke off, a refusal of the upstream's own.
    Untold,
}

/// One attempt that is over.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The endpoint's name: what is usual differs between a create and a read.
    pub endpoint: &'a str,
    /// An answer may take that long in any case.
    pub harmless: Duration,
    /// When it was sent.
    pub sent: Timestamp,
    /// How it went.
    pub went: SampleOutcome,
}

/// What is usual for one endpoint, and what this window shows of it.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    seconds: Option<f64>,
    /// Windows that it was learned from: the first ones count alike, and the quick answers come first of all.
    windows: u32,
    sum: f64,
    count: u32,
}

#[derive(Debug, Clone, Default)]
struct Window {
    since: Option<Timestamp>,
    /// Each answer's time as a share of what is slow for its endpoint.
    ratios: Vec<f32>,
    next: usize,
    /// What all answers together might have taken, in seconds.
    bearable: f64,
    most_under_way: usize,
    /// Somebody had to wait.
    pressed: bool,
}

/// What the limiter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It follows latency.
    Following,
    /// It measures what is usual, by attempts sent since no more than that are under way.
    Measuring { since: Option<Timestamp> },
}

/// One upstream's limit.
#[derive(Debug, Clone)]
pub struct Limiter {
    limit: f64,
    under_way: usize,
    usual: Vec<Usual>,
    /// Where each endpoint's stands.
    places: HashMap<Box<str>, usize>,
    window: Window,
    phase: Phase,
    /// When an attempt last got no answer in time.
    timed_out: Timestamp,
    /// How many attempts may be under way at the rate of late.
    servable: Option<f64>,
    /// Since when the limit has bound.
    bound: Option<Timestamp>,
    measure_after: Duration,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            limit: MAX_LIMIT,
            under_way: 0,
            usual: Vec::new(),
            places: HashMap::new(),
            window: Window::default(),
            phase: Phase::Following,
            timed_out: Timestamp::default(),
            servable: None,
            bound: None,
            measure_after: MEASURE_FIRST,
        }
    }
}

impl Limiter {
    /// The most attempts at once.
    pub fn limit(&self) -> usize {
        match self.phase {
            Phase::Following => self.limit as usize,
            Phase::Measuring { .. } => (self.limit / MEASURE_AT).max(MIN_LIMIT) as usize,
        }
    }

    /// Attempts under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether one more may be sent.
    pub fn has_room(&self) -> bool {
        self.under_way < self.limit()
    }

    /// One more is sent, whether there was room or not.
    pub fn begin(&mut self) {
        self.under_way += 1;
        self.window.most_under_way = self.window.most_under_way.max(self.under_way);
    }

    /// One is over.
    pub fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Somebody had to wait for want of room.
    pub fn pressed(&mut self, now: Timestamp) {
        self.window.pressed = true;
        self.bound.get_or_insert(now);
    }

    /// Takes into account how an attempt went, before its end.
    pub fn observe(&mut self, sample: &Sample<'_>, now: Timestamp) {
        if let Phase::Measuring { since: None } = self.phase
            && self.under_way <= self.limit()
        {
            self.phase = Phase::Measuring { since: Some(now) };
        }
        let waited_with_others =
            matches!(self.phase, Phase::Measuring { since } if since.is_none_or(|since| sample.sent < since));
        if sample.went == SampleOutcome::TimedOut {
            self.timed_out = now;
        }
        if sample.went == SampleOutcome::Untold || waited_with_others {
            return;
        }
        let took = now.since(sample.sent).as_secs_f64();
        let usual = self.usual_of(sample.endpoint);
        let usually = usual.seconds.unwrap_or(took).max(1e-9);
        if sample.went == SampleOutcome::Answered {
            usual.sum += took;
            usual.count += 1;
        } else if usual.seconds.is_none() || took < usually * TOLERANCE {
            // It took longer than this, nobody knows how much: that says something only where this is late already.
            return;
        }
        let age = now.since(*self.window.since.get_or_insert(now));
        if age >= STALE {
            self.window = Window { since: Some(now), most_under_way: self.under_way, ..Window::default() };
            self.phase = Phase::Following;
            // So few are sent that no window can raise the limit again: what it was lowered for is long ago.
            self.limit = (self.limit * 2.0).min(MAX_LIMIT);
            (self.servable, self.bound, self.measure_after) = (None, None, MEASURE_FIRST);
        }
        self.window.take((took / (usually * SLOW)) as f32);
        if sample.went == SampleOutcome::Answered {
            self.window.bearable += (usually * TOLERANCE).max(sample.harmless.as_secs_f64());
        }
        if (WINDOW..STALE).contains(&age) && self.window.ratios.len() >= SAMPLES {
            self.close(age, now);
        }
    }

    fn usual_of(&mut self, endpoint: &str) -> &mut Usual {
        let known = self.places.get(endpoint).copied();
        let place = known.unwrap_or_else(|| {
            if self.usual.len() >= ENDPOINTS {
                self.usual.clear();
                self.places.clear();
            }
            self.usual.push(Usual::default());
            self.places.insert(endpoint.into(), self.usual.len() - 1);
            self.usual.len() - 1
        });
        &mut self.usual[place]
    }

    /// Ends a window: the only place where the limit moves.
    fn close(&mut self, age: Duration, now: Timestamp) {
        let mut window = std::mem::take(&mut self.window);
        self.window.most_under_way = self.under_way;
        let calm = !window.pressed && (window.most_under_way as f64) < self.limit / 2.0;
        self.learn(calm, age);
        if let Phase::Measuring { .. } = self.phase {
            self.phase = Phase::Following;
            self.bound = Some(now);
            return;
        }
        let age = age.as_secs_f64();
        let (latest, weight) = (window.bearable / age, age / (age + AVERAGED.as_secs_f64()));
        let servable =
            self.servable.map_or(latest, |before| before + (latest - before) * weight).clamp(MIN_LIMIT, MAX_LIMIT);
        self.servable = Some(servable);
        let is_slow = window.median() > 1.0;
        if is_slow && self.under_way as f64 > servable {
            self.limit = servable;
            self.bound.get_or_insert(now);
        } else {
            let more = if is_slow { servable } else { servable.max(self.limit + self.limit.sqrt()) };
            self.limit = self.limit.max(more).min(MAX_LIMIT);
            if calm {
                self.bound = None;
                self.measure_after = MEASURE_FIRST;
            }
        }
        let binds = self.bound.is_some_and(|since| now.since(since) >= self.measure_after);
        if binds && now.since(self.timed_out) >= WORKED_OFF {
            self.phase = Phase::Measuring { since: None };
            self.measure_after = (self.measure_after * 2).min(MEASURE_AT_LAST);
        }
    }

    fn learn(&mut self, calm: bool, age: Duration) {
        let up = (age.as_secs_f64() / UP.as_secs_f64()).min(1.0);
        for usual in self.usual.iter_mut().filter(|usual| usual.count > 0) {
            let mean = usual.sum / f64::from(usual.count);
            let seconds = match usual.seconds {
                None => mean,
                Some(_) if self.phase != Phase::Following => mean,
                Some(before) if mean < before => before + (mean - before) * DOWN,
                Some(before) if calm => before + (mean - before) * up.max(1.0 / f64::from(usual.windows + 1)),
                Some(before) => before,
            };
            *usual = Usual { seconds: Some(seconds), windows: usual.windows.saturating_add(1), ..Usual::default() };
        }
    }
}

impl Window {
    fn take(&mut self, ratio: f32) {
        if self.ratios.len() < KEPT {
            self.ratios.push(ratio);
        } else {
            self.ratios[self.next % KEPT] = ratio;
            self.next += 1;
        }
    }

    /// The middle one: a few answers that hang are no overload, which makes all of them late.
    fn median(&mut self) -> f64 {
        let middle = self.ratios.len() / 2;
        if self.ratios.is_empty() {
            return 0.0;
        }
        let (_, median, _) = self.ratios.select_nth_unstable_by(middle, f32::total_cmp);
        f64::from(*median)
    }
}

#[cfg(test)]
#[path = "limiter/tests.rs"]
mod tests;
