//! The data of a guest's wasmtime store: memory limits, processor time and WASI.

use super::cpu_budget::CpuBudget;
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder};

/// The resource limits of an instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) memory_bytes: usize,
    pub(super) tables: usize,
    pub(super) table_elements: usize,
    pub(super) core_instances: usize,
}

/// The data of one store: its guest's limits, and `W`, the WASI state of its tier.
pub(super) struct StoreData<W> {
    memory: StoreLimits,
    pub(super) time: CpuBudget,
    pub(super) wasi: W,
}

impl<W> StoreData<W> {
    pub(super) fn new(bounds: Bounds, cap_ms: u64, wasi: W) -> Self {
        let memory = StoreLimitsBuilder::new()
            .memory_size(bounds.memory_bytes)
            .memories(1)
            .tables(bounds.tables)
            .table_elements(bounds.table_elements)
            .instances(bounds.core_instances)
            .build();
        Self { memory, time: CpuBudget::new(cap_ms), wasi }
    }

    pub(super) fn limits(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.memory
    }
}
