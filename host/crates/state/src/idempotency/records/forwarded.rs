//! The methods of [`super::Records`] that a test double of a store passes on unchanged.

/// Passes calls on to the field `records`. The test double writes `begin`, `arrive`, `keep_alive` and other methods that it changes; its
/// file imports the types.
#[macro_export]
macro_rules! forwarded {
    () => {
        fn sent(&self, id: RecordId, fence: FencingToken, intent: Option<Arc<Intent>>) -> Reply<'_, ()> {
            self.records.sent(id, fence, intent)
        }
        fn finish(&self, id: RecordId, fence: FencingToken, stored: Stored) -> Reply<'_, ()> {
            self.records.finish(id, fence, stored)
        }
        fn release(&self, id: RecordId, fence: FencingToken) -> Reply<'_, ()> {
            self.records.release(id, fence)
        }
        fn abandon_record(&self, id: RecordId, fence: FencingToken, leaving: Leaving) {
            self.records.abandon_record(id, fence, leaving);
        }
        fn record_unknown(&self, id: RecordId, opening: BeginRequest, leaving: Leaving) {
            self.records.record_unknown(id, opening, leaving);
        }
        fn recheck_orphan(&self, ticket: Ticket) -> Reply<'_, Option<RecordId>> {
            self.records.recheck_orphan(ticket)
        }
        fn abandon(&self, ticket: Ticket) {
            self.records.abandon(ticket);
        }
        fn answered(&self, ticket: Ticket, forget: bool) {
            self.records.answered(ticket, forget);
        }
        fn claim(&self, name: ClaimName, owner: ClaimOwner, keep: Duration) -> Reply<'_, Claim> {
            self.records.claim(name, owner, keep)
        }
        fn claimant(&self, name: ClaimName, owner: ClaimOwner) -> Reply<'_, Claimant> {
            self.records.claimant(name, owner)
        }
        fn lock_fingerprint(&self, fingerprint: Fingerprint) -> Reply<'static, FingerprintLock> {
            self.records.lock_fingerprint(fingerprint)
        }
        fn unsettled(&self, limit: usize) -> Reply<'_, Vec<Unsettled>> {
            self.records.unsettled(limit)
        }
        fn unsettled_one(&self, id: RecordId) -> Reply<'_, Option<Unsettled>> {
            self.records.unsettled_one(id)
        }
        fn due(&self, limit: usize) -> Reply<'_, Vec<RecordId>> {
            self.records.due(limit)
        }
        fn postpone(&self, id: RecordId, wait: Duration, longest_age: Duration) -> Reply<'_, Postponed> {
            self.records.postpone(id, wait, longest_age)
        }
        fn take(&self, id: RecordId, lease: Duration) -> Reply<'_, Option<Arc<Intent>>> {
            self.records.take(id, lease)
        }
        fn status(&self, id: RecordId) -> Reply<'_, Option<RecordStatus>> {
            self.records.status(id)
        }
        fn resolve(&self, id: RecordId, resolution: Resolution) -> Reply<'_, Resolved> {
            self.records.resolve(id, resolution)
        }
    };
}

pub use crate::forwarded;
