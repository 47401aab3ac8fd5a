//! Keeps the conditions up to date: samples what happened lately, and records when shared state becomes unreachable and reachable again.

use super::{
    Condition, ConditionId, StateChange, Tracker,
    facts::{self, Recent, UnsettledFacts},
};
use crate::{AdminState, clock::millis, rounded::Rounded, state_redis::RedisConnection, telemetry::Sampler};
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// Samples that "recently" spans, one a second.
const MAX_SAMPLES: usize = 11;
/// Between two counts of unknown writes. The store is asked for each one, so this is rarer than a sample.
pub(crate) const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum unknown writes to count.
pub(crate) const MAX_COUNTED: usize = 1000;

/// Totals of counters that no sampler holds.
#[derive(Debug, Clone, Default)]
struct Totals {
    shed: Vec<u64>,
    state_timed_out: u64,
    traces_dropped: u64,
}

/// The conditions of the host, and what is needed to find them.
#[derive(Debug, Default)]
pub(crate) struct Monitor {
    totals: Mutex<VecDeque<Totals>>,
    unsettled: Mutex<UnsettledFacts>,
    tracker: Mutex<Tracker>,
}

impl Monitor {
    /// Takes a sample, once a second, and notes what changed.
    pub(crate) fn sample(&self, state: &AdminState) -> Vec<Condition> {
        let shared = &state.host.shared;
        let failures = shared.link.as_ref().map(RedisConnection::steps);
        let timed_out = failures.iter().flat_map(|steps| steps.failed).find(|(why, _)| *why == "timed-out");
        let upstreams = shared.rollout.upstreams.iter();
        let totals = Totals {
            shed: upstreams.map(|serving| serving.overload.view().shed.iter().sum()).collect(),
            state_timed_out: timed_out.map_or(0, |(_, count)| count),
            traces_dropped: shared.exporter.as_ref().map_or(0, |exporter| exporter.counts().1),
        };
        {
            let mut samples = self.totals.lock();
            if samples.len() == MAX_SAMPLES {
                samples.pop_front();
            }
            samples.push_back(totals);
        }
        self.refresh(state)
    }

    /// Counts the writes whose effect is unknown. A store that cannot be reached leaves the last count.
    pub(crate) async fn count_unsettled(&self, state: &AdminState) {
        let records = Arc::clone(&state.host.shared.records);
        let counted = match &state.host.shared.link {
            None => records.unsettled(MAX_COUNTED).await.ok(),
            // On the thread that watches shared state. This thread's own connection is for operators: one that broke since its last use
            // would be found by their next command, which then could not tell whether it took effect.
            Some(link) => {
                let (send, counted) = oneshot::channel();
                link.beside(async move {
                    let _ = send.send(records.unsettled(MAX_COUNTED).await.ok());
                });
                counted.await.ok().flatten()
            }
        };
        let Some(records) = counted else { return };
        *self.unsettled.lock() = UnsettledFacts {
            count: records.len(),
            unverified: records.iter().filter(|record| record.verified_in.is_none()).count(),
            oldest_unix_ms: state
                .host
                .shared
                .clock
                .unix_ms()
                .saturating_sub(millis(records.iter().map(|record| record.sent_ago).max().unwrap_or_default())),
        };
    }

    /// The conditions now, the most severe first.
    pub(crate) fn refresh(&self, state: &AdminState) -> Vec<Condition> {
        let recent = self.recent(&state.live.sampler.lock());
        let facts = facts::gather(state, recent, *self.unsettled.lock());
        let now_unix_ms = facts.now_unix_ms;
        let (conditions, change) = self.tracker.lock().update(&facts);
        match change {
            Some(StateChange::Lost) => {
                let text = conditions
                    .iter()
                    .find(|own| matches!(own.id, ConditionId::StateDown | ConditionId::StateUnauthorized));
                let text = text.map_or_else(String::new, |own| own.text.clone());
                state.host.shared.events.note("state-lost", "state", text);
            }
            Some(StateChange::Back { since_unix_ms }) => {
                let away = Rounded(Duration::from_millis(now_unix_ms.saturating_sub(since_unix_ms)));
                let text = format!("shared state can be reached again, after {away}");
                state.host.shared.events.note("state-back", "state", text);
            }
            None => {}
        }
        conditions
    }

    fn recent(&self, sampler: &Sampler) -> Recent {
        let totals = self.totals.lock();
        let (first, last) = (totals.front().cloned().unwrap_or_default(), totals.back().cloned().unwrap_or_default());
        let shed = last.shed.iter().zip(first.shed.iter().chain(std::iter::repeat(&0)));
        Recent {
            traffic: sampler.traffic(),
            shed: shed.map(|(last, first)| last.saturating_sub(*first)).collect(),
            state_timed_out: last.state_timed_out.saturating_sub(first.state_timed_out),
            traces_dropped: last.traces_dropped.saturating_sub(first.traces_dropped),
        }
    }
}
