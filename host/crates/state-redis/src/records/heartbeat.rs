//! This host's heartbeat, in each part with records of this host. If it stops, the host's locks end.
//!
//! Scripts that begin a record or mark a send renew it too, so that only longer requests cost an extra call.

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

/// Between two heartbeats: the lease outlasts two failed ones.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(4);
/// Between a failed heartbeat and the next one.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The host's id and its leases, one for each part.
#[derive(Debug)]
pub(super) struct Heartbeat {
    pub(super) host: HostId,
    parts: Vec<Arc<HeartbeatLease>>,
}

impl Heartbeat {
    pub(super) fn new(host: HostId) -> Self {
        Self { host, parts: (0..scripts::PARTS).map(|_| Arc::default()).collect() }
    }

    /// Records that a script call sent at `asked` has renewed the lease in the part of this record.
    pub(super) fn renewed(&self, inner: &Inner, id: RecordId, asked: Instant) -> Option<Generation> {
        self.renewed_in(inner, scripts::part_of(id), asked)
    }

    /// The lease for a record that was begun by a call sent at `asked`. The lease runs from that time: a process that was suspended
    /// since then gets an expired one.
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

/// Renews the leases that are in use, as long as the records exist.
pub(super) async fn renew(records: Weak<Inner>) {
    let mut wait = HEARTBEAT_INTERVAL;
    loop {
        sleep(wait).await;
        let Some(inner) = records.upgrade() else { return };
        let ticks = inner.heartbeat.needed().map(|part| inner.send_heartbeat(part));
        let all = join_all(ticks).await.into_iter().all(|arrived| arrived);
        wait = if all { HEARTBEAT_INTERVAL } else { RETRY_INTERVAL };
    }
}

impl Inner {
    async fn send_heartbeat(&self, part: u8) -> bool {
        let asked = Instant::now();
        match self.run(&scripts::heartbeat(self.keys(), part, self.heartbeat.host)).await {
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
