//! Files that are no component, and components with imports that a policy may not have.

use super::{
    guest::{Guest, component, text},
    refusal::{Case, refused},
};
use crate::support::stage::{Stage, prebuilt};
use std::{fs, io::Write as _};
use triage_engine::{Engine, LoadError, LoadOptions, Policy};
use triage_rollout::Event;
use triage_upstream_runtime::StagePhase;

fn invalid(cause: &str) -> String {
    format!("the file is not a valid WebAssembly component; build it again with `triage policy build`: {cause}")
}

fn world(cause: &str) -> String {
    format!(
        "the component does not export the world triage:policy/policy@0.1.0; it must export describe, configure and decide as defined in wit/: {cause}"
    )
}

fn imports(named: &str) -> String {
    format!(
        "the component imports {named}; a policy may import only WASI 0.2, without files, network or environment: remove the code that uses the import"
    )
}

fn wasi(cause: &str) -> String {
    format!(
        "the component imports a part of WASI 0.2 that this host does not have; build it with a released toolchain: {cause}"
    )
}

fn too_much(cause: &str) -> String {
    format!(
        "the component needs more than a policy may have: one memory of at most 16 MiB, 4 tables and 4 core instances; make it smaller with `triage policy build`: {cause}"
    )
}

#[tokio::test]
async fn worlds_that_are_another() {
    let lifted = |functions: &str| {
        text(&format!(
            "(component
                (core module $m
                    (func (export \"a\")) (func (export \"b\") (result i32) (i32.const 0))
                    (memory (export \"memory\") 1))
                (core instance $i (instantiate $m))
                (func $a (canon lift (core func $i \"a\")))
                (func $b (result u32) (canon lift (core func $i \"b\")))
                {functions})"
        ))
    };
    refused(vec![
        Case::file("no exports", text("(component)"), world("no export `configure` found")),
        Case::file("describe alone", lifted("(export \"describe\" (func $a))"), world("no export `configure` found")),
        Case::file(
            "other types",
            lifted("(export \"describe\" (func $b)) (export \"configure\" (func $b)) (export \"decide\" (func $b))"),
            world("type-checking export func `configure`: expected 1-tuple, found 0-tuple"),
        ),
        Case::file(
            "a module by that name",
            text("(component (core module $m) (export \"describe\" (core module $m)))"),
            world("no export `configure` found"),
        ),
        Case::file(
            "another package's world",
            component(
                "(module (func (export \"run\")))",
                &[("other.wit", "package other:thing@1.0.0; world job { export run: func(); }")],
                "job",
            ),
            world("no export `configure` found"),
        ),
        Case::file(
            "a version to come",
            component(
                "(module (func (export \"triage:policy/decide@9.0.0#decide\")))",
                &[(
                    "later.wit",
                    "package triage:policy@9.0.0; interface decide { decide: func(); } world policy { export decide; }",
                )],
                "policy",
            ),
            "the component was built for triage:policy@9.0.0; this host loads 0.1 (wit/ is 0.1.0): update the host, or build the component with this host's `triage policy build`"
                .to_owned(),
        ),
        Case::file(
            "a version of long ago",
            text("(component (import \"triage:policy/types@0.0.3\" (instance)))"),
            "the component was built for triage:policy@0.0.3; this host loads 0.1 (wit/ is 0.1.0): build it again with \
             `triage policy build`"
                .to_owned(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn imports_that_no_policy_gets_are_refused() {
    let import = |name: &str, functions: &[&str]| {
        let functions: String = functions.iter().map(|name| format!("(export \"{name}\" (func))")).collect();
        format!("(import \"{name}\" (instance {functions}))")
    };
    let wanting = |imports: String| text(&format!("(component {imports})"));
    let many: String = (0..200).map(|n| import(&format!("a:b{n}/c"), &["d"])).collect();
    let shown: Vec<String> = (0..32).map(|n| format!("a:b{n}/c#d")).collect();
    let long = import(&format!("a:{}/c", "long-".repeat(2000) + "b"), &["d"]);
    refused(vec![
        Case::file(
            "requests",
            wanting(import("wasi:http/outgoing-handler@0.2.3", &["handle"])),
            imports("wasi:http/outgoing-handler@0.2.3#handle"),
        ),
        Case::file(
            "a WASI to come",
            wanting(import("wasi:cli/environment@0.3.0", &["get-environment", "get-arguments"])),
            imports("wasi:cli/environment@0.3.0#get-environment, wasi:cli/environment@0.3.0#get-arguments"),
        ),
        Case::file(
            "a WASI without a version",
            wanting(import("wasi:cli/environment", &["get-environment"])),
            imports("wasi:cli/environment#get-environment"),
        ),
        Case::file(
            "no function of WASI",
            wanting(import("wasi:cli/environment@0.2.3", &["get-everything"])),
            wasi(
                "component imports instance `wasi:cli/environment@0.2.3`, but a matching implementation was not found in the \
                 linker: instance export `get-everything` has the wrong type: function implementation is missing",
            ),
        ),
        Case::file(
            "another function of WASI",
            wanting(import("wasi:cli/environment@0.2.3", &["get-environment"])),
            wasi(
                "component imports instance `wasi:cli/environment@0.2.3`, but a matching implementation was not found in the \
                 linker: instance export `get-environment` has the wrong type: type mismatch with results: expected 1-tuple, found 0-tuple",
            ),
        ),
        Case::file(
            "the unknown",
            wanting(import("acme:secrets/vault", &["open", "read"])),
            imports("acme:secrets/vault#open, acme:secrets/vault#read"),
        ),
        Case::file(
            "two at once",
            wanting(import("a:b/c", &["d"]) + &import("e:f/g", &["h"])),
            imports("a:b/c#d, e:f/g#h"),
        ),
        Case::file("a bare function", wanting("(import \"exec\" (func))".to_owned()), imports("exec")),
        Case::file("a core module", wanting("(import \"libc\" (core module))".to_owned()), imports("libc")),
        Case::file(
            "a component",
            wanting("(import \"inner\" (component))".to_owned()),
            invalid("failed to parse WebAssembly module: root-level component imports are not supported"),
        ),
        Case::file(
            "a resource",
            wanting("(import \"a:b/c\" (instance (export \"file\" (type (sub resource)))))".to_owned()),
            imports("a:b/c#file"),
        ),
        Case::file("two hundred", wanting(many), imports(&format!("{} and 168 more", shown.join(", ")))),
        Case::file("a name of ten thousand bytes", wanting(long), imports(&format!("a:{}lon", "long-".repeat(31)))),
    ])
    .await;
}

#[tokio::test]
async fn more_than_a_policy_gets() {
    let with = |module: &str| text(&format!("(component (core module $m {module}) (core instance (instantiate $m)))"));
    let many = |count: usize, what: &str| what.repeat(count);
    let instances = many(60, "(core instance (instantiate $m))");
    let nested = |depth: usize| (0..depth).fold(text("(component)"), |inner, _| section_of(&inner));
    refused(vec![
        Case::file(
            "blocks in blocks",
            with(&format!("(func {}{})", many(5000, "block "), many(5000, "end "))),
            "a function of the component nests blocks deeper than 4096; split that function".to_owned(),
        ),
        Case::file(
            "a memory of 4 GiB",
            with("(memory 65536)"),
            too_much(
                "module memory does not fit in pooling allocator requirements: memory index 0 is \
                 unsupported in this pooling allocator configuration: memory has a minimum byte size of \
                 4294967296 which exceeds the limit of 0x1000000 bytes",
            ),
        ),
        Case::file(
            "a memory of 17 MiB",
            with("(memory 272)"),
            too_much(
                "module memory does not fit in pooling allocator requirements: memory index 0 is \
                 unsupported in this pooling allocator configuration: memory has a minimum byte size of \
                 17825792 which exceeds the limit of 0x1000000 bytes",
            ),
        ),
        Case::file(
            "two memories",
            with("(memory 1) (memory 1)"),
            too_much(
                "module memory does not fit in pooling allocator requirements: defined memories count of \
                 2 exceeds the per-instance limit of 1",
            ),
        ),
        Case::file(
            "a hundred memories",
            with(&many(100, "(memory 1)")),
            too_much(
                "module memory does not fit in pooling allocator requirements: defined memories count of \
                 100 exceeds the per-instance limit of 1",
            ),
        ),
        Case::file(
            "a shared memory",
            with("(memory 1 2 shared)"),
            invalid("failed to parse WebAssembly module: threads must be enabled for shared memories"),
        ),
        Case::file(
            "a table of four thousand millions",
            with("(table 4000000000 funcref)"),
            too_much(
                "module table does not fit in pooling allocator requirements: table index 0 has a \
                 minimum element size of 4000000000 which exceeds the limit of 10000",
            ),
        ),
        Case::file(
            "five tables",
            with(&many(5, "(table 1 funcref)")),
            too_much(
                "module table does not fit in pooling allocator requirements: defined tables count of 5 \
                 exceeds the per-instance limit of 1",
            ),
        ),
        Case::file(
            "eighty thousand globals",
            with(&many(80_000, "(global i64 (i64.const 0))")),
            too_much(
                "module instance size does not fit in pooling allocator requirements: instance \
                 allocation for this module requires 1280176 bytes which exceeds the configured maximum \
                 of 1048576 bytes; breakdown of allocation requirement: * 99.99% - 1280000 bytes - \
                 defined globals",
            ),
        ),
        Case::file(
            "sixty memories",
            text(&format!("(component (core module $m (memory 1)) {instances})")),
            too_much(
                "The component transitively contains 60 Wasm linear memories, which exceeds the \
                 configured maximum of 1 in the pooling allocator",
            ),
        ),
        Case::file("components nested in components", nested(20), world("no export `configure` found")),
        Case::file(
            "nested past all bounds",
            nested(20_000),
            "the component nests components deeper than 32; compose it flatter".to_owned(),
        ),
        Case::file(
            "types that double",
            doubling(),
            invalid("failed to parse WebAssembly module: effective type size exceeds the limit of 1000000"),
        ),
        Case::file(
            "five thousand components",
            text(&format!("(component {})", many(5000, "(component)"))),
            invalid("failed to parse WebAssembly module: components count exceeds limit of 1000"),
        ),
    ])
    .await;
}

/// Each type contains the previous one twice, so the last contains the first 2^60 times.
fn doubling() -> Vec<u8> {
    let types: String = (1..60).map(|n| format!("(type $t{n} (tuple $t{} $t{}))", n - 1, n - 1)).collect();
    text(&format!("(component (type $t0 (tuple u8 u8)) {types} (export \"describe\" (type $t59)))"))
}

/// A component that contains another.
fn section_of(inner: &[u8]) -> Vec<u8> {
    const COMPONENT: u8 = 4;
    let mut outer = b"\0asm\x0d\0\x01\0".to_vec();
    outer.push(COMPONENT);
    let mut length = inner.len();
    while length >= 0x80 {
        outer.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    outer.push(u8::try_from(length).unwrap());
    outer.extend_from_slice(inner);
    outer
}

#[tokio::test]
async fn files_that_are_broken() {
    let good = Guest::new().build();
    let core = text("(module (func (export \"describe\")))");
    let mut twice = good.clone();
    twice.extend_from_slice(&good);
    let mut trailing = good.clone();
    trailing.extend_from_slice(b"and more");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 16].fill(0xff);
    refused(vec![
        Case::file(
            "a module of the core",
            core,
            "the file is a core WebAssembly module; it must be a component: build it with `triage \
                 policy build`"
                .to_owned(),
        ),
        Case::file(
            "precompiled",
            [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 4096]].concat(),
            "the file is precompiled native code; it must be a component, which the host compiles itself".to_owned(),
        ),
        Case::file(
            "a script",
            b"#!/bin/sh\nexit 0\n".to_vec(),
            invalid("it does not begin with WebAssembly's magic number"),
        ),
        Case::file("no bytes", Vec::new(), invalid("it does not begin with WebAssembly's magic number")),
        Case::file("zeros", vec![0; 1 << 16], invalid("it does not begin with WebAssembly's magic number")),
        Case::file(
            "a format to come",
            b"\0asm\x0e\0\x01\0".to_vec(),
            invalid("failed to parse WebAssembly module: unknown binary version: 0x1000e"),
        ),
        Case::file(
            "twice itself",
            twice,
            invalid("failed to parse WebAssembly module: expected section, got wasm magic number"),
        ),
        Case::file("trailing bytes", trailing, invalid("failed to parse WebAssembly module: unexpected end-of-file")),
        Case::file(
            "a hole in the middle",
            flipped,
            invalid("failed to parse WebAssembly module: invalid var_s33: integer representation too long"),
        ),
        Case::file(
            "a section of four thousand millions",
            b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\x0f".to_vec(),
            invalid("failed to parse WebAssembly module: module section is too large"),
        ),
    ])
    .await;
}

#[test]
fn a_component_cut_off_anywhere_is_none() {
    let engine = Engine::start().unwrap();
    let good = Guest::new().build();
    for cut in 0..good.len() {
        match Policy::load(&engine, &good[..cut], &LoadOptions::default()) {
            // At the end of a section the rest may be a valid component, but with too few exports.
            Err(LoadError::Invalid(_) | LoadError::World(_)) => {}
            // Only the custom section about the encoder is missing.
            Ok(policy) => assert_eq!(policy.description().name, "hostile", "{cut} of {}", good.len()),
            Err(error) => panic!("{cut} of {}: {error:?}", good.len()),
        }
    }
}

#[tokio::test]
async fn a_hundred_megabytes_are_not_read() {
    let stage = Stage::new(&[]).await;
    let beside = stage.path("new.tmp");
    let mut file = fs::File::create(&beside).unwrap();
    file.write_all(&fs::read(prebuilt("fhir")).unwrap()).unwrap();
    // A sparse file takes no space on the disk.
    file.set_len(100 << 20).unwrap();
    fs::rename(beside, stage.path("http-standard.wasm")).unwrap();
    let event = stage.until("refused", |event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { step, reason, digest, .. } = event else { unreachable!() };
    assert_eq!((step, digest), (StagePhase::Read, None));
    assert_eq!(reason, "the file has more than 67108864 bytes; files of at most that size are read");
    assert_eq!(stage.policy().await, "http-standard");
}
