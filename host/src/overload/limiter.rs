//! The arithmetic of the limit: pure functions of samples and time.

use super::Priority;
use crate::clock::Timestamp;
use std::{collections::HashMap, time::Duration};

/// Where the limit begins, as far as its bounds allow.
const BEGIN: usize = 50;
/// Answers may take so many times the usual before it counts as overload: ordinary jitter stays below.
const TOLERANCE: f64 = 2.0;
/// The most that one window takes off the limit.
const STEEPEST: f64 = 0.5;
/// What an attempt without an answer in time, or a 503, takes off.
const DROPPED: f64 = 0.9;
/// A window has at least so many samples over so long ...
const SAMPLES: u32 = 10;
const WINDOW: Duration = Duration::from_millis(100);
/// ... or ends after this with what it has.
const LONGEST: Duration = Duration::from_secs(1);
/// How fast the usual time follows what a calm upstream shows.
const DRIFT: f64 = 0.05;
/// After the limit has bound for so long, the usual time is measured anew: the upstream itself may have become slower.
const MEASURE_AFTER: Duration = Duration::from_secs(30);
/// At this part of the limit, where nothing should have to wait.
const MEASURE_AT: usize = 4;

/// The bounds of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The least. Default 4.
    pub min_limit: usize,
    /// The most. Default 1000.
    pub max_limit: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { min_limit: 4, max_limit: 1000 }
    }
}

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// An answer came after so long.
    Answered(Duration),
    /// None came in time, or the upstream said that it has too much to do.
    Dropped,
    /// It says nothing of the load: a refused connection, an answer that broke off.
    Silent,
}

/// What is usual for one endpoint, and what this window shows of it.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    base: Option<f64>,
    sum: f64,
    count: u32,
}

impl Usual {
    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: Option<Timestamp>,
    samples: u32,
    dropped: u32,
    most_under_way: usize,
}

/// What the limiter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It follows latency; since when the limit has bound, if it does.
    Following { bound_since: Option<Timestamp> },
    /// It measures what is usual, by attempts sent since then.
    Measuring { since: Timestamp },
}

/// One upstream's limit.
#[derive(Debug, Clone)]
pub struct Limiter {
    settings: Settings,
    limit: f64,
    under_way: usize,
    refused: bool,
    usual: HashMap<Box<str>, Usual>,
    window: Window,
    phase: Phase,
}

impl Limiter {
    /// With nothing under way and nothing known.
    pub fn new(settings: Settings) -> Self {
        let limit = BEGIN.clamp(settings.min_limit.max(1), settings.max_limit.max(1)) as f64;
        Self {
            settings,
            limit,
            under_way: 0,
            refused: false,
            usual: HashMap::new(),
            window: Window::default(),
            phase: Phase::Following { bound_since: None },
        }
    }

    /// The most attempts at once, for the highest priority.
    pub fn limit(&self) -> usize {
        let limit = self.limit as usize;
        match self.phase {
            Phase::Following { .. } => limit,
            Phase::Measuring { .. } => (limit / MEASURE_AT).max(self.settings.min_limit),
        }
        .max(1)
    }

    /// Attempts under way.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Puts other bounds into force.
    pub fn adopt(&mut self, settings: Settings) {
        self.settings = settings;
        self.limit = self.bounded(self.limit);
    }

    /// Takes a place, if there is one for this priority. Every priority has at least one.
    pub fn admit(&mut self, priority: Priority) -> bool {
        let most = (self.limit() * priority.share_percent() / 100).max(1);
        let admitted = self.under_way < most;
        if admitted {
            self.under_way += 1;
            self.window.most_under_way = self.window.most_under_way.max(self.under_way);
        } else {
            self.refused = true;
        }
        admitted
    }

    /// Gives a place back.
    pub fn release(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Takes into account how an attempt went that was sent at `sent`.
    pub fn observe(&mut self, endpoint: &str, sent: Timestamp, sample: Sample, now: Timestamp) {
        if let Phase::Measuring { since } = self.phase
            && sent < since
        {
            // It waited among those that are to be measured without.
            return;
        }
        match sample {
            Sample::Silent => return,
            Sample::Dropped => self.window.dropped += 1,
            Sample::Answered(took) => {
                if !self.usual.contains_key(endpoint) {
                    self.usual.insert(endpoint.into(), Usual::default());
                }
                if let Some(usual) = self.usual.get_mut(endpoint) {
                    // Below a tenth of a millisecond, what differs is this host and not the upstream.
                    usual.sum += took.as_secs_f64().max(1e-4);
                    usual.count += 1;
                }
            }
        }
        self.window.samples += 1;
        let age = now.since(*self.window.since.get_or_insert(now));
        if age >= LONGEST || (self.window.samples >= SAMPLES && age >= WINDOW) {
            self.close(now);
        }
    }

    /// Ends a window: the only place where the limit moves.
    fn close(&mut self, now: Timestamp) {
        let window = std::mem::take(&mut self.window);
        let refused = std::mem::take(&mut self.refused);
        self.window.most_under_way = self.under_way;
        if let Phase::Measuring { .. } = self.phase {
            for usual in self.usual.values_mut() {
                *usual = Usual { base: usual.mean().or(usual.base), ..Usual::default() };
            }
            self.phase = Phase::Following { bound_since: None };
            return;
        }
        // Few under way: latency says nothing of this limit, and what is usual can be learned.
        let calm = !refused && (window.most_under_way as f64) < self.limit / 2.0;
        let slowdown = self.learn(calm);
        if calm {
            self.phase = Phase::Following { bound_since: None };
            return;
        }
        let mut gradient = (TOLERANCE / slowdown.max(1e-9)).clamp(STEEPEST, 1.0);
        if window.dropped > 0 {
            gradient = gradient.min(DROPPED);
        }
        self.limit = self.bounded(self.limit * gradient + self.limit.sqrt() * f64::from(u8::from(window.dropped == 0)));
        let Phase::Following { bound_since } = self.phase else { return };
        let binds = refused || gradient < 1.0;
        let since = binds.then(|| bound_since.unwrap_or(now));
        self.phase = match since {
            Some(since) if now.since(since) >= MEASURE_AFTER => Phase::Measuring { since: now },
            since => Phase::Following { bound_since: since },
        };
    }

    /// How many times the usual the window's answers took, each endpoint by its share of them; and what is usual from now on.
    fn learn(&mut self, calm: bool) -> f64 {
        let (mut weighted, mut all) = (0.0, 0.0);
        for usual in self.usual.values_mut() {
            let Some(mean) = usual.mean() else { continue };
            let base = usual.base.unwrap_or(mean);
            weighted += mean / base * f64::from(usual.count);
            all += f64::from(usual.count);
            let base = if mean < base {
                mean
            } else if calm {
                base + (mean - base) * DRIFT
            } else {
                base
            };
            *usual = Usual { base: Some(base), ..Usual::default() };
        }
        if all > 0.0 { weighted / all } else { 1.0 }
    }

    fn bounded(&self, limit: f64) -> f64 {
        let least = self.settings.min_limit.max(1) as f64;
        limit.clamp(least, (self.settings.max_limit as f64).max(least))
    }
}

#[cfg(test)]
#[path = "limiter/tests.rs"]
mod tests;
