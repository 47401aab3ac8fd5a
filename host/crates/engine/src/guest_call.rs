//! Calls into guests, in two ways: `SyncTier` makes plain calls for `Tier::Sync`; `WasiTier` makes calls on a stack of their own for
//! `Tier::Wasi`, whose guests may wait.

use super::{
    bindings::{Policy, PolicyPre, triage::policy::types as wit, waiting},
    cpu_budget::{CpuBudget, FIRST_EPOCHS},
    store_data::{Bounds, StoreData},
    wasi::{LogBudget, Wasi},
};
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use wasmtime::{Result, Store, component::InstancePre};
use wasmtime_wasi::runtime::with_ambient_tokio_runtime;

/// The most bytes that a guest may return from one call: a response of 1 MiB and its headers.
const MAX_LIFTED_BYTES: usize = 2 << 20;

/// The limits of `Tier::Sync`: a policy without an interpreter reads a few hundred KiB and keeps nothing.
pub(super) const SYNC_BOUNDS: Bounds =
    Bounds { memory_bytes: 16 << 20, tables: 4, table_elements: 10_000, core_instances: 4 };
/// The limits of `Tier::Wasi`: Python starts with 13 MB and a hundred core instances.
pub(super) const WASI_BOUNDS: Bounds =
    Bounds { memory_bytes: 64 << 20, tables: 16, table_elements: 40_000, core_instances: 256 };

/// Starts a call's time anew.
pub(super) fn allow<W>(store: &mut Store<StoreData<W>>, cap_ms: u64) {
    store.data_mut().time = CpuBudget::new(cap_ms);
    store.set_epoch_deadline(FIRST_EPOCHS);
    store.set_hostcall_fuel(MAX_LIFTED_BYTES);
}

/// Instantiates and calls the components of one tier.
pub(super) trait GuestCall: 'static {
    type Wasi: 'static;
    type Pre: Send + Sync;
    type Guest: Send;

    fn prepared(linked: InstancePre<StoreData<Self::Wasi>>) -> Result<Self::Pre>;
    fn caps(cap_ms: u64, log: &Arc<LogBudget>) -> StoreData<Self::Wasi>;
    fn instantiate(pre: &Self::Pre, store: &mut Store<StoreData<Self::Wasi>>) -> Result<Self::Guest>;
    fn describe(guest: &Self::Guest, store: &mut Store<StoreData<Self::Wasi>>) -> Result<wit::Description>;
    fn configure(
        guest: &Self::Guest,
        store: &mut Store<StoreData<Self::Wasi>>,
        settings: &str,
    ) -> Result<Result<(), String>>;
    fn decide(
        guest: &Self::Guest,
        store: &mut Store<StoreData<Self::Wasi>>,
        attempt: wit::Attempt<'_>,
        outcome: wit::Outcome<'_>,
    ) -> Result<wit::Verdict>;
}

/// Calls of `Tier::Sync`, whose guests import nothing.
#[derive(Debug)]
pub(super) struct SyncTier;

impl GuestCall for SyncTier {
    type Wasi = ();
    type Pre = PolicyPre<StoreData<()>>;
    type Guest = Policy;

    fn prepared(linked: InstancePre<StoreData<()>>) -> Result<Self::Pre> {
        PolicyPre::new(linked)
    }

    fn caps(cap_ms: u64, _log: &Arc<LogBudget>) -> StoreData<()> {
        StoreData::new(SYNC_BOUNDS, cap_ms, ())
    }

    fn instantiate(pre: &Self::Pre, store: &mut Store<StoreData<()>>) -> Result<Policy> {
        pre.instantiate(store)
    }

    fn describe(guest: &Policy, store: &mut Store<StoreData<()>>) -> Result<wit::Description> {
        guest.call_describe(store)
    }

    fn configure(guest: &Policy, store: &mut Store<StoreData<()>>, settings: &str) -> Result<Result<(), String>> {
        guest.call_configure(store, settings)
    }

    fn decide(
        guest: &Policy,
        store: &mut Store<StoreData<()>>,
        attempt: wit::Attempt<'_>,
        outcome: wit::Outcome<'_>,
    ) -> Result<wit::Verdict> {
        guest.call_decide(store, attempt, outcome)
    }
}

/// Calls of `Tier::Wasi`, whose guests have an interpreter or import WASI.
#[derive(Debug)]
pub(super) struct WasiTier;

/// The guest waited. Its WASI has no event that could end the wait, and a request would wait with it.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the guest waited; a policy must return at once")]
pub(super) struct Waited;

/// The most polls of one call. A guest that only checks whether an event is ready yields once for each check.
const MAX_POLLS: u32 = 16;

/// Runs a call that must not wait. A call that waits is abandoned.
fn at_once<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut call, mut context) = (pin!(call), Context::from_waker(Waker::noop()));
    // WASI's clocks need a tokio runtime, but some threads that load and test policies have none.
    with_ambient_tokio_runtime(|| {
        for _ in 0..MAX_POLLS {
            if let Poll::Ready(result) = call.as_mut().poll(&mut context) {
                return result;
            }
        }
        Err(wasmtime::Error::new(Waited))
    })
}

impl GuestCall for WasiTier {
    type Wasi = Wasi;
    type Pre = waiting::PolicyPre<StoreData<Wasi>>;
    type Guest = waiting::Policy;

    fn prepared(linked: InstancePre<StoreData<Wasi>>) -> Result<Self::Pre> {
        waiting::PolicyPre::new(linked)
    }

    fn caps(cap_ms: u64, log: &Arc<LogBudget>) -> StoreData<Wasi> {
        StoreData::new(WASI_BOUNDS, cap_ms, Wasi::empty(log))
    }

    fn instantiate(pre: &Self::Pre, store: &mut Store<StoreData<Wasi>>) -> Result<Self::Guest> {
        at_once(pre.instantiate_async(store))
    }

    fn describe(guest: &Self::Guest, store: &mut Store<StoreData<Wasi>>) -> Result<wit::Description> {
        at_once(guest.call_describe(store))
    }

    fn configure(
        guest: &Self::Guest,
        store: &mut Store<StoreData<Wasi>>,
        settings: &str,
    ) -> Result<Result<(), String>> {
        at_once(guest.call_configure(store, settings))
    }

    fn decide(
        guest: &Self::Guest,
        store: &mut Store<StoreData<Wasi>>,
        attempt: wit::Attempt<'_>,
        outcome: wit::Outcome<'_>,
    ) -> Result<wit::Verdict> {
        at_once(guest.call_decide(store, attempt, outcome))
    }
}
