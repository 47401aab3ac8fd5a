//! The wasmtime engines: one for each tier, each with a pool of instance slots. One thread counts milliseconds for both.

use super::{
    Cache, CompileError, Compiler, Digest,
    component_info::Tier,
    engine_config::{EngineError, for_tier},
    epoch_ticker::{Running, Ticker},
    nesting_limit,
    store_data::StoreData,
    wasi::{self, Wasi},
};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};
use tokio::time::Instant;
use wasmtime::component::{Component, Linker};

/// The engines of this process. Clones share them; their ticker ends with the last clone.
#[derive(Clone)]
pub struct Engine {
    sync: wasmtime::Engine,
    /// Started with the first component of `Tier::Wasi`.
    wasi: Arc<OnceLock<WasiEngine>>,
    ticker: Arc<Ticker>,
    cache: Option<Arc<Cache>>,
    compilation: Compilation,
    compilations: Arc<AtomicU64>,
}

/// Where components are compiled.
#[derive(Clone)]
enum Compilation {
    /// In this process.
    Here,
    /// In a process of its own.
    Child(Arc<Compiler>),
    /// Nowhere: only code from the cache is loaded.
    Never,
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
        Ok(Self { sync, wasi, ticker, cache: None, compilation: Compilation::Here, compilations: Arc::default() })
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
        self.compilation = Compilation::Child(Arc::new(compiler));
        self
    }

    /// Compiles nothing from now on: a component whose code is not in the cache is refused with [`CompileError::NotCached`].
    #[must_use]
    pub fn only_cached(mut self) -> Self {
        self.compilation = Compilation::Never;
        self
    }

    /// The number of components that this engine and its clones compiled. Code from the cache does not count.
    pub fn compilations(&self) -> u64 {
        self.compilations.load(Ordering::Relaxed)
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
            if matches!(self.compilation, Compilation::Never) {
                return Err(wasmtime::Error::new(CompileError::NotCached));
            }
            nesting_limit::check(bytes).map_err(wasmtime::Error::new)?;
            let began = Instant::now();
            let component = self.compile(engine, tier, bytes)?;
            self.compilations.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(component = %digest.short(), took = ?began.elapsed(), "compiled");
            Ok(component)
        };
        let Some(cache) = &self.cache else { return compile() };
        if let Some(component) = cache.load(engine, digest) {
            return Ok(component);
        }
        let component = compile()?;
        cache.store(engine, digest, &component);
        Ok(component)
    }

    fn compile(&self, engine: &wasmtime::Engine, tier: Tier, bytes: &[u8]) -> wasmtime::Result<Component> {
        let Compilation::Child(compiler) = &self.compilation else { return Component::from_binary(engine, bytes) };
        let code = compiler.compile(tier, bytes).map_err(wasmtime::Error::new)?.map_err(wasmtime::Error::msg)?;
        // SAFETY: this very program wrote the code: `own_program` names it even if its file was replaced, and this process started it
        // over pipes of its own. wasmtime also checks its own version and settings.
        #[allow(unsafe_code)]
        unsafe {
            Component::deserialize(engine, code)
        }
    }
}
