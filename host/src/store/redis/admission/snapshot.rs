//! What this host knows of a group between two steps, and what follows from it.

use super::{
    STALE, Shared,
    prefetched::{Leased, lot},
    scripts::{Beaten, Frame, ProbeTicket, SavedUp},
    shared_breaker::{Fleet, State},
};
use crate::{
    clock::{Timestamp, micros},
    rate_limit::Quota,
    state::group::Settings,
};
use std::{sync::Arc, time::Duration};

/// What this host knows of the group.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) settings: Settings,
    pub(super) frame: Arc<Frame>,
    pub(super) fleet: Fleet,
    pub(super) saved_up: SavedUp,
    pub(super) leased: Leased,
    /// The last beat's answer, and when it came. None: this host has never learned its share.
    pub(super) beaten: Option<(Beaten, Timestamp)>,
    /// The number of the last lifted pause, once it is known.
    pub(super) lifted: Option<u64>,
}

impl Known {
    pub(super) fn new(settings: Settings, frame: Arc<Frame>) -> Self {
        let (fleet, saved_up, leased) = (Fleet::default(), SavedUp::default(), Leased::default());
        Self { settings, frame, fleet, saved_up, leased, beaten: None, lifted: None }
    }

    /// Whether this host's own breaker decides beside the fleet's. Not where Python workers share the fleet's: a worker and a
    /// dashboard read there how it stands, and so does Triage. An own row of failures would not end with a worker's success.
    pub(super) fn counts_by_itself(&self) -> bool {
        self.fleet.is_closed() && self.settings.pybreaker.is_none()
    }

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
    pub(super) fn take_leased(&mut self, now: Timestamp) -> Option<Shared> {
        if self.settings.breaker.is_none() && self.settings.limits.is_empty() {
            self.saved_up.firsts = self.saved_up.firsts.saturating_add(1);
            return Some(Shared::leased(None));
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
            Some(ProbeTicket { epoch: epoch.clone(), lease: None })
        } else {
            None
        };
        if !(self.settings.limits.is_empty() || self.leased.take(now)) {
            return None;
        }
        self.saved_up.firsts = self.saved_up.firsts.saturating_add(1);
        Some(Shared::leased(ticket))
    }

    /// Successes and first attempts since the last step, which takes them along.
    pub(super) fn take_saved_up(&mut self) -> SavedUp {
        let epoch = self.saved_up.epoch.clone();
        std::mem::replace(&mut self.saved_up, SavedUp { epoch, ..SavedUp::default() })
    }

    pub(super) fn save_up(&mut self, ticket: &ProbeTicket) {
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
    pub(super) fn stands(&self, ticket: Option<&ProbeTicket>) -> (bool, State) {
        let same = ticket.is_none_or(|ticket| self.fleet.epoch().is_none_or(|epoch| *epoch == ticket.epoch));
        (same, self.fleet.state().unwrap_or(State::Closed))
    }

    /// Notes the number of the last lifted pause, as a message or a step tells it. Whether pauses that are known end: not those of
    /// a later one.
    pub(super) fn told_of_lift(&mut self, mark: u64) -> bool {
        let ends = self.lifted.is_none_or(|before| mark >= before);
        if ends {
            self.end_pause(mark);
        }
        ends
    }

    /// The same as read with a beat: whether pauses that are known end, and whether the pause that was read with it counts. A lower
    /// number is an answer that a message has overtaken, or that of a server that has lost its data.
    pub(super) fn read_lift(&mut self, mark: u64) -> (bool, bool) {
        let (ends, counts) = self.lifted.map_or((false, true), |before| (mark > before, mark >= before));
        if ends {
            self.end_pause(mark);
        }
        self.lifted = Some(mark);
        (ends, counts)
    }

    fn end_pause(&mut self, mark: u64) {
        self.lifted = Some(mark);
        // Places that were leased before are void.
        self.leased = Leased::default();
        if let Some((beaten, _)) = &mut self.beaten {
            beaten.pause = Duration::ZERO;
        }
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
