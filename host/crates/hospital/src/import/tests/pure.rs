//! The pure parts.

use crate::{
    contract::{Failure, FailureKind},
    error,
    import::{
        journal::{self, Entry, Head, JournalError, Recorded, Start, Subject, VERSION},
        response::{self, ResponseKind},
        retry_state::{Next, RequestOutcome, RetryLimits, RetryState},
        rows,
    },
};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};
use uuid::Uuid;

#[test]
fn rows_are_read_with_their_lines() {
    let table = rows::parse(b"\xef\xbb\xbfPhone, name ,address\r\n5,A,B\n,\"C, D\",\"E\nF\"\n\n 6 , G ,H\n").unwrap();
    let seen: Vec<_> =
        table.rows.iter().map(|r| (r.line, r.name.as_str(), r.address.as_str(), r.phone.as_deref())).collect();
    assert_eq!(seen, [(2, "A", "B", Some("5")), (3, "C, D", "E\nF", None), (6, "G", "H", Some("6"))]);
    assert_eq!(table.digest.len(), 64);
    let without_phone = rows::parse(b"name,address\nA,B").unwrap();
    assert_eq!(without_phone.rows[0].phone, None);
    assert_eq!(format!("{:?}", without_phone.rows[0]), "Row { line: 2, .. }", "rows are confidential");
}

/// Reports and journals identify rows by line, so each row needs its own, with every kind of line end.
#[test]
fn each_row_has_a_line_of_its_own_whatever_ends_a_line() {
    for (end, lone_cr) in [("\n", false), ("\r\n", false), ("\r", true)] {
        let rows = ["name,address", "A,B", "", "C,\"D", "E\"", "F,G"].join(end);
        let table = rows::parse(rows.as_bytes()).unwrap();
        assert_eq!(table.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 4, 6], "{end:?}");
        assert_eq!(table.has_lone_cr, lone_cr, "{end:?}");
    }
    let mixed = rows::parse(b"name,address\rA,B\r\nC,D\n\rE,F\r").unwrap();
    assert_eq!(mixed.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 3, 5]);
    let error = rows::parse(b"name,address\rA,B\r,C\r").unwrap_err().to_string();
    assert!(error.ends_with("line 3: name is blank; it is required"), "{error}");
}

#[test]
fn every_bad_row_is_reported_with_its_line() {
    let file = "name,address,phone\nA,B\n ,B,\nA,,5\nA,B,5\n";
    let expected = "the file has 3 bad rows; nothing was sent\n  line 2: the row has 2 fields, the header has 3; quote fields with commas\n  line 3: name is blank; it is required\n  line 4: address is blank; it is required";
    assert_eq!(rows::parse(file.as_bytes()).unwrap_err().to_string(), expected);
    let long = format!("name,address\nA,{}\n", "x".repeat(1_001));
    let many = format!("name,address\n{}", "A,B\n".repeat(rows::MAX_ROWS + 1));
    let header = "line 1: the header must be name,address,phone (phone may be left out)";
    for (file, expected) in [
        ("", header),
        ("name,phone\nA,5\n", header),
        (
            "name,address,fax\nA,B,5\n",
            "line 1: column 3 is not known; the header must be name,address,phone (phone may be left out)",
        ),
        (
            "name,name,address\nA,A,B\n",
            "line 1: column name appears twice; the header must be name,address,phone (phone may be left out)",
        ),
        ("name,address\n", "line 1: the file has no row below the header; add at least one"),
        (long.as_str(), "line 2: address has 1001 characters; at most 1000 are allowed"),
        (many.as_str(), "line 10002: a file may have at most 10000 rows; split it"),
    ] {
        let error = rows::parse(file.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, format!("the file has 1 bad row; nothing was sent\n  {expected}"), "{:.40}", file);
    }
    let error = rows::parse(b"name,address\nA,\xff\n").unwrap_err().to_string();
    assert!(error.ends_with("line 2: address is not UTF-8; convert the file"), "{error}");
}

fn head() -> Entry {
    Entry::Import(Head { version: VERSION, csv_sha256: "ab".repeat(32), to: "http://h/".to_owned(), batch_size: 20 })
}

#[test]
fn journals_that_are_refused() {
    let key = Uuid::from_u128(1);
    let what = Subject::Line(2);
    let sending = Entry::Sending { what, key };
    let result = Entry::Result { what, is: Recorded::Applied(1) };
    let later = Entry::Import(Head { version: 3, csv_sha256: String::new(), to: String::new(), batch_size: 1 });
    let broken = [journal::lines(&[head()]), b"{\n".to_vec(), journal::lines(&[head()])].concat();
    let cases: &[(Vec<u8>, JournalError)] = &[
        (b"name,address\nA,B\n".to_vec(), JournalError::Foreign),
        (b"no newline".to_vec(), JournalError::Foreign),
        (journal::lines(std::slice::from_ref(&sending)), JournalError::Foreign),
        (journal::lines(&[later]), JournalError::Version(3)),
        (journal::lines(&[head(), head()]), JournalError::Contradiction(2)),
        (broken, JournalError::Unreadable(2)),
        (journal::lines(&[head(), result.clone()]), JournalError::Contradiction(2)),
        (journal::lines(&[head(), sending.clone(), result.clone(), result.clone()]), JournalError::Contradiction(4)),
        (journal::lines(&[head(), sending.clone(), result, sending.clone()]), JournalError::Contradiction(4)),
        (
            journal::lines(&[head(), sending, Entry::Sending { what, key: Uuid::from_u128(2) }]),
            JournalError::Contradiction(3),
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(&journal::read(bytes).unwrap_err(), expected, "{}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(journal::read(b"").unwrap(), (journal::Past::default(), 0));
    assert_eq!(journal::read(br#"{"import":{"vers"#).unwrap(), (journal::Past::default(), 0));
}

/// Subjects sent and settled in random order. `None` in place of a result is a crash.
fn history() -> impl Strategy<Value = Vec<Entry>> {
    let recorded = prop_oneof![
        (1..99_u64).prop_map(Recorded::Applied),
        Just(Recorded::Rejected),
        Just(Recorded::NotSent),
        Just(Recorded::Unknown)
    ];
    let step = (
        (0..6_u64).prop_map(|n| if n == 5 { Subject::Activation(0) } else { Subject::Line(n) }),
        proptest::option::of(recorded),
    );
    proptest::collection::vec(step, 0..30).prop_map(|steps| {
        let mut entries = vec![head(), Entry::Batch { number: 0, id: Uuid::from_u128(77) }];
        let mut last: BTreeMap<Subject, Option<Recorded>> = BTreeMap::new();
        for (what, result) in steps {
            if matches!(last.get(&what), Some(Some(Recorded::Applied(_) | Recorded::Rejected))) {
                continue;
            }
            entries.push(Entry::Sending { what, key: key_of(what) });
            last.insert(what, result);
            entries.extend(result.map(|is| Entry::Result { what, is }));
        }
        entries
    })
}

fn key_of(what: Subject) -> Uuid {
    match what {
        Subject::Line(line) => Uuid::from_u128(u128::from(line) + 1),
        Subject::Activation(batch) => Uuid::from_u128(u128::from(batch) + 1_000),
    }
}

proptest! {
    /// A journal cut at any byte can be resumed: no key is lost, no row that may have been sent counts as fresh, and less than a line is
    /// removed.
    #[test]
    fn a_journal_cut_at_any_byte_resumes(entries in history(), cut in any::<prop::sample::Index>()) {
        let bytes = journal::lines(&entries);
        let cut = cut.index(bytes.len() + 1);
        let (past, whole) = journal::read(&bytes[..cut]).unwrap();
        prop_assert!(whole <= cut && !bytes[whole..cut].contains(&b'\n'));
        let complete = bytes[..cut].split(|byte| *byte == b'\n').count() - 1;
        let mut expected: BTreeMap<Subject, Option<Recorded>> = BTreeMap::new();
        for entry in &entries[..complete] {
            match entry {
                Entry::Sending { what, .. } => { expected.insert(*what, None); }
                Entry::Result { what, is } => { expected.insert(*what, Some(*is)); }
                _ => {}
            }
        }
        prop_assert_eq!(past.batches.get(&0).copied(), (complete > 1).then_some(Uuid::from_u128(77)));
        for what in (0..5).map(Subject::Line).chain([Subject::Activation(0)]) {
            let key = key_of(what);
            let start = match expected.get(&what) {
                None => Start::Fresh,
                Some(None | Some(Recorded::Unknown)) => Start::Again { key, maybe_sent: true },
                Some(Some(Recorded::NotSent)) => Start::Again { key, maybe_sent: false },
                Some(Some(settled)) => Start::Settled(*settled),
            };
            prop_assert_eq!(past.start(what), start, "{:?}", what);
        }
        // The next run removes the incomplete line and continues.
        let continued = [&bytes[..whole], &journal::lines(&entries[complete..])].concat();
        prop_assert_eq!(continued, bytes);
    }

    /// Random bytes are rejected or read, without a panic, and the bytes to keep do not exceed the input.
    #[test]
    fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok((_, whole)) = journal::read(&bytes) {
            prop_assert!(whole <= bytes.len());
        }
        let _ = rows::parse(&bytes);
        let _ = response::read("id", StatusCode::BAD_REQUEST, &HeaderMap::new(), &bytes, 0);
    }
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

#[test]
fn each_response_has_its_kind() {
    let text = |text: &str| text.to_owned();
    let refused = |seconds: Option<u64>, why: &str| ResponseKind::Refused {
        after: seconds.map(Duration::from_secs),
        why: text(why),
    };
    let problem =
        |kind: &str| format!(r#"{{"type":"urn:triage:problem:{kind}","title":"t","status":503,"detail":"d"}}"#);
    let problem_headers: &[_] = &[("content-type", "application/problem+json"), ("triage-sent", "maybe")];
    let unsent: &[_] = &[("content-type", "application/problem+json"), ("triage-sent", "no"), ("retry-after", "7")];
    let cases: &[(u16, &[_], String, ResponseKind)] = &[
        (200, &[], text(r#"{"id":7}"#), ResponseKind::Applied(7)),
        (200, &[], text(r#"{"id":"#), ResponseKind::Unknown(text("200 OK, but no id in the answer"))),
        (
            422,
            &[],
            text(r#"{"detail":[{"loc":["body","name"],"msg":"Field required","input":"secret"}]}"#),
            ResponseKind::Rejected(text("body.name: Field required")),
        ),
        (
            400,
            &[("triage-verdict", "rejected")],
            text(r#"{"detail":"Batch cannot exceed 20 hospitals"}"#),
            ResponseKind::Rejected(text("Batch cannot exceed 20 hospitals")),
        ),
        (400, &[("triage-verdict", "unknown")], text("{}"), ResponseKind::Unknown(text("status 400"))),
        (
            429,
            &[("triage-verdict", "throttled"), ("retry-after", "9")],
            text(r#"{"error":"Rate limit exceeded"}"#),
            refused(Some(9), "Rate limit exceeded"),
        ),
        (429, &[], text("{}"), refused(None, "status 429")),
        (500, &[("triage-verdict", "unknown")], text("Internal"), ResponseKind::Unknown(text("status 500"))),
        (503, &[], text(""), ResponseKind::Unknown(text("status 503"))),
        (400, &[], text("{\"detail\":\"a\\u001b[31m\"}"), ResponseKind::Rejected(text("a [31m"))),
        (504, problem_headers, problem("effect-unknown"), ResponseKind::Unknown(text("d"))),
        (502, problem_headers, problem("upstream-failed"), ResponseKind::Unknown(text("d"))),
        (409, problem_headers, problem("in-flight"), ResponseKind::InFlight(None)),
        (409, problem_headers, problem("not-in-effect"), ResponseKind::Rejected(text("d"))),
        (
            409,
            &[("content-type", "application/problem+json"), ("triage-verdict", "not-applied")],
            problem("not-in-effect"),
            refused(None, "d"),
        ),
        (409, problem_headers, problem("answer-not-kept"), ResponseKind::Unknown(text("d"))),
        (503, unsent, problem("breaker-open"), refused(Some(7), "d")),
        (429, unsent, problem("rate-limited"), refused(Some(7), "d")),
        (502, unsent, problem("upstream-unreachable"), refused(Some(7), "d")),
        (503, unsent, problem("a-new-kind"), refused(Some(7), "d")),
        // After a loss of shared state: a row that was never sent must not be marked as maybe sent.
        (504, unsent, problem("effect-unknown"), refused(Some(7), "d")),
        (404, unsent, problem("no-endpoint"), ResponseKind::Hopeless(text("d"))),
        (422, unsent, problem("key-reused"), ResponseKind::Hopeless(text("d"))),
    ];
    for (status, pairs, body, expected) in cases {
        let status = StatusCode::from_u16(*status).unwrap();
        assert_eq!(&response::read("id", status, &headers(pairs), body.as_bytes(), 0), expected, "{status} {body}");
    }
    let failure = |sent| response::failed(Failure::new(FailureKind::Reset, sent));
    assert_eq!(failure(true), ResponseKind::Lost(text("no answer from the host (reset)")));
    assert_eq!(failure(false), refused(None, "no answer from the host (reset)"));
    assert!(response::from_triage(&headers(&[(error::SENT.as_str().to_owned().leak(), "no")])));
    assert!(!response::from_triage(&headers(&[("server", "uvicorn")])));
}

fn response() -> impl Strategy<Value = ResponseKind> {
    let why = String::new;
    let after = proptest::option::of((0..300_u64).prop_map(Duration::from_secs));
    prop_oneof![
        1 => any::<u64>().prop_map(ResponseKind::Applied),
        1 => Just(ResponseKind::Rejected(why())),
        1 => Just(ResponseKind::Hopeless(why())),
        1 => Just(ResponseKind::Unknown(why())),
        6 => after.clone().prop_map(move |after| ResponseKind::Refused { after, why: why() }),
        4 => after.prop_map(ResponseKind::InFlight),
        3 => Just(ResponseKind::Lost(why())),
    ]
}

proptest! {
    /// Every request ends. A request that may have been sent never ends as "not sent" or "rejected by the host", and no requested wait is
    /// shortened.
    #[test]
    fn a_request_is_asked_until_settled(before in any::<bool>(), script in proptest::collection::vec((response(), any::<u64>()), 1..200)) {
        let retry_limits = RetryLimits::default();
        let mut asking = RetryState::new(retry_limits, before);
        let mut maybe_sent = before;
        for (asked, (response, random)) in script.into_iter().enumerate() {
            prop_assert!(asked < (retry_limits.refusals + retry_limits.losses + retry_limits.in_flight) as usize);
            let hint = match &response {
                ResponseKind::Refused { after, .. } | ResponseKind::InFlight(after) => *after,
                _ => None,
            };
            maybe_sent |= matches!(response, ResponseKind::Lost(_) | ResponseKind::InFlight(_) | ResponseKind::Unknown(_));
            let hopeless = matches!(response, ResponseKind::Hopeless(_));
            match asking.decide(response, random) {
                Next::Again { after, .. } => {
                    prop_assert!(after <= retry_limits.wait && hint.is_none_or(|hint| after >= hint));
                    prop_assert_eq!(asking.maybe_sent(), maybe_sent);
                }
                Next::Settled(outcome) => {
                    if maybe_sent {
                        prop_assert!(!matches!(outcome, RequestOutcome::NotSent(_)));
                        prop_assert!(!hopeless || matches!(outcome, RequestOutcome::Unknown(_)));
                    }
                    return Ok(());
                }
            }
        }
    }
}
