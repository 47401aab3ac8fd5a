//! What there is to see of a group, as of the last beat.

use super::{RedisGate, STALE};
use crate::{
    breaker,
    gate::{LimitView, View},
};
use std::time::Duration;

impl RedisGate {
    /// What there is to see: the fleet's, or this host's own where it alone refuses or stands alone.
    pub fn view(&self) -> View {
        let now = self.clock.now();
        let alone = self.alone.view();
        let known = self.known.lock();
        let (Some((beaten, at)), Some((standing, forced, why, remaining, epoch))) =
            (&known.beaten, known.fleet.view(now).or_else(|| known.settings.breaker.is_none().then(breakerless)))
        else {
            return alone;
        };
        if now.since(*at) > STALE {
            return alone;
        }
        let since = |time: Duration| time.saturating_sub(now.since(*at));
        let of_fleet = breaker::View {
            standing,
            why,
            forced,
            remaining,
            open_since: why.is_some().then(|| beaten.open_since.saturating_add(now.since(*at))),
            failures_in_row: beaten.failures_in_row,
            counts: beaten.counts,
            probes: beaten.probes,
            epoch,
        };
        let own = alone.breaker.filter(|own| {
            standing == breaker::Standing::Closed && !forced && own.standing != breaker::Standing::Closed
        });
        let limits = known.settings.limits.iter().zip(&beaten.ahead);
        View {
            group: self.name.clone(),
            breaker: known.settings.breaker.is_some().then(|| own.unwrap_or(of_fleet)),
            limits: limits
                .map(|(quota, ahead)| LimitView { quota: *quota, taken: quota.places(since(*ahead)) })
                .collect(),
            budget: beaten.budget,
            budget_settings: known.settings.budget.clone(),
            paused: Some(since(beaten.pause)).filter(|pause| !pause.is_zero()).max(alone.paused),
        }
    }
}

type Stands = (breaker::Standing, bool, Option<breaker::Trip>, Option<Duration>, u64);

fn breakerless() -> Stands {
    (breaker::Standing::Closed, false, None, None, 0)
}
