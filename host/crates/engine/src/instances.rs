//! Instances of one component: made, called within their bounds, kept warm where the operator wants that.

use super::{
    Fault,
    contract::{Attempt, Description, Interest, Outcome, Verdict},
    convert::{self, InvalidDescription},
    engine::Engine,
    guest_call::{GuestCall, Waited, allow},
    load::{LoadError, LoadOptions},
    store_data::StoreData,
    wasi::LogBudget,
};
use crate::clock;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use wasmtime::{Store, Trap, UpdateDeadline, component::InstancePre};

/// The cap on one decision, in milliseconds of the processor.
const DECIDE_MS: u64 = 5;
/// The cap on a whole decision: start, `configure`, `decide`, and what it costs to make and to clear the instance. A guest that touches
/// all of its memory keeps the host's thread busy for four times as long as its own call, with page faults and their clearing.
const WHOLE_MS: u64 = 10;
/// The cap on `describe` and on `configure` at load.
pub(super) const LOAD_MS: u64 = 100;
/// How many calls a reused instance serves before a fresh one takes its place.
const REUSED_CALLS: u32 = 10_000;
/// Warm instances kept with `reused` isolation.
const WARM: usize = 16;
/// The settings of a policy for which the operator states none.
const NO_SETTINGS: &str = "{}";

/// A linked component, and its instances.
pub(super) struct Instances<W: GuestCall> {
    /// Kept whole: without its ticker a call that never returns would not be stopped.
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
        let call = |call| {
            move |error: wasmtime::Error| match error.downcast_ref::<Trap>() {
                Some(Trap::Interrupt) => LoadError::Overran { call },
                _ => LoadError::Call { call, source: error },
            }
        };
        let _running = self.engine.runs();
        let mut store = self.store(LOAD_MS);
        let guest = W::instantiate(&self.pre, &mut store).map_err(call("start"))?;
        let described = W::describe(&guest, &mut store).map_err(call("describe"))?;
        let description = convert::description(described)?;
        allow(&mut store, LOAD_MS);
        W::configure(&guest, &mut store, &self.settings)
            .map_err(call("configure"))?
            .map_err(|refusal| LoadError::Settings(convert::short(&refusal, 1000)))?;
        if self.settings == NO_SETTINGS {
            return Ok(description);
        }
        // Settings may change what is described, such as how late a write may be committed.
        allow(&mut store, LOAD_MS);
        let described = W::describe(&guest, &mut store).map_err(call("describe"))?;
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
        let guest = W::instantiate(&self.pre, &mut store).map_err(|error| match fault(error) {
            // What runs before the first call is the guest's own too.
            Fault::Trapped(error) if !error.is::<Trap>() => Fault::Instantiate(error),
            guilty => guilty,
        })?;
        W::configure(&guest, &mut store, &self.settings)
            .map_err(fault)?
            .map_err(|refusal| Fault::Configure(convert::short(&refusal, 200)))?;
        Ok(Instance { store, guest, calls: 0 })
    }

    pub(super) fn decide(
        &self,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        interest: Option<&Interest>,
    ) -> Result<Verdict, Fault> {
        // An instance that is kept is neither made nor cleared.
        if self.warm.is_some() {
            return self.decide_uncounted(attempt, outcome, interest);
        }
        let began = clock::thread_time();
        let decided = self.decide_uncounted(attempt, outcome, interest);
        // The instance is gone by now.
        let took = clock::thread_time().saturating_sub(began);
        if decided.is_ok() && took > Duration::from_millis(WHOLE_MS) {
            return Err(Fault::Costly { cap_ms: WHOLE_MS });
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
            W::decide(guest, store, attempt, outcome).map_err(fault)
        })?;
        *calls += 1;
        // Only an instance that answered comes back: one that trapped is in no known state.
        if let Some(warm) = &self.warm
            && *calls < REUSED_CALLS
        {
            let mut warm = warm.lock();
            if warm.len() < WARM {
                warm.push(instance);
            }
        }
        Ok(convert::verdict(lifted)?)
    }
}

fn fault(error: wasmtime::Error) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Fault::Overran { cap_ms: DECIDE_MS },
        _ if error.is::<Waited>() => Fault::Waited,
        _ => Fault::Trapped(error),
    }
}
