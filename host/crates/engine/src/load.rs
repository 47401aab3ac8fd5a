//! Loads a component: from its bytes through every check, in order, to a linked policy.

use super::{
    CompileError, Digest, Fault,
    component_info::{Contract, Outline, Tier},
    contract::{Attempt, Description, Interest, Outcome, Verdict},
    convert,
    engine::Engine,
    guest_call::{SYNC_BOUNDS, SyncTier, WASI_BOUNDS, WasiTier},
    instances::Instances,
    load_error::{COMPONENT_BYTES, LoadError, LoadOptions},
    nesting_limit::TooDeep,
    store_data::Bounds,
    wasi::LogBudget,
};
use std::panic::{self, AssertUnwindSafe};
use wasmtime::component::{InstancePre, Linker, types::ComponentItem};

/// A compiled and linked component with the instances of its tier.
pub(super) struct Component {
    contract: Contract,
    instances: Tiered,
}

enum Tiered {
    /// Components without imports.
    Sync(Instances<SyncTier>),
    /// Components with an interpreter, or with imports of WASI.
    Wasi(Instances<WasiTier>),
}

impl std::fmt::Debug for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Component")
    }
}

/// Runs a load. If a library panics over a hostile component, the load refuses that component and the process continues.
///
/// # Errors
/// The panic's message.
pub fn contained<T>(load: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(load)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        convert::short(text.as_deref().unwrap_or("without a message"), 200)
    })
}

/// Panics if a test wrote the marker of this `step` in the load into the component's bytes.
#[cfg(any(test, feature = "panic-injection"))]
pub fn panic_if_marked(step: &str, bytes: &[u8]) {
    let marker = format!("test-panic:{step};");
    assert!(!bytes.windows(marker.len()).any(|part| part == marker.as_bytes()), "{marker}");
}

impl Component {
    /// Loads a component. A panic refuses the component.
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
        panic_if_marked("load", bytes);
        let (outline, contract) = outline(bytes)?;
        match contract {
            // The adapter of an older contract would be linked here.
            Contract::V0_1 => {}
        }
        let log = LogBudget::new(digest.short());
        let (instances, description) = match outline.tier() {
            Tier::Sync => {
                let component = engine
                    .compiled(engine.sync_engine(), Tier::Sync, digest, bytes)
                    .map_err(|error| refused(error, SYNC_BOUNDS))?;
                let linker = Linker::new(engine.sync_engine());
                let linked = linked(&linker, &component, Tier::Sync)?;
                let instances = Instances::new(engine, linked, loading, log)?;
                let description = instances.describe()?;
                (Tiered::Sync(instances), description)
            }
            Tier::Wasi => {
                let wasi_engine = engine.wasi_engine()?;
                let component = engine
                    .compiled(&wasi_engine.wasmtime, Tier::Wasi, digest, bytes)
                    .map_err(|error| refused(error, WASI_BOUNDS))?;
                let linked = linked(&wasi_engine.linker, &component, Tier::Wasi)?;
                let instances = Instances::new(engine, linked, loading, log)?;
                let description = instances.describe()?;
                (Tiered::Wasi(instances), description)
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
            Tiered::Sync(instances) => instances.decide(attempt, outcome, interest),
            Tiered::Wasi(instances) => instances.decide(attempt, outcome, interest),
        }
    }

    pub(super) fn tier(&self) -> Tier {
        match &self.instances {
            Tiered::Sync(_) => Tier::Sync,
            Tiered::Wasi(_) => Tier::Wasi,
        }
    }

    pub(super) fn contract(&self) -> Contract {
        self.contract
    }
}

/// Checks that the bytes are a component for a contract of this host, without compiling it.
pub(super) fn outline(bytes: &[u8]) -> Result<(Outline, Contract), LoadError> {
    if bytes.len() > COMPONENT_BYTES {
        return Err(LoadError::TooLarge { bytes: bytes.len() });
    }
    if bytes.starts_with(b"\x7fELF") {
        return Err(LoadError::Precompiled);
    }
    // The engine's error would quote the first bytes. A file put here by mistake may begin with a secret.
    if !bytes.starts_with(b"\0asm") {
        return Err(LoadError::Invalid(wasmtime::Error::msg("it does not begin with WebAssembly's magic number")));
    }
    if bytes.starts_with(b"\0asm\x01\0\0\0") {
        return Err(LoadError::CoreModule);
    }
    let outline = Outline::of(bytes);
    let contract = outline.contract()?;
    Ok((outline, contract))
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
        Tier::Sync => LoadError::World,
        Tier::Wasi => LoadError::Wasi,
    })
}

/// Converts an error of the compiler: the component is invalid, or exceeds the pool's limits.
fn refused(error: wasmtime::Error, bounds: Bounds) -> LoadError {
    if let Some(too_deep) = error.downcast_ref::<TooDeep>() {
        return LoadError::TooDeep(*too_deep);
    }
    let error = match error.downcast::<CompileError>() {
        Ok(error) => return LoadError::Compile(error),
        Err(error) => error,
    };
    // Only this text in the engine's error distinguishes the two; a test pins each.
    let too_much = error.chain().any(|cause| cause.to_string().contains("pooling allocator"));
    if !too_much {
        return LoadError::Invalid(error);
    }
    let Bounds { memory_bytes, tables, core_instances, .. } = bounds;
    LoadError::TooMuch { memory_mib: memory_bytes >> 20, tables, core_instances, source: error }
}

/// The packages of WASI 0.2 that a guest may import. The guest gets them empty.
const WASI: [&str; 6] = ["cli", "clocks", "filesystem", "io", "random", "sockets"];

/// Returns every function or resource that the component imports without permission. An interface that has only types counts as no import.
fn imports(component: &wasmtime::component::Component, tier: Tier) -> Vec<String> {
    let granted = |name: &str| {
        let package = name.strip_prefix("wasi:").and_then(|name| name.split_once('/'));
        let version = name.rsplit_once('@').is_some_and(|(_, version)| version.starts_with("0.2."));
        tier == Tier::Wasi && version && package.is_some_and(|(package, _)| WASI.contains(&package))
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
