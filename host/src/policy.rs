//! Policies: WebAssembly components that judge outcomes. The only user of wasmtime.

pub mod contract;
