//! The owner's side of idempotency: what a store must do ([`records`]), what an owner has in hand while it works ([`record_guard`]), and
//! the entry of a request without a key ([`entry`]). The transitions are in [`triage_core::idempotency`].

pub mod entry;
pub mod record_guard;
pub mod records;

pub use entry::{Arrived, Arriving, Entry, Ownership, Ticket};
pub use record_guard::{BeginOutcome, RecordGuard, SendLease, begin};
pub use records::{
    Claim, ClaimName, ClaimOwner, Claimant, EntryTerm, FingerprintLock, RecordError, Records, Renewed, Resolution,
    Resolved, StoreBegin, Unsettled,
};
pub use triage_core::idempotency::*;
