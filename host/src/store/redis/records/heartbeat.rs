//! This host's heartbeat, in each part of the records where it holds one: a host that stops it has ended, and so have its locks.
//!
//! Steps that begin a record or mark a send renew it by the way, so that only records that are held for longer cost a step more.

use super::{Inner, scripts};
use crate::idempotency::{
    Generation, HeartbeatLease, HostLease, RecordId,
    record::{HOST_LEASE, HostId},
};
use futures_util::future::join_all;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Between two heartbeats: two may fail in a row.
const BEAT_INTERVAL: Duration = Duration::from_secs(4);
/// To the next one after one that did not arrive.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The host's leases, one for each part.
#[derive(Debug)]
pub(super) struct Heartbeat {
    pub(super) host: HostId,
    parts: Vec<Arc<HeartbeatLease>>,
}

impl Heartbeat {
    pub(super) fn new(host: HostId) -> Self {
        Self { host, parts: (0..scripts::PARTS).map(|_| Arc::default()).collect() }
    }

    /// Notes that a step for a record has renewed the lease of its part, which was asked for at `asked`.
    pub(super) fn renewed(&self, inner: &Inner, id: RecordId, asked: Instant) -> Option<Generation> {
        self.renewed_in(inner, scripts::part_of(id), asked)
    }

    /// The lease that a record needs which was begun by a step that was asked for at `asked`. The lease is as old as that step: a
    /// host that was stopped since then gets one that is over.
    pub(super) fn begun(&self, inner: &Inner, id: RecordId, asked: Instant) -> Option<HostLease> {
        let generation = self.renewed(inner, id, asked);
        self.parts.get(usize::from(scripts::part_of(id))).map(|lease| HostLease::new(lease, generation))
    }

    fn renewed_in(&self, inner: &Inner, part: u8, asked: Instant) -> Option<Generation> {
        let until = inner.clock.timestamp(asked).after(HOST_LEASE);
        self.parts.get(usize::from(part))?.renewed(until, || inner.clock.now())
    }

    pub(super) fn needed(&self) -> impl Iterator<Item = u8> {
        (0_u8..).zip(&self.parts).filter(|(_, lease)| lease.is_needed()).map(|(part, _)| part)
    }
}

/// Renews what is needed until the records are gone.
pub(super) async fn renew(records: Weak<Inner>) {
    let mut wait = BEAT_INTERVAL;
    loop {
        sleep(wait).await;
        let Some(inner) = records.upgrade() else { return };
        let beats = inner.heartbeat.needed().map(|part| inner.beat(part));
        let all = join_all(beats).await.into_iter().all(|arrived| arrived);
        wait = if all { BEAT_INTERVAL } else { RETRY_INTERVAL };
    }
}

impl Inner {
    async fn beat(&self, part: u8) -> bool {
        let asked = Instant::now();
        match self.run(&scripts::beat(self.keys(), part, self.heartbeat.host)).await {
            Ok(_) => {
                self.heartbeat.renewed_in(self, part, asked);
                true
            }
            Err(error) => {
                tracing::debug!(%error, "a heartbeat was not renewed");
                false
            }
        }
    }
}
