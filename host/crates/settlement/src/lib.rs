//! Settles unknown writes in the background. If a caller got `effect-unknown` at its deadline, the write's policy verifies it, within the
//! limits of the endpoint that is asked, until the effect is known or the margin is over.
//!
//! ```text
//! record: due --take--> begin (lock, fence) --> ask the policy, the upstream --> applied:     finish, replayed from now on
//!          ^                                                                        |--> not applied: release, the key is free
//!          |                                                                        `--> unknown: leave until the next time
//!          `-----------------------------------------------------------------------------'
//! ```
//!
//! The store holds the schedule: a record carries the time of its next verification, and one host of a fleet takes it. If that host dies,
//! the record is due again when its lock expires. A verification never sends the write. It holds a record only while it asks, so that a
//! returning caller waits for a second at most.

use triage_bounded_file as bounded_file;
use triage_core::{clock, contract, idempotency, secret};
#[cfg(test)]
use triage_state as state;
use triage_telemetry as telemetry;
use triage_upstream as upstream;

mod notify;
mod schedule;

pub use notify::{Counts, NotifyError, SIGNATURE, Target};
pub use schedule::Schedule;

use crate::{clock::Clock, contract::Class, idempotency::RecordId, telemetry::Events};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use notify::{Notice, Notifier};
use std::{
    collections::HashSet,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use strum::VariantNames as _;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

/// The shortest time between two lists of due writes, however often a write is left unknown: a list asks each shard of the store.
const MIN_LIST_INTERVAL: Duration = Duration::from_millis(100);

/// How unknown writes are settled in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Whether to settle in the background. Default true.
    pub enabled: bool,
    /// How long verifications go on after `commit-within`. Default 1 h: longer than most outages of an upstream.
    pub margin: Duration,
    /// The time between two lists of due writes, and the shortest time between two verifications of one write. Default 2 s: in a fleet,
    /// another host takes over a dead host's write within this time.
    pub interval: Duration,
    /// Writes that one host verifies at once. Default 8: verifications are reads, and the limits of their endpoint apply.
    pub concurrency: usize,
    /// The most body bytes that are kept for a verification. A write is not verified if its policy reads more. Default 64 KiB.
    pub max_request_bytes: usize,
    /// The receiver of notices about settled writes. Default none.
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

/// The settlement state that a host's workers share.
#[derive(Debug)]
pub struct Settlement {
    /// The settings with which this state was created.
    pub settings: Settings,
    clock: Clock,
    events: Arc<Events>,
    /// Notified when a write is left unknown.
    left: Notify,
    settled: [AtomicU64; Class::VARIANTS.len()],
    notifier: Option<Notifier>,
}

impl Settlement {
    /// # Errors
    /// [`NotifyError`] if the key or the URL of the receiver cannot be used.
    pub fn new(settings: &Settings, clock: Clock, events: Arc<Events>) -> Result<Self, NotifyError> {
        let notifier = settings.notify.as_ref().map(|target| Notifier::new(target, clock)).transpose()?;
        let settled = std::array::from_fn(|_| AtomicU64::new(0));
        Ok(Self { settings: settings.clone(), clock, events, left: Notify::new(), settled, notifier })
    }

    /// Reports that this host has left a write unknown: it is verified at once.
    pub fn wake(&self) {
        self.left.notify_one();
    }

    /// Settled writes by class; `unknown` counts writes that are no longer verified.
    pub fn counts(&self) -> [(&'static str, u64); Class::VARIANTS.len()] {
        std::array::from_fn(|index| (Class::VARIANTS[index], self.settled[index].load(Relaxed)))
    }

    /// Counts of sent notices by their result.
    pub fn notices(&self) -> Counts {
        self.notifier.as_ref().map(Notifier::counts).unwrap_or_default()
    }

    fn note(&self, record: RecordId, verified: VerificationResult) {
        let VerificationResult::Settled { upstream, endpoint, class } = verified else { return };
        self.settled[class as usize].fetch_add(1, Relaxed);
        let (class_name, subject) = (class.name(), format!("{upstream}/{endpoint}"));
        if class == Class::Unknown {
            tracing::warn!(%record, %upstream, %endpoint, "a write stays unknown: the host no longer verifies it");
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

/// Checks that settling can start as configured.
///
/// # Errors
/// [`NotifyError`].
pub fn check(settings: &Settings) -> Result<(), NotifyError> {
    settings.notify.as_ref().map_or(Ok(()), notify::check)
}

/// The result of a verification.
#[derive(Debug)]
pub enum VerificationResult {
    /// The effect is known, or with `unknown` the write is no longer verified.
    Settled {
        /// The name of its upstream.
        upstream: String,
        /// The name of its endpoint.
        endpoint: String,
        /// Its effect.
        class: Class,
    },
    /// The write is verified again later, or another caller or host has its record.
    Open,
}

impl Settlement {
    /// Verifies the writes that `list` finds due if `settings.enabled`, and sends notices. Never ends.
    pub async fn run<L, V>(&self, list: impl Fn(usize) -> L, verify: impl Fn(RecordId) -> V)
    where
        L: Future<Output = Vec<RecordId>>,
        V: Future<Output = VerificationResult>,
    {
        let notices = async {
            match &self.notifier {
                Some(notifier) => notifier.run().await,
                None => pending().await,
            }
        };
        let verified =
            async { if self.settings.enabled { self.verify_due(list, verify).await } else { pending().await } };
        tokio::join!(verified, notices);
    }

    /// Repeatedly verifies the writes that `list` finds due. Verifications go on while the store lists.
    async fn verify_due<L, V>(&self, list: impl Fn(usize) -> L, verify: impl Fn(RecordId) -> V)
    where
        L: Future<Output = Vec<RecordId>>,
        V: Future<Output = VerificationResult>,
    {
        let Settings { concurrency, interval, .. } = self.settings;
        // Twice the concurrency, because the list may contain writes that this host is verifying now.
        let wanted = 2 * concurrency;
        let mut under_way: HashSet<RecordId> = HashSet::new();
        let mut running = FuturesUnordered::new();
        let mut next_list = Instant::now();
        loop {
            let is_full = running.len() >= concurrency;
            let (list, at) = (&list, next_list);
            let listing = async move {
                if is_full {
                    return Vec::new();
                }
                sleep_until(at).await;
                list(wanted).await
            };
            let mut listing = std::pin::pin!(listing);
            let due = loop {
                tokio::select! {
                    due = &mut listing => break due,
                    Some((id, verified)) = running.next() => {
                        under_way.remove(&id);
                        self.note(id, verified);
                    }
                }
            };
            if !is_full {
                next_list = Instant::now() + MIN_LIST_INTERVAL;
            }
            let may_be_more = is_full || due.len() == wanted;
            for id in due {
                if running.len() < concurrency && under_way.insert(id) {
                    let verified = verify(id);
                    running.push(async move { (id, verified.await) });
                }
            }
            // After a verification ends, list again at once as long as there may be more.
            let mut wait = std::pin::pin!(sleep(interval));
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = self.left.notified() => break,
                    Some((id, verified)) = running.next() => {
                        under_way.remove(&id);
                        self.note(id, verified);
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
        secret::{Secret, TokenSource},
        state::fixtures::id,
    };

    #[test]
    fn each_settlement_makes_one_count_one_event_and_one_notice() {
        let key = Some(TokenSource::Environment(Secret::new("0123456789abcdef")));
        let target = Target { url: "http://ops.example/hook".parse().unwrap(), key };
        let settings = Settings { notify: Some(target), ..Settings::default() };
        let events = Arc::new(Events::new(Clock::anchored(5)));
        let settlement = Settlement::new(&settings, Clock::anchored(5), Arc::clone(&events)).unwrap();
        let settled =
            |class| VerificationResult::Settled { upstream: "up".to_owned(), endpoint: "create".to_owned(), class };
        settlement.note(id(1), VerificationResult::Open);
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

    fn settlement(settings: Settings) -> Settlement {
        Settlement::new(&settings, Clock::system(), Arc::new(Events::new(Clock::system()))).unwrap()
    }

    /// The store is not asked for a list each time a write is left unknown, but the first write is verified at once.
    #[tokio::test(start_paused = true)]
    async fn lists_keep_a_distance() {
        let settlement = settlement(Settings::default());
        let lists = std::cell::Cell::new(0_u32);
        let list = |_| {
            lists.set(lists.get() + 1);
            std::future::ready(Vec::new())
        };
        let leaving = async {
            sleep(Duration::from_millis(500)).await;
            assert_eq!(lists.get(), 1, "the list at the start");
            settlement.wake();
            sleep(Duration::from_millis(1)).await;
            assert_eq!(lists.get(), 2, "the first write that is left");
            for _ in 0..1000 {
                settlement.wake();
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = settlement.verify_due(list, |_| std::future::ready(VerificationResult::Open)) => {}
            () = leaving => {}
        }
        assert!((10..=12).contains(&lists.get()), "{} lists in a second", lists.get());
    }

    /// A hanging store must not delay running verifications, since they hold their records meanwhile.
    #[tokio::test(start_paused = true)]
    async fn verifications_go_on_while_the_store_lists() {
        let settlement = settlement(Settings::default());
        let lists = std::cell::Cell::new(0_u32);
        let list = |_| {
            lists.set(lists.get() + 1);
            let is_first = lists.get() == 1;
            async move { if is_first { vec![id(1)] } else { pending().await } }
        };
        let verify = |_| async {
            sleep(Duration::from_secs(5)).await;
            VerificationResult::Settled {
                upstream: "up".to_owned(),
                endpoint: "create".to_owned(),
                class: Class::Applied,
            }
        };
        tokio::select! {
            () = settlement.verify_due(list, verify) => {}
            () = sleep(Duration::from_secs(6)) => {}
        }
        assert_eq!(lists.get(), 2, "the second list hangs");
        assert_eq!(settlement.counts()[0], ("applied", 1));
    }
}
