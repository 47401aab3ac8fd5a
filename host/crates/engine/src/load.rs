//! From a component's bytes to a linked policy: every check, in order.

use super::{
    CompileError, Digest, EngineError, Fault,
    component_info::{Contract, OtherContract, Outline, Tier},
    contract::{Attempt, Description, Interest, Outcome, Verdict},
    convert::{self, InvalidDescription},
    engine::Engine,
    guest_call::{SYNC_BOUNDS, SyncTier, WASI_BOUNDS, WasiTier},
    instances::{Instances, LOAD_MS},
    nesting_limit::TooDeep,
    store_data::Bounds,
    wasi::LogBudget,
};
use std::panic::{self, AssertUnwindSafe};
use wasmtime::component::{InstancePre, Linker, types::ComponentItem};

/// The largest component that is looked at: a Python policy has 18 MB.
const COMPONENT_BYTES: usize = 64 << 20;

/// How a component is loaded.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
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
        "the component imports {}; a policy may import nothing but WASI 0.2, which it gets empty: take out what uses it",
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
    /// Its WASI is another.
    #[error("the component imports of WASI 0.2 what this host does not have; build it with a released toolchain")]
    Wasi(#[source] wasmtime::Error),
    /// It speaks another contract.
    #[error(transparent)]
    Contract(#[from] OtherContract),
    /// The tier for components with an interpreter cannot be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It asks for more than a policy gets.
    #[error(
        "the component asks for more than a policy gets: one memory of at most {memory_mib} MiB, {tables} tables and \
         {core_instances} core instances; build it smaller with `triage policy build`"
    )]
    TooMuch {
        /// The most memory.
        memory_mib: usize,
        /// The most tables.
        tables: usize,
        /// The most core instances.
        core_instances: usize,
        /// The engine's word.
        #[source]
        source: wasmtime::Error,
    },
    /// It would keep the compiler busy out of all proportion.
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// It took too much to compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A library panicked over it.
    #[error(
        "the component made the compiler panic ({0}), which no valid one does; nothing of it runs: build it again, and report it"
    )]
    Panicked(String),
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

/// A compiled and linked component, on its tier.
pub(super) struct Component {
    contract: Contract,
    instances: Tiered,
}

enum Tiered {
    /// Without imports.
    Fast(Instances<SyncTier>),
    /// With an interpreter, or with WASI.
    Roomy(Instances<WasiTier>),
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Component")
    }
}

/// Runs a load. What panics in a library over a hostile component refuses that component, and nothing else.
///
/// # Errors
/// The panic's message.
pub fn contained<T>(load: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(load)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        convert::short(text.as_deref().unwrap_or("without a word"), 200)
    })
}

/// Panics if a test has written into the file that this place of its load is to panic.
#[cfg(any(test, feature = "panic-injection"))]
pub fn panic_if_told(place: &str, bytes: &[u8]) {
    let told = format!("test-panic:{place};");
    assert!(!bytes.windows(told.len()).any(|part| part == told.as_bytes()), "{told}");
}

impl Component {
    /// Loads a component; a panic over it is a refusal.
    pub(super) fn load(
        engine: &Engine,
        digest: &Digest,
        bytes: &[u8],
        loading: &LoadOptions,
    ) -> Result<(Self, Description), LoadError> {
        contained(|| Self::load_uncontained(engine, digest, bytes, loading)).map_err(LoadError::Panicked)?
    }

    fn load_uncontained(
        engine: &Engine,
        digest: &Digest,
        bytes: &[u8],
        loading: &LoadOptions,
    ) -> Result<(Self, Description), LoadError> {
        #[cfg(any(test, feature = "panic-injection"))]
        panic_if_told("load", bytes);
        if bytes.len() > COMPONENT_BYTES {
            return Err(LoadError::TooLarge { bytes: bytes.len() });
        }
        if bytes.starts_with(b"\x7fELF") {
            return Err(LoadError::Precompiled);
        }
        // The engine's word would quote the first bytes: of a file that was put here by mistake they may be a secret.
        if !bytes.starts_with(b"\0asm") {
            return Err(LoadError::Invalid(wasmtime::Error::msg("it does not begin like WebAssembly")));
        }
        if bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(LoadError::CoreModule);
        }
        let outline = Outline::of(bytes);
        let contract = outline.contract()?;
        match contract {
            // An older one would be linked through its adapter here.
            Contract::V0_1 => {}
        }
        let log = LogBudget::new(digest.short());
        let (instances, description) = match outline.tier() {
            Tier::Fast => {
                let component = engine
                    .compiled(engine.fast(), Tier::Fast, digest, bytes)
                    .map_err(|error| refused(error, SYNC_BOUNDS))?;
                let linker = Linker::new(engine.fast());
                let linked = linked(&linker, &component, Tier::Fast)?;
                let instances = Instances::new(engine, linked, loading, log)?;
                let description = instances.describe()?;
                (Tiered::Fast(instances), description)
            }
            Tier::Roomy => {
                let roomy = engine.roomy()?;
                let component = engine
                    .compiled(&roomy.wasmtime, Tier::Roomy, digest, bytes)
                    .map_err(|error| refused(error, WASI_BOUNDS))?;
                let linked = linked(&roomy.linker, &component, Tier::Roomy)?;
                let instances = Instances::new(engine, linked, loading, log)?;
                let description = instances.describe()?;
                (Tiered::Roomy(instances), description)
            }
        };
        Ok((Self { contract, instances }, description))
    }

    pub(super) fn decide(
        &self,
        attempt: &Attempt<'_>,
        outcome: &Outcome<'_>,
        interest: Option<&Interest>,
    ) -> Result<Verdict, Fault> {
        match &self.instances {
            Tiered::Fast(instances) => instances.decide(attempt, outcome, interest),
            Tiered::Roomy(instances) => instances.decide(attempt, outcome, interest),
        }
    }

    pub(super) fn tier(&self) -> Tier {
        match &self.instances {
            Tiered::Fast(_) => Tier::Fast,
            Tiered::Roomy(_) => Tier::Roomy,
        }
    }

    pub(super) fn contract(&self) -> Contract {
        self.contract
    }
}

fn linked<T: 'static>(
    linker: &Linker<T>,
    component: &wasmtime::component::Component,
    tier: Tier,
) -> Result<InstancePre<T>, LoadError> {
    let missing = imports(component, tier);
    if !missing.is_empty() {
        return Err(LoadError::Imports { missing });
    }
    linker.instantiate_pre(component).map_err(match tier {
        Tier::Fast => LoadError::World,
        Tier::Roomy => LoadError::Wasi,
    })
}

/// Why a component does not compile: it is broken, or larger than the pool's places.
fn refused(error: wasmtime::Error, bounds: Bounds) -> LoadError {
    if let Some(too_deep) = error.downcast_ref::<TooDeep>() {
        return LoadError::TooDeep(*too_deep);
    }
    let error = match error.downcast::<CompileError>() {
        Ok(error) => return LoadError::Compile(error),
        Err(error) => error,
    };
    // The engine tells the two apart by nothing but this text; a test pins each.
    let too_much = error.chain().any(|cause| cause.to_string().contains("pooling allocator"));
    if !too_much {
        return LoadError::Invalid(error);
    }
    let Bounds { memory_bytes, tables, core_instances, .. } = bounds;
    LoadError::TooMuch { memory_mib: memory_bytes >> 20, tables, core_instances, source: error }
}

/// The interfaces of WASI 0.2 that a guest may import: it gets each of them empty.
const WASI: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];

/// Every function or resource that the component imports beyond what it may; an interface of types alone is no import.
fn imports(component: &wasmtime::component::Component, tier: Tier) -> Vec<String> {
    let granted = |name: &str| {
        let package = name.strip_prefix("wasi:").and_then(|name| name.split_once('/'));
        let version = name.rsplit_once('@').is_some_and(|(_, version)| version.starts_with("0.2."));
        tier == Tier::Roomy && version && package.is_some_and(|(package, _)| WASI.contains(&package))
    };
    let engine = component.engine();
    let mut missing = Vec::new();
    for (name, item) in component.component_type().imports(engine).filter(|(name, _)| !granted(name)) {
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
