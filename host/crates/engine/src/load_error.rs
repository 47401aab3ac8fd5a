//! The options of a load, and why a load refuses a component.

use super::{
    CompileError, EngineError,
    component_info::OtherContract,
    convert::{self, InvalidDescription},
    nesting_limit::TooDeep,
    panic_text::PanicText,
};

/// The maximum size of a component. A Python policy has 18 MB.
pub(super) const COMPONENT_BYTES: usize = 64 << 20;

/// The limit of `describe` and of `configure` at load, in milliseconds of processor time.
pub(super) const LOAD_MS: u64 = 100;

/// The operator's options for a load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The operator's JSON settings for `configure`; empty means `{}`.
    pub settings: String,
    /// Whether one instance serves many requests. That is faster, but a guest can then carry data from one request to another.
    pub reuse_instances: bool,
}

/// Why a load refused a component, by step.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The component exceeds the maximum size.
    #[error("the component has {bytes} bytes; at most {} are allowed: strip it", COMPONENT_BYTES)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The file is a core module, not a component.
    #[error("the file is a core WebAssembly module; it must be a component: build it with `triage policy build`")]
    CoreModule,
    /// The file is native code.
    #[error("the file is precompiled native code; it must be a component, which the host compiles itself")]
    Precompiled,
    /// The file is not WebAssembly, or is truncated.
    #[error("the file is not a valid WebAssembly component; build it again with `triage policy build`")]
    Invalid(#[source] wasmtime::Error),
    /// The component imports a function or resource that the host does not offer.
    #[error(
        "the component imports {}; a policy may import only WASI 0.2, without files, network or environment: remove \
         the code that uses the import",
        listed(missing)
    )]
    Imports {
        /// Every import, by name.
        missing: Vec<String>,
    },
    /// The component's exports are not those of the world `triage:policy/policy`.
    #[error(
        "the component does not export the world triage:policy/policy@0.1.0; it must export describe, configure and \
         decide as defined in wit/"
    )]
    World(#[source] wasmtime::Error),
    /// The component imports WASI 0.2 functions that this host does not have.
    #[error(
        "the component imports a part of WASI 0.2 that this host does not have; build it with a released toolchain"
    )]
    Wasi(#[source] wasmtime::Error),
    /// The component was built for another contract.
    #[error(transparent)]
    Contract(#[from] OtherContract),
    /// The engine of `Tier::Wasi` cannot be started.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The component asks for more memory, tables or core instances than its tier allows.
    #[error(
        "the component needs more than a policy may have: one memory of at most {memory_mib} MiB, {tables} tables and \
         {core_instances} core instances; make it smaller with `triage policy build`"
    )]
    TooMuch {
        /// The memory limit in MiB.
        memory_mib: usize,
        /// The maximum number of tables.
        tables: usize,
        /// The maximum number of core instances.
        core_instances: usize,
        /// The engine's error.
        #[source]
        source: wasmtime::Error,
    },
    /// The component is nested so deep, or so large, that compiling it would take out of all proportion.
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// The compilation failed, or exceeded its time or memory.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A library panicked while it read the component.
    #[error(
        "the component made the compiler panic ({0}); the host does not run it: build it again, and report the panic"
    )]
    Panicked(String),
    /// A call at load exceeded its time limit.
    #[error(
        "the policy did not return from `{call}`; it must return within {} ms: remove endless loops and long \
         computations there",
        LOAD_MS
    )]
    Overran {
        /// The function. `start` means the code that runs at instantiation, before the first call.
        call: &'static str,
    },
    /// A call at load trapped, or returned an invalid value.
    #[error(
        "the policy failed in `{call}`; it must return a value as defined in wit/, without a trap: correct that \
             function"
    )]
    Call {
        /// The function. `start` means the code that runs at instantiation, before the first call.
        call: &'static str,
        /// The trap.
        #[source]
        source: wasmtime::Error,
    },
    /// The policy panicked in a call at load, which has seen the operator's settings only.
    #[error("the policy panicked in `{call}` at {panic}; correct that function")]
    GuestPanicked {
        /// The function, as in `Call`.
        call: &'static str,
        /// The panic.
        panic: PanicText,
    },
    /// The policy's description failed validation.
    #[error("the policy's description is invalid: {0}")]
    Description(#[from] InvalidDescription),
    /// `configure` refused the operator's settings.
    #[error("the policy refused its settings: {0}; correct `policy_settings`")]
    Settings(String),
}

/// Lists the first 32 names, each cut to 160 bytes, and the number of further ones.
fn listed(names: &[String]) -> String {
    const MAX_SHOWN: usize = 32;
    let shown: Vec<String> = names.iter().take(MAX_SHOWN).map(|name| convert::short(name, 160)).collect();
    let more = names.len().saturating_sub(MAX_SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
