//! From a component's bytes to a linked policy, and the call into it.

use super::{
    Digest, Fault,
    bindings::PolicyPre,
    contract::{Attempt, Description, Interest, Outcome, Verdict},
    convert::{self, InvalidDescription},
    engine::{Engine, MEMORY_BYTES},
    shape::TooDeep,
    watch::{FIRST_EPOCHS, Watch},
};
use crate::clock;
use parking_lot::Mutex;
use wasmtime::{
    Store, StoreLimits, StoreLimitsBuilder, Trap, UpdateDeadline,
    component::{Linker, types::ComponentItem},
};

/// The cap on one decision, in milliseconds of the processor.
const DECIDE_MS: u64 = 5;
/// The cap on `describe` and on `configure` at load.
const LOAD_MS: u64 = 100;
/// The bytes that a guest may hand over in one call: an answer of 1 MiB and its headers.
const LIFTED_BYTES: usize = 2 << 20;
/// The largest component that is looked at: a Python policy has 18 MB.
const COMPONENT_BYTES: usize = 64 << 20;
/// How many calls a reused instance serves before a fresh one takes its place.
const REUSED_CALLS: u32 = 10_000;
/// Warm instances kept with `reused` isolation.
const WARM: usize = 16;

/// How a component is loaded.
#[derive(Debug, Clone, Default)]
pub struct Loading {
    /// The operator's JSON settings for `configure`; empty means `{}`.
    pub settings: String,
    /// Whether one instance serves many requests. Faster, but what a guest remembers then leaks between requests.
    pub reuse_instances: bool,
}

/// Why a component was refused, by step.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Larger than anything sensible.
    #[error("the component has {bytes} bytes; at most {} are loaded: strip it", COMPONENT_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A core module.
    #[error("the file is a core WebAssembly module; it must be a component: build it with `triage policy build`")]
    CoreModule,
    /// Native code.
    #[error("the file is precompiled native code; it must be a component: the host compiles it itself")]
    Precompiled,
    /// Not WebAssembly at all, or broken off.
    #[error(
        "the file is no valid WebAssembly component; it must be a whole one: build it again with `triage policy build`"
    )]
    Invalid(#[source] wasmtime::Error),
    /// It wants what the host does not offer.
    #[error(
        "the component imports {}; a policy may import nothing: build it for wasm32-unknown-unknown",
        listed(missing)
    )]
    Imports {
        /// Every import, by name.
        missing: Vec<String>,
    },
    /// The exports are not those of the world.
    #[error(
        "the component does not export the world triage:policy/policy@0.1.0; it must export describe, configure and decide as in wit/"
    )]
    World(#[source] wasmtime::Error),
    /// It asks for more than a policy gets.
    #[error(
        "the component asks for more than a policy gets: one memory of at most {} MiB, 4 tables and 4 core instances; \
         build it smaller with `triage policy build`",
        MEMORY_BYTES >> 20
    )]
    TooMuch(#[source] wasmtime::Error),
    /// It would keep the compiler busy out of all proportion.
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// A call at load was stopped.
    #[error(
        "the policy ran on in `{call}`; it must return within {} ms: take out what loops or computes there",
        LOAD_MS
    )]
    Overran {
        /// Which function; `start` is everything that runs before the first.
        call: &'static str,
    },
    /// A call at load trapped, or returned what is nothing.
    #[error("the policy failed in `{call}`; it must return what wit/ says, without a trap: mend that function")]
    Call {
        /// Which function; `start` is everything that runs before the first.
        call: &'static str,
        /// The trap.
        #[source]
        source: wasmtime::Error,
    },
    /// The description is wrong.
    #[error("the policy's description is refused: {0}")]
    Description(#[from] InvalidDescription),
    /// `configure` said no.
    #[error("the policy refused its settings: {0}; correct `policy_settings`")]
    Settings(String),
}

/// A compiled and linked component.
pub(super) struct Component {
    /// Kept whole: without its ticker a call that never returns would not be stopped.
    engine: Engine,
    pre: PolicyPre<Caps>,
    settings: String,
    warm: Option<Mutex<Vec<Instance>>>,
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Component")
    }
}

/// What a call may use.
struct Caps {
    memory: StoreLimits,
    time: Watch,
}

/// Starts a call's time anew.
fn allow(store: &mut Store<Caps>, cap_ms: u64) {
    store.data_mut().time = Watch::new(cap_ms);
    store.set_epoch_deadline(FIRST_EPOCHS);
    store.set_hostcall_fuel(LIFTED_BYTES);
}

struct Instance {
    store: Store<Caps>,
    guest: super::bindings::Policy,
    calls: u32,
}

impl Component {
    pub(super) fn load(
        engine: &Engine,
        digest: &Digest,
        bytes: &[u8],
        loading: &Loading,
    ) -> Result<(Self, Description), LoadError> {
        if bytes.len() > COMPONENT_BYTES {
            return Err(LoadError::TooLarge { bytes: bytes.len() });
        }
        if bytes.starts_with(b"\x7fELF") {
            return Err(LoadError::Precompiled);
        }
        if bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(LoadError::CoreModule);
        }
        let component = engine.compiled(digest, bytes).map_err(refused)?;
        let missing = imports(engine.wasmtime(), &component);
        if !missing.is_empty() {
            return Err(LoadError::Imports { missing });
        }
        let linked = Linker::new(engine.wasmtime()).instantiate_pre(&component).map_err(LoadError::World)?;
        let pre = PolicyPre::new(linked).map_err(LoadError::World)?;
        let settings = if loading.settings.is_empty() { "{}".to_owned() } else { loading.settings.clone() };
        let warm = loading.reuse_instances.then(Mutex::default);
        let loaded = Self { engine: engine.clone(), pre, settings, warm };
        let description = loaded.describe()?;
        Ok((loaded, description))
    }

    fn describe(&self) -> Result<Description, LoadError> {
        let call = |call| {
            move |error: wasmtime::Error| match error.downcast_ref::<Trap>() {
                Some(Trap::Interrupt) => LoadError::Overran { call },
                _ => LoadError::Call { call, source: error },
            }
        };
        let mut store = self.store(LOAD_MS);
        let guest = self.pre.instantiate(&mut store).map_err(call("start"))?;
        let described = guest.call_describe(&mut store).map_err(call("describe"))?;
        let description = convert::description(described)?;
        allow(&mut store, LOAD_MS);
        guest
            .call_configure(&mut store, &self.settings)
            .map_err(call("configure"))?
            .map_err(|refusal| LoadError::Settings(convert::short(&refusal, 1000)))?;
        Ok(description)
    }

    fn store(&self, cap_ms: u64) -> Store<Caps> {
        let memory = StoreLimitsBuilder::new().memory_size(MEMORY_BYTES).memories(1).tables(4).instances(4).build();
        let mut store = Store::new(self.engine.wasmtime(), Caps { memory, time: Watch::new(cap_ms) });
        store.limiter(|caps| &mut caps.memory);
        store.epoch_deadline_callback(|mut store| {
            Ok(match store.data_mut().time.at_deadline(clock::thread_time()) {
                Some(epochs) => UpdateDeadline::Continue(epochs),
                None => UpdateDeadline::Interrupt,
            })
        });
        allow(&mut store, cap_ms);
        store
    }

    fn fresh(&self) -> Result<Instance, Fault> {
        let mut store = self.store(DECIDE_MS);
        let guest = self.pre.instantiate(&mut store).map_err(|error| match fault(error) {
            // What runs before the first call is the guest's own too.
            Fault::Trapped(error) if !error.is::<Trap>() => Fault::Instantiate(error),
            guilty => guilty,
        })?;
        guest
            .call_configure(&mut store, &self.settings)
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
        let warm = self.warm.as_ref().and_then(|warm| warm.lock().pop());
        let mut instance = match warm {
            Some(instance) => instance,
            None => self.fresh()?,
        };
        let Instance { store, guest, calls } = &mut instance;
        allow(store, DECIDE_MS);
        let lifted = convert::lowered(attempt, outcome, interest, |attempt, outcome| {
            guest.call_decide(&mut *store, attempt, outcome).map_err(fault)
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
        _ => Fault::Trapped(error),
    }
}

/// Why a component does not compile: it is broken, or larger than the pool's places.
fn refused(error: wasmtime::Error) -> LoadError {
    if let Some(too_deep) = error.downcast_ref::<TooDeep>() {
        return LoadError::TooDeep(*too_deep);
    }
    // The engine tells the two apart by nothing but this text; a test pins each.
    let too_much = error.chain().any(|cause| cause.to_string().contains("pooling allocator"));
    if too_much { LoadError::TooMuch(error) } else { LoadError::Invalid(error) }
}

/// Every function or resource that the component imports; an interface of types alone is no import.
fn imports(engine: &wasmtime::Engine, component: &wasmtime::component::Component) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, item) in component.component_type().imports(engine) {
        match item.ty {
            ComponentItem::ComponentInstance(instance) => {
                for (function, item) in instance.exports(engine) {
                    if !matches!(item.ty, ComponentItem::Type(_)) {
                        missing.push(format!("{name}#{function}"));
                    }
                }
            }
            ComponentItem::Type(_) => {}
            _ => missing.push(name.to_owned()),
        }
    }
    missing
}

/// The first names, each no longer than a line, and how many there are beside.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 32;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| convert::short(name, 160)).collect();
    let more = names.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
