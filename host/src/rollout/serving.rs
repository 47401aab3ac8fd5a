//! One upstream and the generation that serves it now.

use super::{Candidate, Conduct, Event, Judgement};
use crate::{
    clock::Timestamp,
    config::settings,
    policy::{Digest, Fault},
    service::Service,
};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

/// Events that are kept for operators.
const EVENTS: usize = 64;
/// Digests that are remembered as bad.
const QUARANTINED: usize = 1024;

/// Which of an upstream's two policies is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The one that serves.
    Live,
    /// The one that is tried beside it.
    Candidate,
}

/// An upstream in service.
#[derive(Debug)]
pub struct Serving {
    /// Its settings as configured, before a policy's proposals.
    pub settings: settings::Upstream,
    /// The policy that is tried beside the one that serves.
    pub candidate: Option<Candidate>,
    current: ArcSwap<Service>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// The number of the latest generation, whether it still serves or not.
    latest: u64,
    last_good: Option<Arc<Service>>,
    quarantined: HashSet<Digest>,
    events: VecDeque<Event>,
}

impl Ledger {
    fn note(&mut self, upstream: &str, event: Event) {
        match &event {
            Event::Installed { .. } | Event::Tried { .. } | Event::Good { .. } => {
                tracing::info!(upstream, "policy: {event}");
            }
            Event::Refused { .. } | Event::GivenUp { .. } | Event::RolledBack { .. } => {
                tracing::warn!(upstream, "policy: {event}");
            }
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl Serving {
    /// Serves the first generation. It came with the host's start and is trusted as good.
    pub fn new(settings: settings::Upstream, service: Service) -> Self {
        let first = Arc::new(service);
        let mut ledger = Ledger { latest: first.generation, last_good: Some(Arc::clone(&first)), ..Ledger::default() };
        // What came with the start is told only where the operator has something left to say.
        match installed(&first) {
            Event::Installed { ungranted, .. } if ungranted.is_empty() => {}
            event => ledger.note(&settings.name, event),
        }
        let candidate = settings.candidate.clone().map(Candidate::new);
        Self { settings, candidate, current: ArcSwap::new(first), ledger: Mutex::new(ledger) }
    }

    /// The generation that serves now.
    pub fn current(&self) -> Arc<Service> {
        self.current.load_full()
    }

    /// Puts a generation into service: one swap, between two requests.
    pub fn install(&self, next: Service) {
        let mut ledger = self.ledger.lock();
        ledger.latest += 1;
        let next = Arc::new(next.succeeding(&self.current.load(), ledger.latest));
        next.adopt();
        self.current.store(Arc::clone(&next));
        ledger.note(&self.settings.name, installed(&next));
    }

    /// The digest of what is in a slot.
    pub fn digest_in(&self, slot: Slot) -> Option<Digest> {
        match slot {
            Slot::Live => self.current.load().policy.digest(),
            Slot::Candidate => self.candidate.as_ref()?.current()?.policy.digest(),
        }
    }

    /// Puts what was staged for a slot there.
    pub fn put(&self, slot: Slot, next: Service) {
        match slot {
            Slot::Live => self.install(next),
            Slot::Candidate => self.try_out(next),
        }
    }

    /// Tries a component beside the one that serves, whose limits and breakers it shares and does not change.
    fn try_out(&self, next: Service) {
        let Some(candidate) = &self.candidate else { return };
        let mut ledger = self.ledger.lock();
        let current = self.current.load();
        let next = Arc::new(next.succeeding(&current, current.generation));
        let digest = next.policy.digest();
        candidate.put(Some(next));
        let share = candidate.settings.share_percent;
        let share_percent = (candidate.settings.mode == settings::Mode::Canary).then_some(share);
        ledger.note(&self.settings.name, Event::Tried { digest, share_percent });
    }

    /// Notes that a component was refused.
    pub fn refused(&self, event: Event) {
        self.ledger.lock().note(&self.settings.name, event);
    }

    /// Whether a component was rolled back here.
    pub fn is_quarantined(&self, digest: &Digest) -> bool {
        self.ledger.lock().quarantined.contains(digest)
    }

    /// What happened, the oldest first; the last 64.
    pub fn events(&self) -> Vec<Event> {
        self.ledger.lock().events.iter().cloned().collect()
    }

    /// Takes a decision of a generation into account, and rolls it back where it fails too often.
    pub fn decided(&self, service: &Arc<Service>, fault: Option<&Fault>, now: Timestamp) {
        let conduct = match fault {
            None => Conduct::Decided,
            Some(Fault::Overran { .. }) => Conduct::Overran,
            Some(_) => Conduct::Failed,
        };
        match service.probation.decided(conduct, now) {
            Judgement::Watched => {}
            Judgement::Good => {
                let mut ledger = self.ledger.lock();
                // A late request may still speak for a generation that was replaced meanwhile.
                if Arc::ptr_eq(service, &self.current.load()) {
                    ledger.last_good = Some(Arc::clone(service));
                    ledger.note(&self.settings.name, Event::Good { generation: service.generation });
                }
            }
            Judgement::Bad { faults, decisions } => {
                let last = fault.map(Fault::told).unwrap_or_default();
                self.roll_back(service, faults, decisions, last);
            }
        }
    }

    fn roll_back(&self, service: &Arc<Service>, faults: u32, decisions: u32, last: String) {
        let mut ledger = self.ledger.lock();
        let digest = service.policy.digest();
        if let Some(digest) = digest
            && ledger.quarantined.len() < QUARANTINED
        {
            ledger.quarantined.insert(digest);
        }
        // Requests that began in it end in it; the built-in policy decides for them.
        service.probation.suspend();
        if let Some(candidate) = self.candidate.as_ref().filter(|candidate| candidate.is(service)) {
            candidate.put(None);
            ledger.note(&self.settings.name, Event::GivenUp { digest, faults, decisions, last });
            return;
        }
        if !Arc::ptr_eq(service, &self.current.load()) {
            return;
        }
        let good = ledger.last_good.clone().filter(|good| !Arc::ptr_eq(good, service));
        if let Some(good) = &good {
            good.adopt();
            good.wakefulness.remember(&service.wakefulness);
            self.current.store(Arc::clone(good));
        }
        let to = good.map(|good| good.generation);
        let event = Event::RolledBack { generation: service.generation, digest, to, faults, decisions, last };
        ledger.note(&self.settings.name, event);
    }
}

/// The event of a generation that serves from now on.
fn installed(service: &Service) -> Event {
    let ungranted =
        service.endpoints.iter().filter(|endpoint| endpoint.described.commit_within.is_some() && !endpoint.granted);
    let key = |name: &str| format!("upstreams.{}.endpoints.{name}.settle", service.settings.name);
    Event::Installed {
        generation: service.generation,
        digest: service.policy.digest(),
        ungranted: ungranted.map(|endpoint| key(&endpoint.described.name)).collect(),
    }
}
