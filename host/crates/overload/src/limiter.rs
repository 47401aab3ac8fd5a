//! The arithmetic of the adaptive limit: pure functions of samples and time.
//!
//! Little's law: with R responses a second and N attempts under way, a response takes N / R. So the most attempts under way is R times the
//! longest acceptable response time. This is known at once, long before the first response is late. It holds only while the upstream is
//! what limits R, that is, while responses take far longer than usual.

use crate::clock::Timestamp;
use std::{collections::HashMap, time::Duration};

/// The highest limit, and the initial one, so that no request is refused without a reason.
pub const MAX_LIMIT: f64 = 10_000.0;
/// The lowest limit: low enough for an upstream that works on one request at a time, and enough to go on measuring.
pub const MIN_LIMIT: f64 = 4.0;
/// Responses are slow from this multiple of the usual time: then the upstream limits the rate.
const SLOW_FACTOR: f64 = 1.25;
/// Responses may take this multiple of the usual time. Netflix's concurrency-limits tolerates 1.5 to 2.
const TOLERANCE: f64 = 2.0;
/// A window has at least this many samples over at least this time ...
const MIN_WINDOW_SAMPLES: usize = 10;
const MIN_WINDOW_TIME: Duration = Duration::from_millis(100);
/// ... and keeps the latest ones.
const MAX_SAMPLES: usize = 128;
/// Older samples say nothing about the present.
const MAX_SAMPLE_AGE: Duration = Duration::from_secs(10);
/// The averaging time of rates: an upstream that stalls for a moment has not become slower.
const AVERAGING_TIME: Duration = Duration::from_millis(500);
/// How fast the usual time follows while the limit does not bind: up within minutes, so that a growing queue does not become usual ...
const USUAL_RISE_TIME: Duration = Duration::from_secs(60);
/// ... and down by this fraction in each window.
const USUAL_FALL_SHARE: f64 = 0.2;
/// Once the limit has bound for this long, the usual time is measured again, since the upstream may have become slower. Each interval is
/// twice the one before, up to [`MAX_MEASURE_INTERVAL`].
const MIN_MEASURE_INTERVAL: Duration = Duration::from_secs(2);
const MAX_MEASURE_INTERVAL: Duration = Duration::from_secs(64);
/// Nothing is measured for this long after a timeout: the upstream may still work on abandoned requests, which slows the others.
const AFTER_TIMEOUT_PAUSE: Duration = Duration::from_secs(5);
/// Measuring lowers the limit to this fraction (1/n): if the limit is [`TOLERANCE`] times the upstream's concurrency, no request then
/// queues there, and no throughput is lost.
const MEASURE_DIVISOR: f64 = TOLERANCE;
/// Endpoints with a known usual time. At this number all are forgotten, including those of former policy generations.
const MAX_ENDPOINTS: usize = 1000;

/// The outcome of an attempt, as a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleOutcome {
    /// The upstream responded.
    Answered,
    /// No response in time.
    TimedOut,
    /// Says nothing about load: a refused connection, a broken response, a refusal by the upstream itself.
    Uninformative,
}

/// One finished attempt.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// The endpoint's name: a create usually takes longer than a read.
    pub endpoint: &'a str,
    /// A response time that is always acceptable.
    pub harmless: Duration,
    /// When the attempt was sent.
    pub sent: Timestamp,
    /// The attempt's outcome.
    pub outcome: SampleOutcome,
}

/// The usual time of one endpoint, and its samples in this window.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    seconds: Option<f64>,
    /// Windows learned from. The first ones weigh the same, because quick responses arrive before slow ones.
    windows: u32,
    sum: f64,
    count: u32,
}

#[derive(Debug, Clone, Default)]
struct Window {
    since: Option<Timestamp>,
    /// Each response time, divided by what is slow for its endpoint.
    ratios: Vec<f32>,
    next: usize,
    /// The sum of acceptable times of all responses, in seconds.
    bearable: f64,
    most_under_way: usize,
    /// Whether a request had to wait.
    pressed: bool,
}

/// The limiter's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The limit follows latency.
    Following,
    /// The usual time is measured from attempts sent after `since`, when no more than the lowered limit were under way.
    Measuring { since: Option<Timestamp> },
}

/// One upstream's limit.
#[derive(Debug, Clone)]
pub struct Limiter {
    limit: f64,
    under_way: usize,
    usual: Vec<Usual>,
    /// The index in `usual` of each endpoint.
    indexes: HashMap<Box<str>, usize>,
    window: Window,
    phase: Phase,
    /// When an attempt last timed out.
    timed_out: Timestamp,
    /// How many attempts may be under way at the recent rate.
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
            indexes: HashMap::new(),
            window: Window::default(),
            phase: Phase::Following,
            timed_out: Timestamp::default(),
            servable: None,
            bound: None,
            measure_after: MIN_MEASURE_INTERVAL,
        }
    }
}

impl Limiter {
    /// The most attempts at once.
    pub fn limit(&self) -> usize {
        match self.phase {
            Phase::Following => self.limit as usize,
            Phase::Measuring { .. } => (self.limit / MEASURE_DIVISOR).max(MIN_LIMIT) as usize,
        }
    }

    /// Attempts under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether one more attempt may be sent.
    pub fn has_room(&self) -> bool {
        self.under_way < self.limit()
    }

    /// Counts one more attempt, even above the limit.
    pub fn begin(&mut self) {
        self.under_way += 1;
        self.window.most_under_way = self.window.most_under_way.max(self.under_way);
    }

    /// One attempt has ended.
    pub fn end(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// A request had to wait, because the limit was reached.
    pub fn pressed(&mut self, now: Timestamp) {
        self.window.pressed = true;
        self.bound.get_or_insert(now);
    }

    /// Adds an attempt's sample. Call it before [`Limiter::end`].
    pub fn observe(&mut self, sample: &Sample<'_>, now: Timestamp) {
        if let Phase::Measuring { since: None } = self.phase
            && self.under_way <= self.limit()
        {
            self.phase = Phase::Measuring { since: Some(now) };
        }
        let waited_with_others =
            matches!(self.phase, Phase::Measuring { since } if since.is_none_or(|since| sample.sent < since));
        if sample.outcome == SampleOutcome::TimedOut {
            self.timed_out = now;
        }
        if sample.outcome == SampleOutcome::Uninformative || waited_with_others {
            return;
        }
        let took = now.since(sample.sent).as_secs_f64();
        let usual = self.usual_of(sample.endpoint);
        let usually = usual.seconds.unwrap_or(took).max(1e-9);
        if sample.outcome == SampleOutcome::Answered {
            usual.sum += took;
            usual.count += 1;
        } else if usual.seconds.is_none() || took < usually * TOLERANCE {
            // A timeout shows only that the attempt took longer than this: it counts only if that is late already.
            return;
        }
        let age = now.since(*self.window.since.get_or_insert(now));
        if age >= MAX_SAMPLE_AGE {
            self.window = Window { since: Some(now), most_under_way: self.under_way, ..Window::default() };
            self.phase = Phase::Following;
            // Traffic is too low for a window to raise the limit again, and the reason for the low limit is long past.
            self.limit = (self.limit * 2.0).min(MAX_LIMIT);
            (self.servable, self.bound, self.measure_after) = (None, None, MIN_MEASURE_INTERVAL);
        }
        self.window.take((took / (usually * SLOW_FACTOR)) as f32);
        if sample.outcome == SampleOutcome::Answered {
            self.window.bearable += (usually * TOLERANCE).max(sample.harmless.as_secs_f64());
        }
        if (MIN_WINDOW_TIME..MAX_SAMPLE_AGE).contains(&age) && self.window.ratios.len() >= MIN_WINDOW_SAMPLES {
            self.close(age, now);
        }
    }

    fn usual_of(&mut self, endpoint: &str) -> &mut Usual {
        let known = self.indexes.get(endpoint).copied();
        let index = known.unwrap_or_else(|| {
            if self.usual.len() >= MAX_ENDPOINTS {
                self.usual.clear();
                self.indexes.clear();
            }
            self.usual.push(Usual::default());
            self.indexes.insert(endpoint.into(), self.usual.len() - 1);
            self.usual.len() - 1
        });
        &mut self.usual[index]
    }

    /// Ends a window. Only here, and after a pause in traffic, the limit moves.
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
        let (latest, weight) = (window.bearable / age, age / (age + AVERAGING_TIME.as_secs_f64()));
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
                self.measure_after = MIN_MEASURE_INTERVAL;
            }
        }
        let binds = self.bound.is_some_and(|since| now.since(since) >= self.measure_after);
        if binds && now.since(self.timed_out) >= AFTER_TIMEOUT_PAUSE {
            self.phase = Phase::Measuring { since: None };
            self.measure_after = (self.measure_after * 2).min(MAX_MEASURE_INTERVAL);
        }
    }

    fn learn(&mut self, calm: bool, age: Duration) {
        let up = (age.as_secs_f64() / USUAL_RISE_TIME.as_secs_f64()).min(1.0);
        for usual in self.usual.iter_mut().filter(|usual| usual.count > 0) {
            let mean = usual.sum / f64::from(usual.count);
            let seconds = match usual.seconds {
                None => mean,
                Some(_) if self.phase != Phase::Following => mean,
                Some(before) if mean < before => before + (mean - before) * USUAL_FALL_SHARE,
                Some(before) if calm => before + (mean - before) * up.max(1.0 / f64::from(usual.windows + 1)),
                Some(before) => before,
            };
            *usual = Usual { seconds: Some(seconds), windows: usual.windows.saturating_add(1), ..Usual::default() };
        }
    }
}

impl Window {
    fn take(&mut self, ratio: f32) {
        if self.ratios.len() < MAX_SAMPLES {
            self.ratios.push(ratio);
        } else {
            self.ratios[self.next % MAX_SAMPLES] = ratio;
            self.next += 1;
        }
    }

    /// The median, because overload makes all responses late: a few that hang are no overload.
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
