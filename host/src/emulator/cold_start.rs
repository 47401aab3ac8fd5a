//! A deployment that goes to sleep when nobody asks, and takes its time to wake. Pure.

use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

/// How the deployment sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdStart {
    /// Without a request for so long it goes to sleep and forgets everything. Seen: 15 minutes.
    pub idle: Duration,
    /// From the first request to being awake. Seen: 23 to 60 s.
    pub waking: Duration,
    /// What requests get meanwhile.
    pub meanwhile: Meanwhile,
    /// Whether it is asleep at the start.
    pub asleep: bool,
}

/// What a waking deployment does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Holds them, and handles them once awake.
    Hold,
    /// Answers with a status of the edge (502, 503); the request never reaches the server.
    Answer(StatusCode),
}

/// What happens to a request that comes in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It is handled.
    Open,
    /// It is handled from then on.
    From(Instant),
    /// The edge answers.
    Answer(StatusCode),
}

/// Awake, asleep or in between.
#[derive(Debug)]
pub struct Sleeper {
    cold_start: Option<ColdStart>,
    awake_from: Option<Instant>,
    last_request: Instant,
}

impl Sleeper {
    /// Awake at `now`, or asleep if so configured; without `cold_start` it never sleeps by itself.
    pub fn new(cold_start: Option<ColdStart>, now: Instant) -> Self {
        let asleep = cold_start.is_some_and(|cold| cold.asleep);
        Self { cold_start, awake_from: (!asleep).then_some(now), last_request: now }
    }

    /// A request comes in. True beside the entry: the process was restarted, all is forgotten.
    pub fn enter(&mut self, now: Instant) -> (Entry, bool) {
        let Some(cold) = self.cold_start else { return (Entry::Open, false) };
        let idle = now.saturating_duration_since(self.last_request);
        self.last_request = now;
        if self.awake_from.is_some_and(|awake| now >= awake) && idle >= cold.idle {
            self.awake_from = None;
        }
        let restarted = self.awake_from.is_none();
        let awake = *self.awake_from.get_or_insert(now + cold.waking);
        let entry = match cold.meanwhile {
            _ if now >= awake => Entry::Open,
            Meanwhile::Hold => Entry::From(awake),
            Meanwhile::Answer(status) => Entry::Answer(status),
        };
        (entry, restarted)
    }

    /// Sends it to sleep now; with no cold start configured nothing happens.
    pub fn sleep(&mut self) {
        self.awake_from = None;
    }
}
