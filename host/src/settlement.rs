//! Settling goes on after the deadline: a write whose caller got `effect-unknown` is verified in the background, by its policy
//! and within the limits of the endpoint that is asked, until its effect is known or too much time has passed.
//!
//! ```text
//! record: due --take--> begin (lock, fence) --> ask the policy, the upstream --> applied:     finish, replayed from now on
//!          ^                                                                        |--> not applied: release, the key is free
//!          |                                                                        `--> unknown: leave until the next time
//!          `-----------------------------------------------------------------------------'
//! ```
//!
//! The store is the schedule: a record carries the time of its next verification, one host of a fleet takes it, and a host that
//! dies leaves it due when its lock runs out. A verification never sends the write. It holds a record only while it asks, so that a
//! caller that comes back waits a second at most.

mod notify;
mod schedule;

pub use notify::{Counts, NotifyError, SIGNATURE, Target};
pub(crate) use schedule::Schedule;

use crate::{
    clock::Clock,
    idempotency::RecordId,
    pipeline::{Host, Verified},
    policy::contract::Class,
    telemetry::Events,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use notify::{Notice, Notifier};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};

/// How unknown writes are settled in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether they are. Default true.
    pub enabled: bool,
    /// How long a write is verified after its `commit-within`. Default 1 h: longer than most outages of an upstream.
    pub margin: Duration,
    /// Between two lists of due writes, and the shortest time between two verifications of one. Default 2 s: with a fleet, a
    /// write of a host that died waits no longer for another one.
    pub interval: Duration,
    /// Writes that one host verifies at once. Default 8: verifications are reads, and the limits of their endpoint hold.
    pub concurrency: usize,
    /// The most of a request's body that is kept for its verification; a write of which the policy reads more is not verified.
    /// Default 64 KiB.
    pub max_request_bytes: usize,
    /// Who is told of settled writes. Default nobody.
    pub notify: Option<Target>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            margin: Duration::from_hours(1),
            interval: Duration::from_secs(2),
            concurrency: 8,
            max_request_bytes: 64 << 10,
            notify: None,
        }
    }
}

/// Every class, in the order of the counters.
const CLASSES: [Class; 6] =
    [Class::Applied, Class::AlreadyApplied, Class::NotApplied, Class::Throttled, Class::Unknown, Class::Rejected];

/// What the workers of a host share of it.
#[derive(Debug)]
pub(crate) struct Settlement {
    pub(crate) settings: Settings,
    clock: Clock,
    events: Arc<Events>,
    /// A write was left unknown.
    left: Notify,
    settled: [AtomicU64; CLASSES.len()],
    notifier: Option<Notifier>,
}

impl Settlement {
    /// # Errors
    /// [`NotifyError`] where the receiver cannot be told as it is configured.
    pub(crate) fn new(settings: &Settings, clock: Clock, events: Arc<Events>) -> Result<Self, NotifyError> {
        let notifier = settings.notify.as_ref().map(|target| Notifier::new(target, clock)).transpose()?;
        let settled = std::array::from_fn(|_| AtomicU64::new(0));
        Ok(Self { settings: settings.clone(), clock, events, left: Notify::new(), settled, notifier })
    }

    /// A write of this host was left unknown: it is verified at once.
    pub(crate) fn wake(&self) {
        self.left.notify_one();
    }

    /// Settled writes by class; `unknown`: those that no host verifies any more.
    pub(crate) fn counts(&self) -> [(&'static str, u64); CLASSES.len()] {
        std::array::from_fn(|index| (CLASSES[index].name(), self.settled[index].load(Relaxed)))
    }

    /// What became of the messages.
    pub(crate) fn notices(&self) -> Counts {
        self.notifier.as_ref().map(Notifier::counts).unwrap_or_default()
    }

    fn note(&self, record: RecordId, verified: Verified) {
        let Verified::Settled { upstream, endpoint, class } = verified else { return };
        if let Some(place) = CLASSES.iter().position(|own| *own == class) {
            self.settled[place].fetch_add(1, Relaxed);
        }
        let (class_name, subject) = (class.name(), format!("{upstream}/{endpoint}"));
        if class == Class::Unknown {
            tracing::warn!(%record, %upstream, %endpoint, "a write stays unknown: it is not verified any more");
            let text = format!("record {record} stays unknown; settle it: triage records resolve {record}");
            self.events.note("write-unsettled", &subject, text);
        } else {
            tracing::info!(%record, %upstream, %endpoint, class = class_name, "an unknown write was settled in the background");
            self.events.note("write-settled", &subject, format!("record {record}: {class_name}"));
        }
        if let Some(notifier) = &self.notifier {
            notifier.queue(Notice { record, upstream, endpoint, class, settled_unix_ms: self.clock.unix_ms() });
        }
    }
}

/// Whether settling can start as it is configured.
///
/// # Errors
/// [`NotifyError`].
pub(crate) fn check(settings: &Settings) -> Result<(), NotifyError> {
    settings.notify.as_ref().map_or(Ok(()), notify::check)
}

impl Host {
    /// Settles unknown writes in the background, and tells of them. Never ends; the server runs it on one of its workers, a
    /// program that uses the host as a library on a task of its own. Dropping it leaves what it was verifying to the next run or
    /// to another host.
    pub async fn settle_writes(&self) {
        let settlement = &self.shared.settlement;
        let told = async {
            match &settlement.notifier {
                Some(notifier) => notifier.run().await,
                None => std::future::pending().await,
            }
        };
        let verified =
            async { if settlement.settings.enabled { self.verify_due().await } else { std::future::pending().await } };
        tokio::join!(verified, told);
    }

    /// Writes that are due; none while the store does not answer.
    async fn due(&self, limit: usize) -> Vec<RecordId> {
        let due = self.shared.records.due(limit).await;
        due.inspect_err(|error| tracing::debug!(%error, "due writes could not be listed")).unwrap_or_default()
    }

    async fn verify_due(&self) {
        let settlement = &self.shared.settlement;
        let Settings { concurrency, interval, .. } = settlement.settings;
        let shared = crate::pipeline::SharedVerifications::default();
        let mut under_way: HashSet<RecordId> = HashSet::new();
        let mut running = FuturesUnordered::new();
        loop {
            let is_full = running.len() >= concurrency;
            // As many as there are places, and as many again that may be this host's own under way.
            let wanted = 2 * concurrency;
            let due = if is_full { Vec::new() } else { self.due(wanted).await };
            let may_be_more = is_full || due.len() == wanted;
            for id in due {
                if running.len() < concurrency && under_way.insert(id) {
                    let shared = &shared;
                    running.push(async move { (id, self.verify(id, shared).await) });
                }
            }
            // A place that is free again takes the next one at once, as long as there are more.
            let mut wait = std::pin::pin!(sleep(interval));
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = settlement.left.notified() => break,
                    Some((id, verified)) = running.next() => {
                        under_way.remove(&id);
                        settlement.note(id, verified);
                        if may_be_more && running.len() < concurrency {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        config::settings::{Secret, TokenSource},
        store::memory::records::tests::id,
    };

    #[test]
    fn every_end_is_counted_told_and_queued_once() {
        let key = Some(TokenSource::Environment(Secret::new("0123456789abcdef")));
        let target = Target { url: "http://ops.example/hook".parse().unwrap(), key };
        let settings = Settings { notify: Some(target), ..Settings::default() };
        let events = Arc::new(Events::new(Clock::anchored(5)));
        let settlement = Settlement::new(&settings, Clock::anchored(5), Arc::clone(&events)).unwrap();
        let settled = |class| Verified::Settled { upstream: "up".to_owned(), endpoint: "create".to_owned(), class };
        settlement.note(id(1), Verified::Open);
        for class in [Class::AlreadyApplied, Class::NotApplied, Class::NotApplied, Class::Unknown] {
            settlement.note(id(1), settled(class));
        }
        let counted: Vec<_> = settlement.counts().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("already-applied", 1), ("not-applied", 2), ("unknown", 1)]);
        let kinds: Vec<_> = events.after(0).iter().map(|event| event.kind).collect();
        assert_eq!(kinds, ["write-settled", "write-settled", "write-settled", "write-unsettled"]);
        assert!(events.after(0)[3].text.contains(&format!("triage records resolve {}", id(1))));
        assert_eq!(settlement.notifier.as_ref().unwrap().waiting(), 4);
    }
}
