//! Placeholder.
use crate::{clock::Clock, idempotency::{records::*, record::*, stored::Stored, fingerprint::*}};
use std::time::Duration;
/// Placeholder.
#[derive(Debug)] pub struct MemoryRecords;
impl MemoryRecords { /// Placeholder.
 pub fn new(_clock: Clock, _most: usize) -> Self { Self } }
fn none<'a, T>() -> Reply<'a, T> { at_hand(Err(RecordError::Lost)) }
impl Records for MemoryRecords {
    fn begin(&self, _: RecordId, _: Opening) -> Reply<'_, Begin> { none() }
    fn sent(&self, _: RecordId, _: Fence) -> Reply<'_, ()> { none() }
    fn finish(&self, _: RecordId, _: Fence, _: Stored) -> Reply<'_, ()> { none() }
    fn release(&self, _: RecordId, _: Fence) -> Reply<'_, ()> { none() }
    fn leave(&self, _: RecordId, _: Fence, _: Option<Duration>) {}
    fn claim(&self, _: ClaimName, _: ClaimOwner, _: Duration) -> Reply<'_, Claim> { none() }
    fn turn(&self, _: Fingerprint) -> Reply<'static, Turn> { at_hand(Err(RecordError::Lost)) }
    fn unsettled(&self, _: usize) -> Reply<'_, Vec<Unsettled>> { none() }
    fn resolve(&self, _: RecordId, _: Resolution) -> Reply<'_, Resolved> { none() }
}
