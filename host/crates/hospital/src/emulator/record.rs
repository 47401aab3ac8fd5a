//! The arrivals that the emulator records for tests. Pure.

use super::Call;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

const MAX_ARRIVALS: usize = 200_000;

/// A request that reached the emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The time of arrival on tokio's clock.
    pub at: Instant,
    /// The requested call.
    pub call: Call,
}

/// The arrivals, oldest first.
#[derive(Debug, Default)]
pub struct Record {
    arrivals: VecDeque<Arrival>,
    /// Requests that got a fault.
    pub injected: u64,
}

impl Record {
    /// Records an arrival.
    pub fn arrive(&mut self, call: Call, at: Instant) {
        if self.arrivals.len() == MAX_ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(Arrival { at, call });
    }

    /// All recorded arrivals, oldest first.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.iter().copied().collect()
    }

    /// The maximum number of one call's arrivals in any half-open window `[t, t + window)`.
    pub fn most_within(&self, call: Call, window: Duration) -> usize {
        let times: Vec<Instant> =
            self.arrivals.iter().filter(|arrival| arrival.call == call).map(|arrival| arrival.at).collect();
        let mut first = 0;
        let mut most = 0;
        for (last, at) in times.iter().enumerate() {
            while at.duration_since(times[first]) >= window {
                first += 1;
            }
            most = most.max(last - first + 1);
        }
        most
    }
}
