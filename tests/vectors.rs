//! Every row of the test vectors, through the real engine and the built component.

mod languages;
mod safety;
mod typings;

use std::time::Duration;
use triage_engine::{Engine, LoadOptions, Policy, golden_tests, hints, prebuilt};

/// The component under test: the embedded one, or one of `TRIAGE_PREBUILT`, which the rebuild check sets.
fn component(name: &str) -> Vec<u8> {
    match std::env::var_os("TRIAGE_PREBUILT") {
        Some(folder) => std::fs::read(std::path::Path::new(&folder).join(format!("{name}.wasm"))).unwrap(),
        None => prebuilt::embedded(name).unwrap().to_vec(),
    }
}

fn play(name: &str, csv: &str) {
    let engine = Engine::start().unwrap();
    let policy =
        Policy::load(&engine, &component(name), &LoadOptions::default()).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    play_on(name, &policy, csv);
}

fn play_on(name: &str, policy: &Policy, csv: &str) {
    let played = golden_tests::play(policy, csv).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(played > 30, "{name}: only {played} rows");
    // The operator trusts embedded policies. Only these may say less of a method, such as `safe` of a search by POST.
    let rows: Vec<&str> = csv.lines().filter(|line| !line.contains("a search, though it is a POST")).collect();
    golden_tests::play_clamped(policy, &rows.join("\n"), true)
        .unwrap_or_else(|error| panic!("{name}, clamped: {error}"));
}

#[test]
fn http_standard() {
    play("http-standard", include_str!("vectors/http-standard.csv"));
}

#[test]
fn the_built_in_policy() {
    play_on("builtin", &Policy::builtin(), include_str!("vectors/http-standard.csv"));
}

#[test]
fn hospital_directory() {
    play("hospital-directory", include_str!("vectors/hospital-directory.csv"));
}

#[test]
fn fhir() {
    play("fhir", include_str!("vectors/fhir.csv"));
}

/// One table of requested waits, which the host and the SDK in a component must read alike.
#[test]
fn host_and_sdk_read_retry_after_alike() {
    let engine = Engine::start().unwrap();
    let policy = Policy::load(&engine, &component("http-standard"), &LoadOptions::default()).unwrap();
    let head = include_str!("vectors/http-standard.csv").lines().next().unwrap();
    let mut played = 0;
    for row in csv::Reader::from_reader(&include_bytes!("vectors/retry-after.csv")[..]).records() {
        let row = row.unwrap();
        let (field, asked_ms) = (&row[0], row[1].parse::<u64>().ok());
        let (name, value) = field.split_once(": ").unwrap();
        let headers = [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect::<http::HeaderMap>();
        let host = hints::retry_after(&headers, 1_767_225_600_000);
        assert_eq!(host, asked_ms.map(Duration::from_millis), "the host, {field}");
        // Without a requested wait, the component's wait is 0, since the random number is 0 in every case.
        let asked = asked_ms.unwrap_or(0);
        let pause = asked_ms.map_or_else(String::new, |ms| ms.to_string());
        let cases = format!(
            "{head}\nGET,/a,request,1,no,,,503,,,\"{field}\",,unknown,retry,failure,{asked},,,\n\
             GET,/a,request,1,no,,,429,,,\"{field}\",,throttled,retry,ignore,{asked},{pause},,\n"
        );
        golden_tests::play(&policy, &cases).unwrap_or_else(|error| panic!("the SDK, {field}: {error}"));
        played += 1;
    }
    assert_eq!(played, 21);
}

#[test]
fn the_error_for_a_wrong_or_malformed_case_names_its_line() {
    let engine = Engine::start().unwrap();
    let policy = Policy::load(&engine, &component("http-standard"), &LoadOptions::default()).unwrap();
    let rows = include_str!("vectors/http-standard.csv");
    let mut lines = rows.lines();
    let head = lines.next().unwrap();
    let wrong = format!("{head}\nGET,/a,request,1,no,,,200,,,,,rejected,deliver,,,,,no\n");
    assert_eq!(
        golden_tests::play(&policy, &wrong).unwrap_err().to_string(),
        "1 of 1 cases differ:\nline 2: GET /a 200 (no): class \"applied\", not \"rejected\""
    );
    let malformed = format!("{head}\nGET,/a,request,1,no,,,failure:lightning,,,,,,,,,,,\n");
    assert_eq!(
        golden_tests::play(&policy, &malformed).unwrap_err().to_string(),
        "line 2 is not a valid case: \"lightning\" is not a failure; use dns, connect, connect-timeout, tls, send, \
         reset, timeout, protocol, body, each with +sent if bytes may have been sent"
    );
}
