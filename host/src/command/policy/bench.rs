//! `triage policy bench`: measures the time of a decision.

use super::component::{CacheOptions, load, read};
use anyhow::{Result, bail};
use http::{HeaderMap, Method, StatusCode};
use std::{fmt, path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;
use triage_core::rounded::Rounded;
use triage_engine::{
    LoadOptions, Policy,
    contract::{Attempt, Effect, Failure, FailureKind, Outcome, Purpose},
};

/// The statuses of the responses to classify.
const STATUSES: [u16; 5] = [200, 404, 429, 500, 503];

/// The measured times of one kind of decision.
struct Times {
    kind: &'static str,
    /// Sorted.
    each: Vec<Duration>,
}

impl Times {
    fn at(&self, percent: usize) -> Duration {
        let index = self.each.len().saturating_sub(1) * percent / 100;
        self.each.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.each.iter().sum();
        let a_second = self.each.len() as f64 / total.as_secs_f64().max(f64::MIN_POSITIVE);
        writeln!(
            f,
            "{}: p50 {}, p99 {}, longest {}; {a_second:.0} decisions a second",
            self.kind,
            Rounded(self.at(50)),
            Rounded(self.at(99)),
            Rounded(self.at(100)),
        )
    }
}

/// Measures and returns a report.
pub fn run(component: &Path, decisions: u32, cache: &CacheOptions) -> Result<String> {
    let bytes = read(component)?;
    let engine = cache.engine()?;
    let mut report = String::new();
    for (kind, reuse_instances) in [("a fresh instance each", false), ("reused instances", true)] {
        let loading = LoadOptions { reuse_instances, ..LoadOptions::default() };
        let policy = load(&engine, component, &bytes, &loading)?;
        report.push_str(&measured(kind, &policy, decisions)?.to_string());
    }
    Ok(report)
}

fn measured(kind: &'static str, policy: &Arc<Policy>, decisions: u32) -> Result<Times> {
    let endpoints = &policy.description().endpoints;
    let headers = HeaderMap::new();
    let outcomes: Vec<Outcome<'_>> = STATUSES
        .iter()
        .filter_map(|status| StatusCode::from_u16(*status).ok())
        .map(|status| Outcome::Response { status, headers: &headers, body: b"{}", complete: true })
        .chain([Outcome::Failure(Failure::new(FailureKind::Reset, true))])
        .collect();
    let mut each = Vec::with_capacity(decisions as usize);
    for number in 0..decisions as usize {
        let endpoint = number % endpoints.len().max(1);
        let effect = endpoints.get(endpoint).map_or(Effect::Safe, |described| {
            described.method.as_ref().map_or(Effect::of(&Method::GET), Effect::of).max(described.effect)
        });
        let attempt = Attempt {
            endpoint,
            method: endpoints.get(endpoint).and_then(|described| described.method.as_ref()).unwrap_or(&Method::GET),
            effect,
            purpose: Purpose::Request,
            number: 1,
            prior_unknown: false,
            sent_ago: Some(Duration::from_millis(20)),
            elapsed: Duration::from_millis(20),
            remaining: Duration::from_secs(10),
            previous_delay: Duration::ZERO,
            random: number as u64,
            now_unix_ms: 1_767_225_600_000,
            keyed: false,
            path: "/",
            request_headers: &headers,
            request_body: b"",
            taken: &[],
        };
        let Some(outcome) = outcomes.get(number / endpoints.len().max(1) % outcomes.len()) else { continue };
        let before = Instant::now();
        let decided = policy.decide(&attempt, outcome);
        each.push(before.elapsed());
        if let Err(fault) = decided {
            bail!("the policy failed in decision {}: {}", number + 1, fault.for_author());
        }
    }
    each.sort_unstable();
    Ok(Times { kind, each })
}
