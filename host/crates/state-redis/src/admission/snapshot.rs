//! A host's copy of a group's state between two script calls.

use super::{
    MAX_HEARTBEAT_AGE, Shared,
    prefetched::{Leased, lot},
    scripts::{Frame, HeartbeatReply, ProbeTicket, SavedUp},
    shared_breaker::{Fleet, State},
};
use crate::{
    clock::{Timestamp, micros},
    group::Settings,
    rate_limit::Quota,
};
use std::{sync::Arc, time::Duration};

#[derive(Debug)]
pub(super) struct Known {
    pub(super) settings: Settings,
    pub(super) frame: Arc<Frame>,
    pub(super) fleet: Fleet,
    pub(super) saved_up: SavedUp,
    pub(super) leased: Leased,
    /// The last heartbeat's reply, and its time. `None`: this host does not know its share of the limits yet.
    pub(super) heartbeat: Option<(HeartbeatReply, Timestamp)>,
    /// The number of the last lifted pause, if known.
    pub(super) lifted: Option<u64>,
}

impl Known {
    pub(super) fn new(settings: Settings, frame: Arc<Frame>) -> Self {
        let (fleet, saved_up, leased) = (Fleet::default(), SavedUp::default(), Leased::default());
        Self { settings, frame, fleet, saved_up, leased, heartbeat: None, lifted: None }
    }

    /// Whether this host's own breaker decides beside the fleet's. Not if Python workers share the fleet's: workers and dashboards rely
    /// on that one alone, and a worker's success would not end this host's own row of failures.
    pub(super) fn counts_by_itself(&self) -> bool {
        self.fleet.is_closed() && self.settings.pybreaker.is_none()
    }

    /// Number of permits to prefetch with the next call.
    pub(super) fn lot(&self) -> u32 {
        let Some((heartbeat, _)) = self.heartbeat.as_ref().filter(|_| self.settings.leased) else { return 0 };
        let lots = self.settings.limits.iter().map(|quota| lot(quota, heartbeat.live));
        lots.min().unwrap_or(0)
    }

    /// Interval of each limit.
    pub(super) fn intervals_us(&self) -> Vec<u64> {
        self.settings.limits.iter().map(|quota| micros(quota.interval())).collect()
    }

    /// An admission without a script call: with a prefetched permit, or because the group has neither breaker nor limits.
    pub(super) fn take_leased(&mut self, now: Timestamp) -> Option<Shared> {
        if self.settings.breaker.is_none() && self.settings.limits.is_empty() {
            self.saved_up.firsts = self.saved_up.firsts.saturating_add(1);
            return Some(Shared::leased(None));
        }
        let fresh = self.heartbeat.as_ref().is_some_and(|(_, at)| now.since(*at) < MAX_HEARTBEAT_AGE);
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

    /// Takes the successes and first attempts since the last call, to report them with the next.
    pub(super) fn take_saved_up(&mut self) -> SavedUp {
        let epoch = self.saved_up.epoch.clone();
        std::mem::replace(&mut self.saved_up, SavedUp { epoch, ..SavedUp::default() })
    }

    pub(super) fn save_up(&mut self, ticket: &ProbeTicket) {
        // The epoch of this success is over. It must not reset the count of the present epoch.
        if self.fleet.epoch().is_some_and(|epoch| *epoch != ticket.epoch) {
            return;
        }
        if self.saved_up.epoch != ticket.epoch {
            self.saved_up.epoch = ticket.epoch.clone();
            self.saved_up.successes = 0;
        }
        self.saved_up.successes = self.saved_up.successes.saturating_add(1);
    }

    /// Whether the breaker's epoch is still that of the ticket, and the breaker's state.
    pub(super) fn stands(&self, ticket: Option<&ProbeTicket>) -> (bool, State) {
        let same = ticket.is_none_or(|ticket| self.fleet.epoch().is_none_or(|epoch| *epoch == ticket.epoch));
        (same, self.fleet.state().unwrap_or(State::Closed))
    }

    /// Notes the number of a lifted pause from a message or a reply. True: the known pause ends. False: it began after this lift.
    pub(super) fn note_lift(&mut self, mark: u64) -> bool {
        let ends = self.lifted.is_none_or(|before| mark >= before);
        if ends {
            self.end_pause(mark);
        }
        ends
    }

    /// The same for a heartbeat's reply. Returns whether the known pause ends, and whether the pause in the reply counts. A lower number
    /// is from a reply that a message has overtaken, or from a server that has lost its data.
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
        // The lift made all earlier reservations void.
        self.leased = Leased::default();
        if let Some((heartbeat, _)) = &mut self.heartbeat {
            heartbeat.pause = Duration::ZERO;
        }
    }

    /// Settings for this host alone: its share of the fleet's limits.
    pub(super) fn share(&self) -> Settings {
        let live = self.heartbeat.as_ref().map_or(1, |(heartbeat, _)| heartbeat.live.max(1));
        let part = |quota: &Quota| Quota {
            period: quota.period.saturating_mul(live),
            burst: (quota.burst.get() / live).try_into().unwrap_or(std::num::NonZeroU32::MIN),
            ..*quota
        };
        let limits = self.settings.limits.iter().map(part).collect();
        Settings { limits, ..self.settings.clone() }
    }
}
