//! A deployment that sleeps without requests and takes time to wake. Pure.

use http::StatusCode;
use std::time::Duration;
use tokio::time::Instant;

/// The sleep behaviour of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdStart {
    /// Time without requests until it sleeps and loses its data. Observed: 15 min.
    pub idle: Duration,
    /// Time from the first request until it is awake. Observed: 23 to 60 s.
    pub waking: Duration,
    /// How it treats requests while it wakes.
    pub meanwhile: Meanwhile,
    /// Whether it is asleep at the start.
    pub asleep: bool,
}

/// How a waking deployment treats requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Delays them until it is awake.
    Hold,
    /// Responds with a status of the edge proxy (502, 503); the request does not reach the server.
    Answer(StatusCode),
}

/// How to treat an incoming request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Handle it at once.
    Open,
    /// Handle it from this time on.
    From(Instant),
    /// Respond with this status of the edge proxy.
    Answer(StatusCode),
}

/// The state of the deployment: awake, asleep or waking.
#[derive(Debug)]
pub struct Sleeper {
    cold_start: Option<ColdStart>,
    awake_from: Option<Instant>,
    last_request: Instant,
}

impl Sleeper {
    /// Starts awake, or asleep if so configured. Without `cold_start` it never sleeps.
    pub fn new(cold_start: Option<ColdStart>, now: Instant) -> Self {
        let asleep = cold_start.is_some_and(|cold| cold.asleep);
        Self { cold_start, awake_from: (!asleep).then_some(now), last_request: now }
    }

    /// Registers an incoming request. Also returns whether the process was restarted, which loses all data.
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

    /// Puts the deployment to sleep. Without a cold start, this does nothing.
    pub fn sleep(&mut self) {
        self.awake_from = None;
    }
}
