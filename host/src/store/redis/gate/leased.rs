//! Places taken ahead: endpoints that may lease them pass most attempts without asking anybody.

use super::{
    Known, STALE,
    fleet::State,
    steps::{SavedUp, Ticket},
};
use crate::{
    clock::{Timestamp, micros},
    gate::Settings,
    rate_limit::Quota,
};
use std::time::Duration;

/// What a host leases at once: its part of so much time.
const AHEAD: Duration = Duration::from_millis(100);
/// Places that are not used by then are forfeited, so that few are outstanding.
const KEPT: Duration = Duration::from_millis(500);
/// Most places at once.
const MOST: u64 = 1_000;

/// Places that this host has leased.
#[derive(Debug, Default)]
pub(super) struct Leased {
    places: u32,
    until: Timestamp,
}

impl Leased {
    pub(super) fn add(&mut self, places: u32, now: Timestamp) {
        if places > 0 {
            let left = if now < self.until { self.places } else { 0 };
            *self = Self { places: left.saturating_add(places), until: now.after(KEPT) };
        }
    }

    pub(super) fn give_back(&mut self) {
        self.places = self.places.saturating_add(1);
    }

    fn take(&mut self, now: Timestamp) -> bool {
        let has_some = now < self.until && self.places > 0;
        if has_some {
            self.places -= 1;
        }
        has_some
    }
}

/// How many places one of `live` hosts leases at once: its part of a tenth of a second. Limits too small for two places are strict.
pub(super) fn lot(quota: &Quota, live: u32) -> u32 {
    let in_time = AHEAD.as_micros() / quota.interval().as_micros().max(1);
    let part = u64::try_from(in_time).unwrap_or(MOST).min(quota.burst.get().into()) / u64::from(live.max(1));
    if part < 2 { 0 } else { u32::try_from(part.min(MOST)).unwrap_or(0) }
}

impl Known {
    /// How many places to lease with the next step.
    pub(super) fn lot(&self) -> u32 {
        let Some((beaten, _)) = self.beaten.as_ref().filter(|_| self.settings.leased) else { return 0 };
        let lots = self.settings.limits.iter().map(|quota| lot(quota, beaten.live));
        lots.min().unwrap_or(0)
    }

    /// Of each limit.
    pub(super) fn intervals_us(&self) -> Vec<u64> {
        self.settings.limits.iter().map(|quota| micros(quota.interval())).collect()
    }

    /// A leased place and what goes with it, where nothing needs to be asked.
    #[allow(clippy::option_option)]
    pub(super) fn take_leased(&mut self, now: Timestamp) -> Option<Option<Ticket>> {
        if self.settings.breaker.is_none() && self.settings.limits.is_empty() {
            self.saved_up.firsts = self.saved_up.firsts.saturating_add(1);
            return Some(None);
        }
        let fresh = self.beaten.as_ref().is_some_and(|(_, at)| now.since(*at) < STALE);
        if !self.settings.leased || !fresh {
            return None;
        }
        let ticket = if self.settings.breaker.is_some() {
            let (epoch, state) = self.fleet.epoch().zip(self.fleet.state())?;
            if state != State::Closed {
                return None;
            }
            Some(Ticket { epoch: epoch.clone(), lease: None })
        } else {
            None
        };
        if !(self.settings.limits.is_empty() || self.leased.take(now)) {
            return None;
        }
        self.saved_up.firsts = self.saved_up.firsts.saturating_add(1);
        Some(ticket)
    }

    /// Successes and first attempts since the last step, which takes them along.
    pub(super) fn take_saved_up(&mut self) -> SavedUp {
        let epoch = self.saved_up.epoch.clone();
        std::mem::replace(&mut self.saved_up, SavedUp { epoch, ..SavedUp::default() })
    }

    pub(super) fn save_up(&mut self, ticket: &Ticket) {
        // One that comes after its epoch counts for nothing, and takes nothing from those that count.
        if self.fleet.epoch().is_some_and(|epoch| *epoch != ticket.epoch) {
            return;
        }
        if self.saved_up.epoch != ticket.epoch {
            self.saved_up.epoch = ticket.epoch.clone();
            self.saved_up.successes = 0;
        }
        self.saved_up.successes = self.saved_up.successes.saturating_add(1);
    }

    /// Whether the breaker still stands as when a ticket was given, and how it stands.
    pub(super) fn stands(&self, ticket: Option<&Ticket>) -> (bool, State) {
        let same = ticket.is_none_or(|ticket| self.fleet.epoch().is_none_or(|epoch| *epoch == ticket.epoch));
        (same, self.fleet.state().unwrap_or(State::Closed))
    }

    /// What this host may do alone: its part of the fleet's limits.
    pub(super) fn share(&self) -> Settings {
        let live = self.beaten.as_ref().map_or(1, |(beaten, _)| beaten.live.max(1));
        let part = |quota: &Quota| Quota {
            period: quota.period.saturating_mul(live),
            burst: (quota.burst.get() / live).try_into().unwrap_or(std::num::NonZeroU32::MIN),
            ..*quota
        };
        let limits = self.settings.limits.iter().map(part).collect();
        Settings { limits, ..self.settings.clone() }
    }
}
