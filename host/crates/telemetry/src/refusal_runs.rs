//! Folds refusals: during an outage thousands of equal ones would hide everything else in a list of requests.

use super::{Names, RequestId};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// A refusal this long after the last equal one begins a new run.
const MAX_GAP: Duration = Duration::from_mins(1);
/// Runs kept per worker. Each is one row of a list.
const MAX_RUNS: usize = 64;

/// A request in a list, or a run of equal refusals.
#[derive(Debug, Clone)]
pub struct RequestRow {
    /// Id of the request; of a run, that of the latest.
    pub id: RequestId,
    /// Upstream and endpoint.
    pub names: Arc<Names>,
    /// A standard method, or `other`.
    pub method: &'static str,
    /// Status of the response; `None` if the caller had disconnected.
    pub status: Option<u16>,
    /// The reason, if the host answered itself.
    pub reason: Option<&'static str>,
    /// Time of arrival; of a run, that of the latest.
    pub began: Instant,
    /// Time until the response's head, or until the caller disconnected.
    pub took: Duration,
    /// Number of requests in the row.
    pub count: u64,
    /// Time of arrival of the row's first request.
    pub first_began: Instant,
}

impl RequestRow {
    /// Whether both rows are runs of one kind: same endpoint, method, status and reason.
    fn is_like(&self, other: &Self) -> bool {
        (self.status, self.reason, self.method) == (other.status, other.reason, other.method)
            && (Arc::ptr_eq(&self.names, &other.names) || self.names == other.names)
    }

    /// Merges another run of the same kind.
    fn merge(&mut self, other: &Self) {
        let (count, first_began) = (self.count + other.count, self.first_began.min(other.first_began));
        if other.began > self.began {
            *self = other.clone();
        }
        (self.count, self.first_began) = (count, first_began);
    }
}

/// The latest runs of refusals.
#[derive(Debug, Default)]
pub struct RefusalRuns(Vec<RequestRow>);

impl RefusalRuns {
    /// Adds a refusal: to the run of its kind, or as a new run, which takes the place of the oldest if there are too many.
    pub(super) fn add(&mut self, refusal: RequestRow) {
        let fits = |run: &&mut RequestRow| {
            run.is_like(&refusal) && refusal.began.saturating_duration_since(run.began) <= MAX_GAP
        };
        if let Some(run) = self.0.iter_mut().find(fits) {
            return run.merge(&refusal);
        }
        if self.0.len() == MAX_RUNS {
            let oldest = self.0.iter().enumerate().min_by_key(|(_, run)| run.began).map_or(0, |(index, _)| index);
            self.0.swap_remove(oldest);
        }
        self.0.push(refusal);
    }

    /// Adds another worker's runs: equal ones at about the same time become one.
    pub(super) fn join(&mut self, others: &Self) {
        for run in &others.0 {
            let overlaps = |own: &&mut RequestRow| {
                own.is_like(run)
                    && own.first_began.saturating_duration_since(run.began) <= MAX_GAP
                    && run.first_began.saturating_duration_since(own.began) <= MAX_GAP
            };
            match self.0.iter_mut().find(overlaps) {
                Some(own) => own.merge(run),
                None => self.0.push(run.clone()),
            }
        }
    }

    /// The runs as rows of a list.
    pub(super) fn rows(self) -> Vec<RequestRow> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(reason: &'static str, began: Instant, id: u64) -> RequestRow {
        let names = Arc::new(Names { upstream: "api".to_owned(), endpoint: "any".to_owned() });
        let (method, took, count) = ("GET", Duration::ZERO, 1);
        let (id, status, reason) = (RequestId(id), Some(503), Some(reason));
        RequestRow { id, names, method, status, reason, began, took, count, first_began: began }
    }

    #[test]
    fn equal_refusals_are_one_row_with_the_latest_id() {
        let start = Instant::now();
        let mut runs = RefusalRuns::default();
        for second in 0..1_412 {
            runs.add(refusal("breaker-open", start + Duration::from_secs(second), second));
        }
        runs.add(refusal("rate-limited", start + Duration::from_secs(5), 7_000));
        let rows = runs.rows();
        assert_eq!(
            rows.iter().map(|row| (row.reason, row.count)).collect::<Vec<_>>(),
            [(Some("breaker-open"), 1_412), (Some("rate-limited"), 1)]
        );
        assert_eq!((rows[0].id, rows[0].first_began), (RequestId(1_411), start));
    }

    #[test]
    fn a_refusal_after_a_gap_begins_a_new_run() {
        let start = Instant::now();
        let mut runs = RefusalRuns::default();
        runs.add(refusal("breaker-open", start, 1));
        runs.add(refusal("breaker-open", start + MAX_GAP + Duration::from_secs(1), 2));
        assert_eq!(runs.rows().len(), 2);
    }

    #[test]
    fn the_runs_of_two_workers_become_one_row() {
        let start = Instant::now();
        let (mut one, mut two) = (RefusalRuns::default(), RefusalRuns::default());
        for second in 0..10 {
            one.add(refusal("breaker-open", start + Duration::from_secs(second), second));
            two.add(refusal("breaker-open", start + Duration::from_secs(second + 1), 100 + second));
        }
        one.join(&two);
        let rows = one.rows();
        assert_eq!((rows.len(), rows[0].count, rows[0].id), (1, 20, RequestId(109)));
    }

    #[test]
    fn the_number_of_runs_is_bounded_and_the_oldest_goes() {
        let start = Instant::now();
        let mut runs = RefusalRuns::default();
        for run in 0..MAX_RUNS as u64 + 10 {
            runs.add(refusal("breaker-open", start + run as u32 * 2 * MAX_GAP, run));
        }
        let rows = runs.rows();
        assert_eq!(rows.len(), MAX_RUNS);
        assert!(rows.iter().all(|row| row.id.0 >= 10), "{rows:?}");
    }
}
