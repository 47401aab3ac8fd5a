//! The wasmtime engines: one for each tier, each with a pool of instance slots. One thread counts milliseconds for both.

use super::{
    Cache, Compiler, Digest,
    component_info::Tier,
    epoch_ticker::{Running, Ticker},
    guest_call::{SYNC_BOUNDS, WASI_BOUNDS},
    nesting_limit,
    store_data::{Bounds, StoreData},
    wasi::{self, Wasi},
};
use std::sync::{Arc, OnceLock};
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::{Component, Linker},
};

/// Instances of `Tier::Sync` at once: one for each core that runs a decision, the rest for `reused` isolation and for loads.
const SYNC_INSTANCES: u32 = 256;
/// Instances of `Tier::Wasi` at once: fewer, because each holds an interpreter.
const WASI_INSTANCES: u32 = 64;

/// Memory of a slot that stays resident between instances of `Tier::Sync`. A policy touches less, so a fresh instance needs no page faults.
const SYNC_RESIDENT_BYTES: usize = 256 << 10;
/// The same for `Tier::Wasi`: an interpreter touches more memory.
const WASI_RESIDENT_BYTES: usize = 4 << 20;

/// The guest's stack. A call of `Tier::Wasi` runs on a stack of twice this size, so that its guest gets as much as one of `Tier::Sync`.
const STACK_BYTES: usize = 512 << 10;

/// This machine cannot run the engine.
#[derive(Debug, thiserror::Error)]
#[error(
    "the WebAssembly engine could not be started; it must reserve about 1 TiB of 64-bit address space: raise `ulimit \
     -v`"
)]
pub struct EngineError(#[source] pub(super) wasmtime::Error);

/// The engines of this process. Clones share them; their ticker ends with the last clone.
#[derive(Clone)]
pub struct Engine {
    sync: wasmtime::Engine,
    /// Started with the first component of `Tier::Wasi`.
    wasi: Arc<OnceLock<WasiEngine>>,
    ticker: Arc<Ticker>,
    cache: Option<Arc<Cache>>,
    compiler: Option<Arc<Compiler>>,
}

/// The engine of `Tier::Wasi`, and the linker with the WASI functions that its guests may import.
pub(super) struct WasiEngine {
    pub(super) wasmtime: wasmtime::Engine,
    pub(super) linker: Linker<StoreData<Wasi>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Starts the engine of `Tier::Sync`, and the thread that ticks for both tiers.
    ///
    /// # Errors
    /// [`EngineError`] if the pool's address space cannot be reserved, or the thread cannot start.
    pub fn start() -> Result<Self, EngineError> {
        let sync = for_tier(Tier::Sync)?;
        let wasi: Arc<OnceLock<WasiEngine>> = Arc::default();
        let (second, first) = (Arc::downgrade(&wasi), sync.weak());
        let tick = move || {
            if let Some(engine) = first.upgrade() {
                engine.increment_epoch();
            }
            if let Some(engine) = second.upgrade()
                && let Some(engine) = engine.get()
            {
                engine.wasmtime.increment_epoch();
            }
        };
        let ticker = Ticker::start(tick).map_err(|error| EngineError(error.into()))?;
        Ok(Self { sync, wasi, ticker, cache: None, compiler: None })
    }

    /// Adds a cache of compiled code.
    #[must_use]
    pub fn caching(mut self, cache: Cache) -> Self {
        self.cache = Some(Arc::new(cache));
        self
    }

    /// Compiles components in a process of their own from now on.
    #[must_use]
    pub fn compiling_with(mut self, compiler: Compiler) -> Self {
        self.compiler = Some(Arc::new(compiler));
        self
    }

    /// Counts a guest's call as running: epochs pass until the returned value is dropped.
    pub(super) fn runs(&self) -> Running<'_> {
        self.ticker.runs()
    }

    /// The engine of `Tier::Sync`.
    pub(super) fn sync_engine(&self) -> &wasmtime::Engine {
        &self.sync
    }

    /// The engine of `Tier::Wasi`, started on first use.
    pub(super) fn wasi_engine(&self) -> Result<&WasiEngine, EngineError> {
        if let Some(engine) = self.wasi.get() {
            return Ok(engine);
        }
        let wasmtime = for_tier(Tier::Wasi)?;
        let linker = wasi::linker(&wasmtime).map_err(EngineError)?;
        Ok(self.wasi.get_or_init(|| WasiEngine { wasmtime, linker }))
    }

    /// A component's compiled code: from the cache, or compiled now and added to the cache.
    pub(super) fn compiled(
        &self,
        engine: &wasmtime::Engine,
        tier: Tier,
        digest: &Digest,
        bytes: &[u8],
    ) -> wasmtime::Result<Component> {
        let compile = || {
            nesting_limit::check(bytes).map_err(wasmtime::Error::new)?;
            let Some(compiler) = &self.compiler else { return Component::from_binary(engine, bytes) };
            let code = compiler.compile(tier, bytes).map_err(wasmtime::Error::new)?.map_err(wasmtime::Error::msg)?;
            // SAFETY: this very program wrote the code: `own_program` names it even if its file was replaced, and this process started it
            // over pipes of its own. wasmtime also checks its own version and settings.
            #[allow(unsafe_code)]
            unsafe {
                Component::deserialize(engine, code)
            }
        };
        let Some(cache) = &self.cache else { return compile() };
        if let Some(component) = cache.load(engine, digest) {
            return Ok(component);
        }
        let component = compile()?;
        cache.store(engine, digest, &component);
        Ok(component)
    }
}

/// A new engine with a tier's settings.
pub(super) fn for_tier(tier: Tier) -> Result<wasmtime::Engine, EngineError> {
    match tier {
        Tier::Sync => started(SYNC_BOUNDS, SYNC_INSTANCES, SYNC_RESIDENT_BYTES),
        Tier::Wasi => started(WASI_BOUNDS, WASI_INSTANCES, WASI_RESIDENT_BYTES),
    }
}

fn started(bounds: Bounds, instances: u32, resident_bytes: usize) -> Result<wasmtime::Engine, EngineError> {
    let start = |pagemap_scan| wasmtime::Engine::new(&config(bounds, instances, resident_bytes, pagemap_scan));
    start(Enabled::Yes).or_else(|_| start(Enabled::No)).map_err(EngineError)
}

fn config(bounds: Bounds, instances: u32, resident_bytes: usize, pagemap_scan: Enabled) -> Config {
    let each = |count: usize| instances.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_core_instances(each(bounds.core_instances))
        .total_memories(instances)
        .total_tables(each(bounds.tables))
        .total_stacks(instances)
        .max_memory_size(bounds.memory_bytes)
        .max_memories_per_component(1)
        .max_tables_per_component(u32::try_from(bounds.tables).unwrap_or(u32::MAX))
        .table_elements(bounds.table_elements)
        .linear_memory_keep_resident(resident_bytes)
        .table_keep_resident(16 << 10)
        .max_unused_warm_slots(16)
        .pagemap_scan(pagemap_scan);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(STACK_BYTES * 2)
        .wasm_backtrace_max_frames(None)
        .memory_init_cow(true);
    config
}
