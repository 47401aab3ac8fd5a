//! Generated from `wit/`: lowered values borrow, lifted ones are owned.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "policy",
    ownership: Borrowing { duplicate_if_necessary: true },
});
