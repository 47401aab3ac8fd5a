#![allow(clippy::unwrap_used)]
use super::*;
use crate::contract::{Class, FailureKind, Outcome};
use strum::VariantNames as _;

/// The error of a file for the built-in policy.
fn error(csv: &str) -> CasesError {
    play_clamped(&Policy::builtin(), csv, false).unwrap_err()
}

fn told(csv: &str) -> String {
    error(csv).in_file("a.csv")
}

#[test]
fn three_columns_are_enough_and_their_order_is_free() {
    let policy = Policy::builtin();
    assert_eq!(play(&policy, "condition,path,method\n200,/a,GET\n").unwrap(), 1);
    assert_eq!(play(&policy, "method,path,condition,class\nGET,/a,200,applied\nPOST,/a,failure:dns,\n").unwrap(), 2);
}

/// Tripwire: a misspelt word, or a file without a case, would protect nothing.
#[test]
fn each_mistake_in_a_file_is_an_error_with_its_line() {
    let columns = "method, path, condition, purpose, number, prior_unknown, sent_ms_ago, keyed, taken, request_headers, \
                   request_body, response_headers, response_body, settle, class, next, breaker, delay_ms, pause_ms, \
                   claim, probe, probe_headers, answer_status, answer_headers, answer_body, clamped, note";
    let head = "method,path,condition,class,next,breaker,purpose,prior_unknown,number,clamped,settle";
    let case = |row: &str| told(&format!("{head}\nGET,/a,200,,,,,,,,\n{row}\n"));
    for (told, expected) in [
        (told(""), "a.csv:1: the column \"method\" is missing; every case needs method, path, condition".to_owned()),
        (told("method,path,condition\n"), "a.csv:1: there is no case: each line below the header is one".to_owned()),
        (
            told("method,path,condition,clas\nGET,/a,200,applied\n"),
            format!("a.csv:1: \"clas\" is not a column; the columns are {columns}"),
        ),
        (told("method,path,condition,path\n"), "a.csv:1: the column \"path\" is there twice".to_owned()),
        (
            case("GET,/a,200,aplied,,,,,,,"),
            "a.csv:3: \"aplied\" is not a value of class; use applied, already-applied, not-applied, throttled, \
             unknown, rejected"
                .to_owned(),
        ),
        (
            case("GET,/a,200,,again,,,,,,"),
            "a.csv:3: \"again\" is not a value of next; use deliver, retry, verify, replace".to_owned(),
        ),
        (
            case("GET,/a,200,,,ok,,,,,"),
            "a.csv:3: \"ok\" is not a value of breaker; use success, failure, ignore".to_owned(),
        ),
        (case("GET,/a,200,,,,look,,,,"), "a.csv:3: \"look\" is not a value of purpose; use request, probe".to_owned()),
        (case("GET,/a,200,,,,,maybe,,,"), "a.csv:3: \"maybe\" is not a value of prior_unknown; use yes, no".to_owned()),
        (case("GET,/a,200,,,,,,x,,"), "a.csv:3: field 8: invalid digit found in string".to_owned()),
        (
            case("GET,/a,200,,,,,,,later,"),
            "a.csv:3: \"later\" is not a value of clamped; use no, class, attempts, deadline, effect, body, grant, \
             probes, too-early, upstream-key"
                .to_owned(),
        ),
        (case("G T,/a,200,,,,,,,,"), "a.csv:3: \"G T\" is not a method".to_owned()),
        (case("GET,/a,2oo,,,,,,,,"), "a.csv:3: \"2oo\" is not a status".to_owned()),
        (
            case("GET,/a,failure:lightning,,,,,,,,"),
            "a.csv:3: \"lightning\" is not a failure; use dns, connect, connect-timeout, tls, send, reset, timeout, \
             protocol, body, each with +sent if bytes may have been sent"
                .to_owned(),
        ),
    ] {
        assert_eq!(told, expected);
    }
    assert!(case("GET,/a").starts_with("a.csv:3: CSV error: record 2 (line: 3"), "{}", case("GET,/a"));
}

#[test]
fn a_line_number_counts_the_lines_of_a_quoted_field() {
    let csv = "method,path,condition,response_headers,class\nGET,/a,200,\"a: 1\nb: 2\",\nGET,/a,200,,rejected\n";
    assert_eq!(told(csv), "1 of 2 cases differ:\na.csv:4: GET /a 200: class \"applied\", not \"rejected\"");
    assert_eq!(error(csv).to_string(), "1 of 2 cases differ:\nline 4: GET /a 200: class \"applied\", not \"rejected\"");
}

#[test]
fn the_words_of_the_format_are_those_of_the_contract() {
    let words = |column: &str, all: &[&str]| {
        let rows: Vec<String> = all.iter().map(|word| format!("GET,/a,200,{word}\n")).collect();
        let csv = format!("method,path,condition,{column}\n{}", rows.concat());
        case::read(&csv).for_each(|case| drop(case.unwrap()));
    };
    words("class", Class::VARIANTS);
    words("clamped", triage_core::retry::ClampReason::VARIANTS);
    for kind in FailureKind::VARIANTS.iter().filter(|kind| **kind != "exhausted") {
        let csv = format!("method,path,condition\nGET,/a,failure:{kind}+sent\n");
        let case = case::read(&csv).next().unwrap().unwrap();
        assert!(matches!(case.outcome(), Outcome::Failure(failure) if failure.kind.name() == *kind && failure.sent));
    }
}
