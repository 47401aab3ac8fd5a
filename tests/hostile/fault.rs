//! Guests that fail in `decide`: the fallback handles every request, no unsafe one is sent twice, and the third fault rolls back to the
//! good policy, with an event that names the fault.

use super::guest::{Guest, REPLACE, SPIN, TRAP, at};
use crate::support::stage::Stage;
use triage_engine::Digest;
use triage_rollout::Event;
use triage_upstream_runtime::StagePhase;

/// A name, a guest and its last fault, as the event reports it.
struct Case(&'static str, Guest, String);

fn spoilt(what: &'static str, spoil: impl FnOnce(&mut Guest) -> &mut Guest, fault: String) -> Case {
    let mut guest = Guest::new();
    spoil(&mut guest);
    Case(what, guest, fault)
}

const OVERRAN: &str = "the policy ran longer than 5 ms; the host stopped the call";

const UNREACHABLE: &str = "wasm trap: wasm `unreachable` instruction executed";
const NOT_UTF8: &str = "invalid utf-8 sequence of 1 bytes from index 2";
const TOO_MUCH: &str = "too much data is being copied between the host and the guest: fuel allocated for hostcalls has \
                        been exhausted";

fn overran() -> String {
    OVERRAN.to_owned()
}

const COSTLY: &str = "a decision took more than 10 ms of processor time, the creation and reset of the policy's instance included; make the policy touch less memory";

fn trapped(cause: &str) -> String {
    format!("the policy trapped: {cause}")
}

fn invalid(cause: &str) -> String {
    format!("the policy's verdict is invalid: {cause}")
}

/// Serves every guest in one host, one after the other, and sends requests until it is rolled back.
async fn found_out(cases: Vec<Case>) {
    let stage = Stage::new(&[]).await;
    let mut wrong = Vec::new();
    for (Case(what, guest, fault), generation) in cases.into_iter().zip(2..) {
        let bytes = guest.build();
        let own = Digest::of(&bytes);
        stage.drop_in(&bytes);
        stage.loaded(what, own).await;
        // An unsafe request with unknown effect is sent once, and no verdict settles it.
        let before = stage.seen().len();
        let lost = stage.front.send("POST", "/a", "", "{}").await;
        // A costly decision may still end in time; then its policy delivers the upstream's response.
        let is_costly = fault == COSTLY;
        if !is_costly || lost.status() != "503" {
            assert_eq!(lost.status(), "504", "{what}: {}", lost.text());
            assert!(lost.text().contains("effect-unknown"), "{what}: {}", lost.text());
        }
        assert_eq!(stage.seen().len(), before + 1, "{what}: sent once");
        // The fallback delivers the response to a safe request.
        let event =
            stage.until(what, |event| matches!(event, Event::RolledBack { digest, .. } if *digest == Some(own))).await;
        let shown = event.to_string();
        // On a busy machine, a slow decision may succeed once before the clock of its time limit ticks.
        let Event::RolledBack { decisions, .. } = event else { unreachable!() };
        let wanted = |fault: &str| {
            format!(
                "generation {generation} ({}) failed 3 of {decisions} decisions, the last time: {fault}; the policy of generation 1 serves \
                 again; the component is quarantined: fix it and copy it into the folder again",
                own.short()
            )
        };
        // On a busy machine, the limit on elapsed time may apply before the one on processor time.
        if shown != wanted(&fault) && !(is_costly && shown == wanted(OVERRAN)) {
            wrong.push(format!("{what}:\n     got {shown}\n  wanted {}", wanted(&fault)));
        }
        assert_eq!(stage.policy().await, "http-standard", "{what}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_decision_that_overruns_or_traps_is_a_fault() {
    const HOARD: &str = "(loop $more (drop (memory.grow (i32.const 16))) (br $more))";
    let slow = "(local $left i32) (local.set $left (i32.const 40000000))
        (loop $more (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))";
    found_out(vec![
        spoilt("spins", |guest| guest.decide(SPIN), overran()),
        spoilt("traps", |guest| guest.decide(TRAP), trapped(UNREACHABLE)),
        spoilt(
            "divides by nothing",
            |guest| guest.decide("(drop (i32.div_u (i32.const 1) (i32.const 0)))"),
            trapped("wasm trap: integer divide by zero"),
        ),
        spoilt(
            "reads past its memory",
            |guest| guest.decide("(drop (i32.load (i32.const -1)))"),
            trapped("memory fault at wasm address 0xffffffff in linear memory of size 0x40000"),
        ),
        spoilt("hoards memory", |guest| guest.decide(HOARD), overran()),
        spoilt(
            "touches all the memory there is",
            |guest| {
                guest.decide(
                    "(drop (memory.grow (i32.const 252)))
                     (loop $more (memory.fill (i32.const 0x20000) (i32.const 1) (i32.const 0xfe0000)) (br $more))",
                )
            },
            overran(),
        ),
        // Without a loop no epoch interrupts it. The cost is allocating and clearing the pages.
        spoilt(
            "touches all the memory there is, and returns",
            |guest| {
                let fill = "(memory.fill (i32.const 0x20000) (i32.const 1) (i32.const 0xfe0000))".repeat(10);
                guest.decide(&format!("(drop (memory.grow (i32.const 252))) {fill}"))
            },
            COSTLY.to_owned(),
        ),
        spoilt(
            "hoards a table",
            |guest| {
                guest
                    .more("(table $table 1 funcref)")
                    .decide("(loop $more (drop (table.grow $table (ref.null func) (i32.const 1000))) (br $more))")
            },
            overran(),
        ),
        spoilt(
            "recurses",
            |guest| {
                guest
                    .more("(func $deep (param i64 i64) (call $deep (local.get 1) (local.get 0)))")
                    .decide("(call $deep (i64.const 1) (i64.const 2))")
            },
            trapped("wasm trap: call stack exhausted"),
        ),
        spoilt(
            "calls itself round and round",
            |guest| guest.decide("(drop (call $decide (i32.const 0)))"),
            trapped("wasm trap: call stack exhausted"),
        ),
        spoilt("is slow to configure", |guest| guest.configure(slow), overran()),
        spoilt("is slow to start", |guest| guest.more(&format!("(func $start {slow}) (start $start)")), overran()),
        spoilt(
            "traps after its return",
            |guest| guest.more("(func (export \"cabi_post_decide\") (param i32) unreachable)"),
            trapped(UNREACHABLE),
        ),
        spoilt(
            "spins after its return",
            |guest| guest.more(&format!("(func (export \"cabi_post_decide\") (param i32) {SPIN})")),
            overran(),
        ),
        // `configure` allocates two bytes, `decide` its arguments.
        spoilt("traps where the attempt should go", |guest| guest.realloc(&for_decide(TRAP)), trapped(UNREACHABLE)),
        spoilt("spins where the attempt should go", |guest| guest.realloc(&for_decide(SPIN)), overran()),
        spoilt(
            "puts the attempt outside",
            |guest| guest.realloc(&for_decide("(i32.const 0x3fff0)")),
            trapped("realloc return: beyond end of memory"),
        ),
        spoilt(
            "puts the attempt far outside",
            |guest| guest.realloc(&for_decide("(i32.const -16)")),
            trapped("realloc return: beyond end of memory"),
        ),
        spoilt(
            "puts the attempt askew",
            |guest| guest.realloc(&for_decide("(i32.const 0x20001)")),
            trapped("realloc return: result not aligned"),
        ),
    ])
    .await;
}

/// A body of `cabi_realloc` that applies only to allocations larger than `configure`'s argument.
fn for_decide(body: &str) -> String {
    format!("(if (result i32) (i32.gt_u (local.get $size) (i32.const 8)) (then {body}) (else (i32.const 0x20000)))")
}

#[tokio::test]
async fn an_invalid_verdict_is_a_fault() {
    const BROKEN: &[u8] = b"ok\xff";
    found_out(vec![
        spoilt("no class", |guest| guest.byte(at::CLASS, 6), trapped("unexpected discriminant: 6")),
        spoilt("no signal", |guest| guest.byte(at::BREAKER, 3), trapped("unexpected discriminant: 3")),
        spoilt("no next", |guest| guest.byte(at::NEXT, 4), trapped("unexpected discriminant: 4")),
        spoilt("no option", |guest| guest.byte(at::PAUSE, 2), trapped("invalid option discriminant")),
        spoilt("a reason that is no text", |guest| guest.text(at::REASON, BROKEN), trapped(NOT_UTF8)),
        spoilt(
            "a claim that is no text",
            |guest| guest.byte(at::CLAIM, 1).text(at::CLAIM + 4, BROKEN),
            trapped(NOT_UTF8),
        ),
        spoilt(
            "a path that is no text",
            |guest| guest.probe("GET", "/", &[]).text(at::PROBE_PATH, BROKEN),
            trapped(NOT_UTF8),
        ),
        spoilt(
            "a method that is no text",
            |guest| guest.probe("GET", "/", &[]).text(at::PROBE_METHOD, BROKEN),
            trapped(NOT_UTF8),
        ),
        spoilt(
            "a reason outside memory",
            |guest| guest.pair(at::REASON, 0x4_0000, 1),
            trapped("string pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a reason without end",
            |guest| guest.pair(at::REASON, 0, u32::MAX),
            trapped("string pointer/length out of bounds of memory"),
        ),
        spoilt("a reason of 3 MiB", |guest| guest.pages(64).pair(at::REASON, 0, 3 << 20), trapped(TOO_MUCH)),
        spoilt(
            "a body outside memory",
            |guest| guest.replacement(200, &[]).pair(at::REPLACEMENT_BODY, 8, 0x4_0000),
            trapped("list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "a body of 3 MiB",
            |guest| guest.pages(64).replacement(200, &[]).pair(at::REPLACEMENT_BODY, 8, 3 << 20),
            trapped(TOO_MUCH),
        ),
        spoilt(
            "headers askew",
            |guest| guest.replacement(200, &[("a", "b")]).word(at::REPLACEMENT_HEADERS, 0x1002),
            trapped("list pointer is not aligned"),
        ),
        spoilt(
            "headers without end",
            |guest| guest.byte(at::NEXT, REPLACE).pair(at::REPLACEMENT_HEADERS, 0x1000, 0x0fff_ffff),
            trapped("list pointer/length out of bounds of memory"),
        ),
        spoilt(
            "33 headers",
            |guest| guest.replacement(200, &[("a", "b"); 33]),
            invalid("the verdict has 33 headers; at most 32 are allowed"),
        ),
        spoilt(
            "300000 headers",
            |guest| guest.pages(80).replacement(200, &[]).pair(at::REPLACEMENT_HEADERS, 0x2_0000, 300_000),
            trapped(TOO_MUCH),
        ),
        spoilt("an empty claim", |guest| guest.byte(at::CLAIM, 1), invalid("a claim must have 1 to 512 bytes; got 0")),
        spoilt(
            "a claim of 513 bytes",
            |guest| guest.byte(at::CLAIM, 1).text(at::CLAIM + 4, "c".repeat(513)),
            invalid("a claim must have 1 to 512 bytes; got 513"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn probes_of_what_is_not_the_upstreams() {
    let path = |what, path: &'static str| {
        let cause = format!(
            "a probe must be a GET, HEAD or OPTIONS of a plain path on the same upstream that starts with one '/'; got \
             another path, of {} bytes",
            path.len()
        );
        spoilt(what, |guest| guest.probe("GET", path, &[]), invalid(&cause))
    };
    let method = |what, method: &'static str| {
        let shown = method.replace(['\r', '\n'], " ");
        let cause = format!(
            "a probe must be a GET, HEAD or OPTIONS of a plain path on the same upstream that starts with one '/'; got \
             method {shown:?}"
        );
        spoilt(what, |guest| guest.probe(method, "/", &[]), invalid(&cause))
    };
    found_out(vec![
        path("another host", "http://elsewhere.invalid/"),
        path("another host by the same scheme", "//elsewhere.invalid/"),
        path("another host with a backslash", "/\\elsewhere.invalid/"),
        path("another host after an @", "@elsewhere.invalid/"),
        path("another port", ":22/"),
        path("a file", "file:///etc/passwd"),
        path("nothing", ""),
        path("a second request", "/ HTTP/1.1\r\nhost: elsewhere.invalid\r\n\r\nDELETE /"),
        path("a line feed", "/a\nb"),
        path("a zero", "/a\0b"),
        path("a space", "/a b"),
        path("a way up", "/../admin"),
        path("a way up in disguise", "/%2e%2e/admin"),
        path("a fragment", "#top"),
        method("a write", "POST"),
        method("a delete", "DELETE"),
        method("a tunnel", "CONNECT"),
        method("lower case", "get"),
        method("a second request by its method", "GET / HTTP/1.1\r\nhost: b"),
        method("no method", ""),
    ])
    .await;
}

#[tokio::test]
async fn headers_that_are_not_a_policys() {
    let names = [
        ("content-length", "5"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("host", "elsewhere.invalid"),
        ("te", "trailers"),
        ("trailer", "a"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("authorization", "Bearer stolen"),
        ("Authorization", "Bearer stolen"),
        ("cookie", "session=stolen"),
        ("set-cookie", "session=fixed"),
        ("forwarded", "for=127.0.0.1"),
        ("via", "1.1 elsewhere"),
        ("x-forwarded-for", "127.0.0.1"),
        ("triage-verdict", "applied"),
        ("", "no name"),
        ("a b", "a space"),
        ("a\r\nset-cookie", "a line break in the name"),
        ("a:", "a colon"),
        ("line-break", "a\r\nset-cookie: session=fixed"),
        ("line-feed", "a\nb"),
        ("zero", "a\0b"),
        ("beyond-latin-1", "\u{20ac}"),
    ];
    let mut cases = Vec::new();
    for (name, value) in names {
        let shown = name.replace(['\r', '\n'], " ");
        let fault = invalid(&format!("header {shown:?} is malformed, or a policy must not set it"));
        cases.push(spoilt("in a probe", |guest| guest.probe("GET", "/", &[(name, value)]), fault.clone()));
        cases.push(spoilt("in a replacement", |guest| guest.replacement(200, &[(name, value)]), fault));
    }
    found_out(cases).await;
}

#[tokio::test]
async fn replacements_that_are_no_final_answer() {
    let statuses = [0, 99, 100, 101, 103, 199, 600, 999, 1000, u16::MAX];
    let case = |status| {
        let fault = invalid(&format!("a replacement's status must be from 200 to 599; got {status}"));
        spoilt("a status", |guest| guest.replacement(status, &[]), fault)
    };
    found_out(statuses.into_iter().map(case).collect()).await;
}

#[tokio::test]
async fn a_component_that_was_rolled_back_is_not_loaded_again() {
    let stage = Stage::new(&[]).await;
    let bytes = Guest::new().decide(SPIN).build();
    stage.drop_in(&bytes);
    stage.until("rolled back", |event| matches!(event, Event::RolledBack { faults: 3, decisions: 3, .. })).await;
    stage.drop_in(&bytes);
    let event = stage.until("refused", |event| matches!(event, Event::Refused { .. })).await;
    let Event::Refused { step: StagePhase::Quarantine, reason, .. } = &event else { panic!("{event}") };
    assert_eq!(reason, "this component was rolled back before; fix it: the host does not load the same bytes again");
}

/// A policy that proved itself but failed later must not become a rollback target again.
#[tokio::test]
async fn a_good_generation_that_went_bad_is_never_fallen_back_to() {
    let stage = Stage::new(&[]).await;
    // It works until it sees an unsafe request.
    let turncoat = "(if (i32.eq (i32.load8_u offset=4 (local.get 0)) (i32.const 2)) (then unreachable))";
    let bytes = Guest::new().decide(turncoat).build();
    stage.drop_in(&bytes);
    stage.loaded("turncoat", Digest::of(&bytes)).await;
    stage.policy().await;
    let promoted = stage.front.admin("POST", "/api/v1/policies/api/promote", "", "").await;
    assert_eq!(promoted.status(), "200", "{}", promoted.text());
    for _ in 0..3 {
        stage.front.send("POST", "/a", "", "{}").await;
    }
    stage.until("back to 1", |event| matches!(event, Event::RolledBack { generation: 2, to: Some(1), .. })).await;
    stage.drop_in(&Guest::new().decide(TRAP).build());
    let event = stage.until("out", |event| matches!(event, Event::RolledBack { generation: 3, .. })).await;
    assert!(matches!(event, Event::RolledBack { to: Some(1), .. }), "{event}");
    assert_eq!(stage.policy().await, "http-standard");
}

/// A panic's text may quote the request, so the event names the place alone.
#[tokio::test]
async fn a_panic_is_told_by_its_place() {
    let stage = Stage::new(&[]).await;
    stage.drop_guest("panic");
    stage.installed(2).await;
    for _ in 0..3 {
        stage.front.send("GET", "/s3cret", "", "").await;
    }
    let event = stage.until("panic", |event| matches!(event, Event::RolledBack { .. })).await.to_string();
    assert!(event.contains("the last time: the policy panicked at testing/panic/src/lib.rs:17:9;"), "{event}");
    assert!(!event.contains("s3cret"), "{event}");
}
