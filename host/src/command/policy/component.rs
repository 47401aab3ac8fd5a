//! Reads and loads a component for a command, with the cache of compiled code that `triage serve` uses.

use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use triage_bounded_file as bounded_file;
use triage_engine::{
    COMPONENT_BYTES, Cache, CachePaths, CompileError, ComponentFacts, Engine, LoadError, LoadOptions, Policy, Tier,
};

/// The cache of compiled code.
#[derive(Debug, Default, clap::Args)]
pub struct CacheOptions {
    #[arg(
        long,
        value_name = "FOLDER",
        conflicts_with = "no_cache",
        help = "Folder of compiled code [default: that of `triage serve`, `triage/compiled` in $XDG_CACHE_HOME or \
                ~/.cache]"
    )]
    cache_dir: Option<PathBuf>,
    /// Compile the component again, and store no compiled code
    #[arg(long)]
    no_cache: bool,
}

impl CacheOptions {
    /// Starts an engine with the cache. Without a usable cache, the engine compiles each component.
    pub fn engine(&self) -> Result<Engine> {
        let engine = Engine::start()?;
        let variable = |name: &str| crate::command::variable(name).map(PathBuf::from);
        let paths = if self.no_cache { None } else { CachePaths::of_user(self.cache_dir.clone(), variable) };
        Ok(match paths.as_ref().map(Cache::open) {
            None => engine,
            Some(Ok(cache)) => engine.caching(cache),
            Some(Err(error)) => {
                tracing::warn!(%error, "the component is compiled again each time");
                engine
            }
        })
    }

    /// Loads a component's file.
    pub fn load(&self, component: &Path, loading: &LoadOptions) -> Result<Arc<Policy>> {
        load(&self.engine()?, component, &read(component)?, loading)
    }
}

/// Loads a component. Compiling one with an interpreter takes seconds, so the log says so first.
pub fn load(engine: &Engine, path: &Path, component: &[u8], loading: &LoadOptions) -> Result<Arc<Policy>> {
    let refused = || format!("{} is refused", path.display());
    match Policy::load(&engine.clone().only_cached(), component, loading) {
        Err(LoadError::Compile(CompileError::NotCached)) => {
            if ComponentFacts::read(component).is_ok_and(|facts| facts.tier == Tier::Wasi) {
                tracing::info!("compiling {} for this machine; this takes seconds", path.display());
            }
            Policy::load(engine, component, loading).with_context(refused)
        }
        loaded => loaded.with_context(refused),
    }
}

/// Reads a component's file.
pub fn read(component: &Path) -> Result<Vec<u8>> {
    bounded_file::read(component, COMPONENT_BYTES).with_context(|| format!("{} cannot be read", component.display()))
}

/// Reads a file of golden cases.
pub fn read_cases(cases: &Path) -> Result<String> {
    /// Maximum size of a cases file.
    const MAX_CASES_BYTES: u64 = 4 << 20;
    bounded_file::read_text(cases, MAX_CASES_BYTES).with_context(|| format!("{} cannot be read", cases.display()))
}
