//! The retry budget: retries are a share of traffic, so that they cannot multiply an outage.

/// How many retries traffic earns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Retries earned by first attempts, in percent of them. Default 20, Envoy's and Finagle's.
    pub percent: u32,
    /// Retries a second that are free of charge, so that quiet endpoints can retry at all. Default 3, Envoy's floor.
    pub floor_per_second: u32,
    /// The most retries that can be saved up. Default 100.
    pub capacity: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { percent: 20, floor_per_second: 3, capacity: 100 }
    }
}
