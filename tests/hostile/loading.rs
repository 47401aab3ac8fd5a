//! Components that spin, trap or return invalid pointers while loading: each is refused with an event that names the reason, and the
//! previous generation keeps serving.

use super::{
    guest::{Guest, SPIN, TRAP, at},
    refusal::{UNREACHABLE, failed, overran, refused, spoilt},
};
use crate::support::stage::Stage;

#[tokio::test]
async fn a_guest_that_does_everything_right_gets_in() {
    let stage = Stage::new(&[]).await;
    stage.drop_in(&Guest::new().build());
    stage.installed(2).await;
    assert_eq!(stage.policy().await, "hostile");
}

const GROW: &str = "(loop $more (drop (memory.grow (i32.const 16))) (br $more)) unreachable";
const DEEP: &str = "(func $deep (param i64 i64) (call $deep (local.get 1) (local.get 0)))";

#[tokio::test]
async fn a_guest_that_overruns_or_traps_at_load_is_refused() {
    refused(vec![
        spoilt("describe spins", |guest| guest.describe(SPIN), overran("describe")),
        spoilt("configure spins", |guest| guest.configure(SPIN), overran("configure")),
        spoilt("start spins", |guest| guest.more(&format!("(func $start {SPIN}) (start $start)")), overran("start")),
        spoilt("describe traps", |guest| guest.describe(TRAP), failed("describe", UNREACHABLE)),
        spoilt("configure traps", |guest| guest.configure(TRAP), failed("configure", UNREACHABLE)),
        spoilt(
            "start traps",
            |guest| guest.more(&format!("(func $start {TRAP}) (start $start)")),
            failed("start", UNREACHABLE),
        ),
        spoilt("describe hoards memory", |guest| guest.describe(GROW), overran("describe")),
        spoilt(
            "describe hoards a table",
            |guest| {
                guest.more("(table $table 1 funcref)").describe(
                    "(loop $more (drop (table.grow $table (ref.null func) (i32.const 1000))) (br $more)) unreachable",
                )
            },
            overran("describe"),
        ),
        spoilt(
            "describe recurses",
            |guest| guest.more(DEEP).describe("(call $deep (i64.const 1) (i64.const 2)) unreachable"),
            failed("describe", "wasm trap: call stack exhausted"),
        ),
        spoilt("realloc traps", |guest| guest.realloc(TRAP), failed("configure", UNREACHABLE)),
        spoilt("realloc spins", |guest| guest.realloc(SPIN), overran("configure")),
        spoilt(
            "realloc gives what is not there",
            |guest| guest.realloc("(i32.const 0x7fffffff)"),
            failed("configure", "realloc return: beyond end of memory"),
        ),
        spoilt(
            "realloc gives an end",
            |guest| guest.realloc("(i32.const 0x3ffff)"),
            failed("configure", "realloc return: beyond end of memory"),
        ),
        spoilt(
            "post-return traps",
            |guest| guest.more(&format!("(func (export \"cabi_post_describe\") (param i32) {TRAP})")),
            failed("describe", UNREACHABLE),
        ),
        spoilt(
            "post-return spins",
            |guest| guest.more(&format!("(func (export \"cabi_post_describe\") (param i32) {SPIN})")),
            overran("describe"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn pointers_outside_memory_are_refused_at_load() {
    const OUTSIDE: u32 = 0x4_0000;
    refused(vec![
        spoilt(
            "a result outside memory",
            |guest| guest.describe("(i32.const 0x40000)"),
            failed("describe", "pointer out of bounds of memory"),
        ),
        spoilt(
            "a result across the end",
            |guest| guest.describe("(i32.const 0x3fff0)"),
            failed("describe", "pointer out of bounds of memory"),
        ),
        spoilt(
            "a result at the end of all",
            |guest| guest.describe("(i32.const -4)"),
            failed("describe", "pointer out of bounds of memory"),
        ),
        spoilt(
            "a misaligned result",
            |guest| guest.describe("(i32.const 0x102)"),
            failed("describe", "return pointer not aligned"),
        ),
        spoilt(
            "a list outside memory",
            |guest| guest.pair(at::ENDPOINTS, OUTSIDE, 1),
            failed("describe", "list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a list across the end",
            |guest| guest.pair(at::ENDPOINTS, OUTSIDE - 8, 1),
            failed("describe", "list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a list that wraps around",
            |guest| guest.pair(at::ENDPOINTS, 0xffff_fff0, 0x4000_0000),
            failed("describe", "list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a list of two thousand millions",
            |guest| guest.word(at::ENDPOINTS + 4, 0x7fff_ffff),
            failed("describe", "list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a misaligned list",
            |guest| guest.word(at::ENDPOINTS, at::ENDPOINT + 2),
            failed("describe", "list pointer is not aligned"),
        ),
        spoilt(
            "a text outside memory",
            |guest| guest.pair(at::NAME, OUTSIDE, 1),
            failed("describe", "string pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a text across the end",
            |guest| guest.pair(at::VERSION, OUTSIDE - 8, 9),
            failed("describe", "string pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a text that wraps around",
            |guest| guest.pair(at::NAME, 0xffff_fff0, 0x100),
            failed("describe", "string pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a text as long as can be",
            |guest| guest.pair(at::VERSION, 0, u32::MAX),
            failed("describe", "string pointer/length out of bounds of memory"),
        ),
    ])
    .await;
}
