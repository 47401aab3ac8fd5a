//! Instances of one component: creates them, calls them within their limits, and keeps them warm if the operator wants that.

use super::{
    Fault,
    contract::{Attempt, Description, Interest, Outcome, Verdict},
    convert::{self, InvalidDescription},
    engine::Engine,
    guest_call::{GuestCall, Waited, allow},
    load_error::{LOAD_MS, LoadError, LoadOptions},
    panic_text,
    store_data::StoreData,
    wasi::LogBudget,
};
use crate::clock;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use wasmtime::{Store, Trap, UpdateDeadline, component::InstancePre};

/// The limit of `decide`, in milliseconds of processor time.
const DECIDE_MS: u64 = 5;
/// The limit of a whole decision: instantiation, `configure`, `decide`, and clearing the instance. A guest that touches all of its memory
/// occupies the host's thread four times as long as its own call takes, through page faults and clearing.
const DECISION_MS: u64 = 10;
/// The number of calls that a reused instance serves before a fresh one replaces it.
const REUSED_CALLS: u32 = 10_000;
/// The most warm instances that `reused` isolation keeps.
const MAX_WARM: usize = 16;
/// The settings of a policy if the operator gives none.
const NO_SETTINGS: &str = "{}";

/// A linked component and its warm instances.
pub(super) struct Instances<W: GuestCall> {
    /// Holds the ticker too: without it no call could be stopped.
    engine: Engine,
    wasmtime: wasmtime::Engine,
    pre: W::Pre,
    settings: String,
    log: Arc<LogBudget>,
    warm: Option<Mutex<Vec<Instance<W>>>>,
}

struct Instance<W: GuestCall> {
    store: Store<StoreData<W::Wasi>>,
    guest: W::Guest,
    calls: u32,
}

impl<W: GuestCall> Instances<W> {
    pub(super) fn new(
        engine: &Engine,
        linked: InstancePre<StoreData<W::Wasi>>,
        loading: &LoadOptions,
        log: LogBudget,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            engine: engine.clone(),
            wasmtime: linked.engine().clone(),
            pre: W::prepared(linked).map_err(LoadError::World)?,
            settings: if loading.settings.is_empty() { NO_SETTINGS.to_owned() } else { loading.settings.clone() },
            log: Arc::new(log),
            warm: loading.reuse_instances.then(Mutex::default),
        })
    }

    pub(super) fn describe(&self) -> Result<Description, LoadError> {
        let failed = |call, error: wasmtime::Error, store: &Store<_>| match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => LoadError::Overran { call },
            _ => match panic_text::of(&error, store) {
                Some(panic) => LoadError::GuestPanicked { call, panic },
                None => LoadError::Call { call, source: panic_text::without_dump(error) },
            },
        };
        let _running = self.engine.runs();
        let mut store = self.store(LOAD_MS);
        let guest = W::instantiate(&self.pre, &mut store).map_err(|error| failed("start", error, &store))?;
        let described = W::describe(&guest, &mut store).map_err(|error| failed("describe", error, &store))?;
        let description = convert::description(described)?;
        allow(&mut store, LOAD_MS);
        W::configure(&guest, &mut store, &self.settings)
            .map_err(|error| failed("configure", error, &store))?
            .map_err(|refusal| LoadError::Settings(convert::short(&refusal, 1000)))?;
        if self.settings == NO_SETTINGS {
            return Ok(description);
        }
        // Settings may change the description, such as the time within which a write is committed.
        allow(&mut store, LOAD_MS);
        let described = W::describe(&guest, &mut store).map_err(|error| failed("describe", error, &store))?;
        let configured = convert::description(described)?;
        let operations = |description: &Description| -> Vec<_> {
            let all = description.endpoints.iter();
            all.map(|endpoint| (endpoint.name.clone(), endpoint.method.clone(), endpoint.path.clone())).collect()
        };
        if operations(&configured) != operations(&description) {
            return Err(LoadError::Description(InvalidDescription::Changed));
        }
        Ok(configured)
    }

    fn store(&self, cap_ms: u64) -> Store<StoreData<W::Wasi>> {
        let mut store = Store::new(&self.wasmtime, W::caps(cap_ms, &self.log));
        store.limiter(StoreData::limits);
        store.epoch_deadline_callback(|mut store| {
            Ok(match store.data_mut().time.at_deadline(clock::thread_time()) {
                Some(epochs) => UpdateDeadline::Continue(epochs),
                None => UpdateDeadline::Interrupt,
            })
        });
        allow(&mut store, cap_ms);
        store
    }

    fn fresh(&self) -> Result<Instance<W>, Fault> {
        let mut store = self.store(DECIDE_MS);
        let guest = W::instantiate(&self.pre, &mut store).map_err(|error| {
            let is_trap = error.is::<Trap>();
            match fault(error, &store) {
                // The code that runs before the first call is the guest's own too, so its traps are the guest's fault.
                Fault::Trapped(error) if !is_trap => Fault::Instantiate(error),
                guilty => guilty,
            }
        })?;
        W::configure(&guest, &mut store, &self.settings)
            .map_err(|error| fault(error, &store))?
            .map_err(|refusal| Fault::Configure(convert::short(&refusal, 200)))?;
        Ok(Instance { store, guest, calls: 0 })
    }

    pub(super) fn decide(
        &self,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        interest: Option<&Interest>,
    ) -> Result<Verdict, Fault> {
        // With reuse most decisions make and clear no instance, so the whole decision has no limit of its own.
        if self.warm.is_some() {
            return self.decide_uncounted(attempt, outcome, interest);
        }
        let began = clock::thread_time();
        let decided = self.decide_uncounted(attempt, outcome, interest);
        // By now the instance is cleared, so this time includes it.
        let took = clock::thread_time().saturating_sub(began);
        if decided.is_ok() && took > Duration::from_millis(DECISION_MS) {
            return Err(Fault::Costly { cap_ms: DECISION_MS });
        }
        decided
    }

    fn decide_uncounted(
        &self,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        interest: Option<&Interest>,
    ) -> Result<Verdict, Fault> {
        let _running = self.engine.runs();
        let warm = self.warm.as_ref().and_then(|warm| warm.lock().pop());
        let mut instance = match warm {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        let Instance { store, guest, calls } = &mut instance;
        allow(store, DECIDE_MS);
        let lifted = convert::lowered(attempt, outcome, interest, |attempt, outcome| {
            W::decide(guest, &mut *store, attempt, outcome).map_err(|error| fault(error, &*store))
        })?;
        *calls += 1;
        // Reuse an instance only if it returned a verdict: after a trap its state is unknown.
        if let Some(warm) = &self.warm
            && *calls < REUSED_CALLS
        {
            let mut warm = warm.lock();
            if warm.len() < MAX_WARM {
                warm.push(instance);
            }
        }
        Ok(convert::verdict(lifted)?)
    }
}

fn fault<W>(error: wasmtime::Error, store: &Store<StoreData<W>>) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Fault::Overran { cap_ms: DECIDE_MS },
        _ if error.is::<Waited>() => Fault::Waited,
        _ => match panic_text::of(&error, store) {
            Some(panic) => Fault::Panicked(panic),
            None => Fault::Trapped(panic_text::without_dump(error)),
        },
    }
}
