//! Generated from `wit/`: lowered values borrow, lifted ones are owned.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

wasmtime::component::bindgen!({
    path: "../../../wit",
    world: "policy",
    ownership: Borrowing { duplicate_if_necessary: true },
});

/// The same bindings with async calls, each on its own stack, for guests whose imports may wait.
pub mod waiting {
    wasmtime::component::bindgen!({
        path: "../../../wit",
        world: "policy",
        ownership: Borrowing { duplicate_if_necessary: true },
        exports: { default: async },
        with: { "triage:policy/types": super::triage::policy::types },
    });
}
