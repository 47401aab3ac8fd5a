//! The wasmtime settings of each tier: the pool of instance slots, stacks and interruption.

use super::{
    component_info::Tier,
    guest_call::{SYNC_BOUNDS, WASI_BOUNDS},
    store_data::Bounds,
};
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

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

/// A new engine with a tier's settings.
pub(super) fn for_tier(tier: Tier) -> Result<wasmtime::Engine, EngineError> {
    match tier {
        Tier::Sync => started(SYNC_BOUNDS, SYNC_INSTANCES, SYNC_RESIDENT_BYTES, true),
        // An interpreter writes its errors to its standard error, which is logged.
        Tier::Wasi => started(WASI_BOUNDS, WASI_INSTANCES, WASI_RESIDENT_BYTES, false),
    }
}

fn started(
    bounds: Bounds,
    instances: u32,
    resident_bytes: usize,
    dumps: bool,
) -> Result<wasmtime::Engine, EngineError> {
    let start = |pagemap_scan| {
        let mut config = config(bounds, instances, resident_bytes, pagemap_scan);
        // For the text of a panic: without a dump the memory of an instance cannot be reached.
        config.coredump_on_trap(dumps);
        wasmtime::Engine::new(&config)
    };
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
