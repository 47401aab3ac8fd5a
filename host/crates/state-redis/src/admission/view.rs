//! Status of a group for operators, as of the last heartbeat.

use super::{MAX_HEARTBEAT_AGE, RedisGate, shared_breaker::SharedBreakerStatus};
use crate::{
    breaker,
    group::{GroupStatus, LimitView},
};
use std::time::Duration;

impl RedisGate {
    /// The fleet's status. Instead this host's own, if Redis cannot be reached or only this host's own breaker refuses.
    pub fn view(&self) -> GroupStatus {
        let now = self.clock.now();
        let alone = self.alone.view();
        let known = self.known.lock();
        let breakerless = known.settings.breaker.is_none();
        let seen = if breakerless { Some(SharedBreakerStatus::NONE) } else { known.fleet.seen(now) };
        let (Some((heartbeat, at)), Some(seen)) = (&known.heartbeat, seen) else { return alone };
        if now.since(*at) > MAX_HEARTBEAT_AGE {
            return alone;
        }
        let since = |time: Duration| time.saturating_sub(now.since(*at));
        let of_fleet = breaker::BreakerStatus {
            state: seen.state,
            why: seen.why,
            forced: seen.forced,
            remaining: seen.remaining,
            open_since: seen.why.is_some().then(|| heartbeat.open_since.saturating_add(now.since(*at))),
            failures_in_row: heartbeat.failures_in_row,
            counts: heartbeat.counts,
            usual_milli: None,
            probes: heartbeat.probes,
            epoch: seen.epoch,
        };
        let passes = seen.state == breaker::BreakerState::Closed && !seen.forced;
        let own = alone.breaker.filter(|own| passes && own.state != breaker::BreakerState::Closed);
        let limits = known.settings.limits.iter().zip(&heartbeat.ahead);
        GroupStatus {
            group: self.name.clone(),
            breaker: (!breakerless).then(|| own.unwrap_or(of_fleet)),
            limits: limits
                .map(|(quota, ahead)| LimitView { quota: *quota, taken: quota.requests_ahead(since(*ahead)) })
                .collect(),
            pace: None,
            budget: heartbeat.budget,
            budget_settings: known.settings.budget.clone(),
            paused: Some(since(heartbeat.pause)).filter(|pause| !pause.is_zero()).max(alone.paused),
        }
    }
}
