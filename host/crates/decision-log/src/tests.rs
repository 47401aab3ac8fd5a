#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::{
    admission::Groups,
    clock::{Clock, Timestamp},
    config,
    policy::{
        Engine, LoadOptions, Policy,
        contract::{
            Attempt, BreakerSignal, Class, Effect, Failure, FailureKind, Next, Outcome, Probe, Purpose, Verdict,
        },
        prebuilt,
    },
    rng::Rng,
    telemetry::Events,
    upstream_runtime::UpstreamRuntime,
};
use FailureKind::{Body, Connect, ConnectTimeout, Dns, Protocol, Reset, Send, Timeout, Tls};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{sync::Arc, time::Duration};

const SECRET: &str = "Meryem-Yilmaz";

fn embedded(name: &str) -> Arc<Policy> {
    let loading = LoadOptions { reuse_instances: true, ..LoadOptions::default() };
    Policy::load(&Engine::start().unwrap(), prebuilt::embedded(name).unwrap(), &loading).unwrap()
}

/// The index of an endpoint.
fn at(policy: &Policy, name: &str) -> usize {
    policy.description().endpoints.iter().position(|own| own.name == name).unwrap()
}

fn service(policy: &Arc<Policy>) -> UpstreamRuntime {
    let settings = config::for_upstream("http://api.invalid", "http-standard").unwrap();
    let clock = Clock::anchored(0);
    let gates = Groups::memory(clock, Rng::seeded(1), Arc::new(Events::new(clock)));
    let group = |name: &str, endpoint: &_| gates.group(name, endpoint);
    UpstreamRuntime::with_policy(&settings.upstreams[0], Arc::clone(policy), true, group).unwrap()
}

fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn attempt<'a>(endpoint: usize, request: &'a HeaderMap, body: &'a [u8], taken: &'a [String]) -> Attempt<'a> {
    Attempt {
        endpoint,
        method: &Method::POST,
        effect: Effect::Unsafe,
        purpose: Purpose::Request,
        number: 1,
        prior_unknown: false,
        sent_ago: Some(Duration::from_millis(20)),
        elapsed: Duration::from_millis(25),
        remaining: Duration::from_secs(10),
        previous_delay: Duration::ZERO,
        random: u64::MAX,
        now_unix_ms: 1_767_225_600_000,
        keyed: true,
        path: "/patients/Meryem-Yilmaz?born=1970",
        request_headers: request,
        request_body: body,
        taken,
    }
}

/// The recorder's lines after these outcomes, with the policy's own verdicts.
fn recorded(policy: &Arc<Policy>, method: &Method, contents: bool, asked: &Attempt<'_>, all: &[Outcome<'_>]) -> String {
    let (service, recorder, now) = (service(policy), Recorder::default(), Timestamp(0));
    recorder.start(contents, Duration::from_secs(60), now).unwrap();
    for outcome in all {
        let verdict = policy.decide(asked, outcome).unwrap();
        let judged = Judged::Verdict(&verdict);
        let shown = DecisionInput { service: &service, method, attempt: asked, outcome, judged };
        recorder.note(recorder.recording().unwrap(), &shown, now);
    }
    String::from_utf8(recorder.take(now).0).unwrap()
}

fn answer<'a>(status: u16, headers: &'a HeaderMap, body: &'a [u8]) -> Outcome<'a> {
    Outcome::Response { status: StatusCode::from_u16(status).unwrap(), headers, body, complete: true }
}

fn replayed(trace: &str, policy: &Policy) -> Report {
    replay(trace.as_bytes(), policy, "{}", 2)
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// Decision logs use the same names as headers, logs and test vectors.
#[test]
fn names_are_the_same_everywhere() {
    let name = |value: serde_json::Value| value.as_str().unwrap().to_owned();
    for class in
        [Class::Applied, Class::AlreadyApplied, Class::NotApplied, Class::Throttled, Class::Unknown, Class::Rejected]
    {
        assert_eq!(name(serde_json::to_value(class).unwrap()), class.name());
    }
    for effect in [Effect::Safe, Effect::Idempotent, Effect::Unsafe] {
        assert_eq!(name(serde_json::to_value(effect).unwrap()), effect.name());
    }
    for kind in [Dns, Connect, ConnectTimeout, Tls, Send, Reset, Timeout, Protocol, Body] {
        assert_eq!(name(serde_json::to_value(kind).unwrap()), kind.name());
    }
}

#[test]
fn without_contents_nothing_of_the_caller_or_the_upstream_is_in_a_trace() {
    let policy = embedded("fhir");
    let create = policy.description().endpoints.iter().position(|own| own.effect == Effect::Unsafe).unwrap();
    let request = headers(&[("if-none-exist", SECRET), ("if-match", SECRET), ("authorization", SECRET)]);
    let response = headers(&[("retry-after", "7"), ("location", SECRET), ("x-patient", SECRET)]);
    let odd = headers(&[("retry-after", SECRET)]);
    let taken = [SECRET.to_owned()];
    let asked = attempt(create, &request, SECRET.as_bytes(), &taken);
    let all = [answer(503, &response, SECRET.as_bytes()), answer(429, &odd, b"")];
    let method = Method::from_bytes(SECRET.as_bytes()).unwrap();
    let without = recorded(&policy, &method, false, &asked, &all);
    assert!(!without.contains(SECRET) && !without.contains("1970"), "{without}");
    assert!(without.contains("[\"retry-after\",\"7\"]"), "a number of seconds says nothing of anybody: {without}");
    assert!(without.contains("[\"retry-after\",null]"), "{without}");
    let with = recorded(&policy, &method, true, &asked, &all);
    assert!(with.contains("\"path\":\"/patients/Meryem-Yilmaz?born=1970\""), "{with}");
    assert!(with.contains(SECRET) && !with.contains("authorization"), "only what the policy reads: {with}");
}

#[test]
fn a_verdicts_own_words_are_contents_too() {
    let probe = Probe {
        method: Method::GET,
        path_and_query: format!("/{SECRET}"),
        headers: HeaderMap::new(),
        delay: Duration::from_millis(5),
    };
    let verdict = Verdict {
        class: Class::Unknown,
        breaker: BreakerSignal::Failure,
        next: Next::Verify(probe),
        claim: Some(SECRET.to_owned()),
        pause: Some(Duration::from_secs(1)),
        reason: SECRET.to_owned(),
    };
    let shown = |contents| serde_json::to_string(&format::RecordedVerdict::of(&verdict, contents)).unwrap();
    let expected =
        r#"{"class":"unknown","breaker":"failure","next":"verify","delay_ms":5,"pause_ms":1000,"claims":true}"#;
    assert_eq!(shown(false), expected);
    assert_eq!(shown(true).matches(SECRET).count(), 3, "{}", shown(true));
}

#[test]
fn a_policy_agrees_with_its_own_trace() {
    for name in prebuilt::names() {
        let policy = embedded(name);
        let (request, response) = (headers(&[("if-none-exist", "a=b")]), headers(&[("retry-after", "3")]));
        let mut trace = String::new();
        let mut asked_for = 0;
        for endpoint in 0..policy.description().endpoints.len() {
            let mut asked = attempt(endpoint, &request, b"{\"name\": \"\xc3\xa9\xff\"}", &[]);
            let described = &policy.description().endpoints[endpoint];
            asked.effect = described.effect.max(described.method.as_ref().map_or(Effect::Safe, Effect::of));
            // A path of the endpoint, as a log with contents has it. Two segments for `{*rest}`, because one may match another endpoint.
            let path = described.path.replace("{*rest}", "rest/1").replace(['{', '}', '*'], "");
            asked.path = &path;
            let all: Vec<Outcome<'_>> = [200, 201, 301, 400, 404, 409, 412, 429, 500, 503]
                .map(|status| answer(status, &response, b"{\"issue\": [{\"code\": \"throttled\"}]}"))
                .into_iter()
                .chain([Reset, Timeout].map(|kind| Outcome::Failure(Failure::new(kind, true))))
                .collect();
            asked_for += all.len() as u64;
            let method = described.method.clone().unwrap_or(Method::GET);
            trace.push_str(&recorded(&policy, &method, true, &asked, &all));
        }
        let report = replayed(&trace, &policy);
        // Outcomes that the status settles never reach the policy, which may return another verdict for them.
        let own = report.differences.keys().filter(|own| !own.now.starts_with("applied, success, deliver"));
        assert_eq!(own.collect::<Vec<_>>(), Vec::<&Difference>::new(), "{name}");
        assert_eq!((report.decisions, report.replayed()), (asked_for, asked_for), "{name}: {report}");
    }
}

#[test]
fn a_replay_groups_the_verdicts_that_differ() {
    let (policy, nothing) = (embedded("http-standard"), HeaderMap::new());
    let mut asked = attempt(at(&policy, "any"), &nothing, b"", &[]);
    asked.effect = Effect::Safe;
    let all: Vec<Outcome<'_>> = [503, 503, 404, 503].map(|status| answer(status, &nothing, b"")).into_iter().collect();
    let trace = recorded(&policy, &Method::GET, false, &asked, &all);
    let agreed = replayed(&trace, &policy);
    assert!(agreed.agrees(), "{agreed}");
    assert!(agreed.to_string().ends_with("no verdict differs\n"), "{agreed}");
    let report = replayed(&trace.replace("\"retry\"", "\"deliver\""), &policy);
    let difference = Difference {
        endpoint: "any".to_owned(),
        outcome: "503".to_owned(),
        then: "unknown, failure, deliver".to_owned(),
        now: "unknown, failure, retry".to_owned(),
    };
    assert_eq!(report.differences.iter().collect::<Vec<_>>(), [(&difference, &(3, 2))], "{report}");
    assert!(!report.agrees());
    let shown =
        "3 verdicts differ:\n         3  any 503: unknown, failure, deliver -> unknown, failure, retry  (line 2)\n";
    assert!(report.to_string().ends_with(shown), "{report}");
    let report = replayed(&trace.replace("\"delay_ms\":", "\"delay_ms\":1"), &policy);
    assert!(report.to_string().contains("-> the same with another wait"), "{report}");
}

/// Without contents, a decision that needs them is counted and not compared.
#[test]
fn a_replay_counts_decisions_that_lack_content() {
    let (fhir, directory, standard) = (embedded("fhir"), embedded("hospital-directory"), embedded("http-standard"));
    let (conditional, create, any) = (at(&fhir, "create"), at(&directory, "create-hospital"), at(&standard, "any"));
    let (request, response) = (headers(&[("if-none-exist", "a=b")]), headers(&[("retry-after", "x")]));
    let nothing = HeaderMap::new();
    let taken = [String::from("a")];
    for (what, policy, asked, outcome, missing) in [
        ("a path", &fhir, attempt(conditional, &request, b"", &[]), answer(503, &nothing, b""), Some(Missing::Path)),
        (
            "an odd retry-after",
            &standard,
            attempt(any, &nothing, b"", &[]),
            answer(503, &response, b""),
            Some(Missing::Headers),
        ),
        (
            "a body",
            &directory,
            attempt(create, &nothing, b"", &[]),
            answer(500, &nothing, b"{}"),
            Some(Missing::Bodies),
        ),
        (
            "claims",
            &directory,
            attempt(create, &nothing, b"", &taken),
            answer(500, &nothing, b""),
            Some(Missing::Claims),
        ),
        ("nothing", &directory, attempt(create, &nothing, b"", &[]), answer(500, &nothing, b""), None),
    ] {
        let trace = recorded(policy, &Method::POST, false, &asked, &[outcome]);
        let report = replayed(&trace, policy);
        assert_eq!(report.not_replayed.keys().copied().next(), missing, "{what}: {trace}");
        assert_eq!((report.differing, report.agrees()), (0, missing.is_none()), "{what}: {report}");
        let trace = recorded(policy, &Method::POST, true, &asked, &[outcome]);
        let report = replayed(&trace, policy);
        assert!(report.agrees(), "{what}, with contents: {report}\n{trace}");
    }
}

/// If the candidate has other endpoints, the path is needed to find the endpoint of a request.
#[test]
fn other_endpoints_need_the_path() {
    let (policy, nothing) = (embedded("http-standard"), HeaderMap::new());
    let mut asked = attempt(at(&policy, "any"), &nothing, b"", &[]);
    asked.effect = Effect::Safe;
    let mut path = |path: &'static str, contents| {
        asked.path = path;
        recorded(&policy, &Method::GET, contents, &asked, &[answer(404, &nothing, b"")])
    };
    let candidate = embedded("hospital-directory");
    let report = replayed(&path("/hospitals/7", false), &candidate);
    assert_eq!(report.not_replayed.get(&Missing::Path), Some(&1), "{report}");
    let shown = "  1 could not be replayed faithfully: the path was not recorded\n  record with --contents to include the omitted parts; the trace is confidential then\n";
    assert!(report.to_string().contains(shown), "{report}");
    let report = replayed(&path("/hospitals/7", true), &candidate);
    // The path is known, but the recorded policy did not read the part of the response that this endpoint reads.
    assert_eq!(report.not_replayed.get(&Missing::Path), None, "{report}");
}

#[test]
fn the_error_for_an_invalid_trace_names_its_line() {
    let (policy, nothing) = (Policy::builtin(), HeaderMap::new());
    let asked = attempt(0, &nothing, b"", &[]);
    let good = recorded(&policy, &Method::GET, false, &asked, &[answer(404, &nothing, b"")]);
    let (head, decision) = good.split_once('\n').unwrap();
    let shown = |trace: &str| match replay(trace.as_bytes(), &policy, "{}", 2) {
        Ok(report) => report.to_string(),
        Err(error) => {
            format!("{error}: {}", std::error::Error::source(&error).map_or_else(String::new, ToString::to_string))
        }
    };
    for (what, trace, expected) in [
        ("nothing", String::new(), "the trace holds no decision"),
        ("a head alone", format!("{head}\n"), "the trace holds no decision"),
        (
            "no head",
            decision.to_owned(),
            "line 1 is not a line of a trace; name a file that `triage record` wrote: no earlier head",
        ),
        (
            "another format",
            head.replace("\"triage-trace\":1", "\"triage-trace\":2"),
            "line 1 is not a line of a trace; name a file that `triage record` wrote: the trace has format 2; this version reads format 1",
        ),
        ("an endpoint that is none", good.replace("\"endpoint\":0", "\"endpoint\":1"), "line 2 is not"),
        ("a status that is none", good.replace("\"status\":404", "\"status\":99"), "the status is not an HTTP status"),
        (
            "both outcomes",
            good.replace("\"status\":404", "\"status\":404,\"failure\":\"reset\""),
            "either a status or a failure",
        ),
        (
            "no verdict",
            good.replace("\"verdict\"", "\"word\""),
            "a decision has a verdict, or a fault, or it was settled",
        ),
        ("no JSON", format!("{good}{{\n{good}"), "line 3 is not a line of a trace"),
        (
            "too many headers",
            good.replace(
                "\"status\":404",
                &format!("\"status\":404,\"response\":{{\"headers\":[{}]}}", vec!["[\"a\",\"b\"]"; 1025].join(",")),
            ),
            "the line has too many headers",
        ),
    ] {
        let shown = shown(&trace);
        assert!(shown.contains(expected), "{what}: {shown}");
    }
    let cut = format!("{good}{}", &decision[..decision.len() / 2]);
    assert!(shown(&cut).contains("the last line is incomplete and was skipped"), "{}", shown(&cut));
}

/// An invalid line early in a long log ends the replay and all its threads.
#[test]
fn a_long_trace_with_a_wrong_line_ends() {
    let (policy, nothing) = (Policy::builtin(), HeaderMap::new());
    let asked = attempt(0, &nothing, b"", &[]);
    let good = recorded(&policy, &Method::GET, false, &asked, &[answer(404, &nothing, b"")]);
    let (head, decision) = good.split_once('\n').unwrap();
    let long = format!("{head}\n{decision}x\n{}", decision.repeat(20_000));
    let error = replay(long.as_bytes(), &policy, "{}", 2).unwrap_err();
    assert!(matches!(error, ReplayError::Line { line: 3, .. }), "{error}");
}

#[test]
fn numbers_of_lines_and_heads_hold_over_takes_and_gaps() {
    let (policy, nothing) = (Policy::builtin(), HeaderMap::new());
    let asked = attempt(0, &nothing, b"", &[]);
    let good = recorded(&policy, &Method::GET, false, &asked, &[answer(404, &nothing, b"")]);
    let wrong = good.replace("\"rejected\"", "\"applied\"");
    let trace = format!("{good}{{\"dropped\":5}}\n\n{good}{wrong}");
    let report = replayed(&trace, &policy);
    assert_eq!((report.decisions, report.dropped, report.recorded.len()), (3, 5, 1), "{report}");
    assert_eq!(report.differences.values().collect::<Vec<_>>(), [&(1, 8)], "{report}");
}

#[test]
fn a_recording_is_bounded_counts_what_it_drops_and_ends_by_itself() {
    let (policy, recorder) = (Policy::builtin(), Recorder::default());
    let (service, nothing, now) = (service(&policy), HeaderMap::new(), Timestamp(0));
    assert_eq!(recorder.recording(), None);
    recorder.start(false, Duration::from_secs(60), now).unwrap();
    assert_eq!(recorder.start(true, Duration::from_secs(1), now).unwrap_err(), AlreadyRecording);
    let outcome = answer(404, &nothing, b"");
    let asked = attempt(0, &nothing, b"", &[]);
    let (method, judged) = (Method::GET, Judged::Fault("trapped"));
    let shown = DecisionInput { service: &service, method: &method, attempt: &asked, outcome: &outcome, judged };
    let recording = recorder.recording().unwrap();
    let mut noted = 0_u64;
    while recorder.view(now).dropped < 10 {
        recorder.note(recording, &shown, now);
        noted += 1;
    }
    let view = recorder.view(now);
    assert_eq!((view.decisions, view.dropped), (noted - 10, 10));
    assert!(view.bytes > 7 << 20 && view.bytes <= 8 << 20, "{view:?}");
    let (lines, first) = recorder.take(now);
    assert!(
        first && lines.ends_with(b"\n{\"dropped\":10}\n"),
        "{}",
        String::from_utf8_lossy(&lines[lines.len() - 200..])
    );
    recorder.note(recording, &shown, now);
    let (lines, first) = recorder.take(now);
    assert!(!first && lines.starts_with(b"{\"triage-trace\":1,"), "a take is a trace by itself");
    // The recording ends after a minute.
    let later = now.after(Duration::from_secs(60));
    recorder.note(recording, &shown, later);
    assert_eq!((recorder.recording(), recorder.view(later).recording), (None, false));
    assert_eq!(recorder.take(later).0, b"");
    // A decision that began under one recording is not added to another.
    recorder.start(false, Duration::from_secs(60), later).unwrap();
    recorder.note(recording, &shown, later);
    assert_eq!(recorder.view(later).decisions, 0);
    recorder.note(recorder.recording().unwrap(), &shown, later);
    recorder.stop(later);
    recorder.purge_expired(later.after(Duration::from_mins(5)));
    assert!(recorder.view(later).bytes > 0, "it is still there to be taken");
    recorder.purge_expired(later.after(Duration::from_mins(11)));
    assert_eq!(recorder.view(later).bytes, 0);
}
