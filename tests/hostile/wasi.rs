//! Guests that import WASI: they load, but get no access to anything.

use super::{
    guest::{Guest, SPIN},
    refusal::{failed, refused, spoilt},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::time::Duration;
use triage_engine::{
    Engine, Fault, LoadOptions, Policy, Tier,
    contract::{Attempt, Effect, Outcome, Purpose, Verdict},
};

/// The guest's verdict on a response with status 200.
fn decided(guest: &Guest) -> Result<Verdict, Fault> {
    let policy = Policy::load(&Engine::start().unwrap(), &guest.build(), &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(policy.tier(), Some(Tier::Wasi), "it imports WASI");
    let headers = HeaderMap::new();
    let attempt = Attempt {
        endpoint: 0,
        method: &http::Method::GET,
        effect: Effect::Safe,
        purpose: Purpose::Request,
        number: 1,
        prior_unknown: false,
        sent_ago: None,
        elapsed: Duration::ZERO,
        remaining: Duration::from_secs(1),
        previous_delay: Duration::ZERO,
        random: 0,
        now_unix_ms: 0,
        keyed: false,
        path: "/",
        request_headers: &headers,
        request_body: b"",
        taken: &[],
    };
    let body = Bytes::new();
    policy
        .decide(&attempt, &Outcome::Response { status: StatusCode::OK, headers: &headers, body: &body, complete: true })
}

fn importing(name: &str, function: &str, signature: &str) -> String {
    format!("(import \"wasi:{name}@0.2.3\" \"{function}\" (func $asked {signature}))")
}

/// Traps unless the code is true of the imported function's result.
fn holds(import: &str, body: &str) -> Result<Verdict, Fault> {
    decided(Guest::new().importing(import).decide(&format!("{body} (if (then) (else unreachable))")))
}

/// Code for the length of a list whose address and length are at 0x600.
const LENGTH: &str = "(call $asked (i32.const 0x600)) (i32.load (i32.const 0x604))";

#[test]
fn nothing_is_behind_it() {
    let denied = "(call $asked (i32.const 0) (i32.const 0x600))
        (i32.and (i32.eq (i32.load8_u (i32.const 0x600)) (i32.const 1))
                 (i32.eq (i32.load8_u (i32.const 0x604)) (i32.const 1)))";
    let twice = "(i64.eq (call $asked) (i64.const 0))";
    for (what, import, body) in [
        ("no environment", importing("cli/environment", "get-environment", "(param i32)"), format!("{LENGTH} i32.eqz")),
        ("no arguments", importing("cli/environment", "get-arguments", "(param i32)"), format!("{LENGTH} i32.eqz")),
        ("no files", importing("filesystem/preopens", "get-directories", "(param i32)"), format!("{LENGTH} i32.eqz")),
        (
            "no sockets",
            importing("sockets/tcp-create-socket", "create-tcp-socket", "(param i32 i32)"),
            denied.to_owned(),
        ),
        ("no clock", importing("clocks/monotonic-clock", "now", "(result i64)"), twice.to_owned()),
        (
            "no date",
            importing("clocks/wall-clock", "now", "(param i32)"),
            "(call $asked (i32.const 0x600)) (i64.eqz (i64.load (i32.const 0x600)))".to_owned(),
        ),
    ] {
        let verdict = holds(&import, &body).unwrap_or_else(|fault| panic!("{what}: {}", fault.with_cause()));
        assert_eq!(verdict.reason, "as set", "{what}");
        // The check is effective: its negation traps.
        let fault = holds(&import, &format!("{body} i32.eqz")).expect_err(what);
        assert_eq!(fault.name(), "trapped", "{what}: {}", fault.with_cause());
    }
}

#[test]
fn chance_is_the_same_each_time() {
    // Uses the random number as a wait, reduced to 16 bits, since it would be too long otherwise.
    let import = importing("random/random", "get-random-u64", "(result i64)");
    let body = "(i64.store (i32.const 0x410) (i64.and (call $asked) (i64.const 0xffff)))";
    let draw = || decided(Guest::new().retry(0).importing(&import).decide(body)).unwrap().next;
    assert_eq!(draw(), draw());
}

#[test]
fn a_guest_that_waits_is_stopped() {
    let import = importing("clocks/monotonic-clock", "subscribe-duration", "(param i64) (result i32)");
    let block = "(import \"wasi:io/poll@0.2.3\" \"[method]pollable.block\" (func $block (param i32)))";
    let wait = |ns: &str| {
        let body = format!("(call $block (call $asked (i64.const {ns})))");
        decided(Guest::new().importing(&import).importing(block).decide(&body))
    };
    assert!(wait("0").is_ok(), "what is over already");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for ns in ["1000000", "3600000000000", "-1"] {
            assert_eq!(wait(ns).unwrap_err().name(), "waited", "{ns} ns");
        }
        assert!(wait("0").is_ok(), "on a worker too");
    });
    // Without a runtime, as when candidates and files are checked.
    assert_eq!(wait("3600000000000").unwrap_err().name(), "waited");
}

#[test]
fn a_guest_that_hoards_spins_or_exits_is_stopped() {
    let import = importing("clocks/monotonic-clock", "subscribe-duration", "(param i64) (result i32)");
    let hoard = "(loop $more (drop (call $asked (i64.const 1))) (br $more))";
    let fault = decided(Guest::new().importing(&import).decide(hoard)).unwrap_err();
    assert_eq!(fault.name(), "trapped", "handles: {}", fault.with_cause());
    assert!(fault.with_cause().contains("resource table has no free keys"), "{}", fault.with_cause());
    let fault = decided(Guest::new().importing(&import).decide(SPIN)).unwrap_err();
    assert_eq!(fault.name(), "overran", "{}", fault.with_cause());
    let grow = "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        (if (i32.gt_u (memory.size) (i32.const 1024)) (then unreachable))";
    assert!(decided(Guest::new().importing(&import).decide(grow)).is_ok(), "memory ends at 64 MiB");
    let exit = importing("cli/exit", "exit", "(param i32)");
    let fault = decided(Guest::new().importing(&exit).decide("(call $asked (i32.const 0))")).unwrap_err();
    assert_eq!(fault.name(), "trapped", "{}", fault.with_cause());
}

#[tokio::test]
async fn it_is_refused_like_any_other() {
    let import = importing("cli/exit", "exit", "(param i32)");
    refused(vec![spoilt(
        "exit in describe",
        |guest| guest.importing(&import).describe("(call $asked (i32.const 0)) unreachable"),
        failed("describe", "Exited with i32 exit status 0"),
    )])
    .await;
}
