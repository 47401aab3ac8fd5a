//! A write without a key whose caller has left: the next equal request adopts it.

use super::{Answer, Plan, Stage, api, millis, polled, secs};
use crate::support::{Answered, read};
use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::BodyExt as _;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

fn post(body: &'static str) -> Request<Bytes> {
    Request::post("/orders").body(Bytes::from_static(body.as_bytes())).unwrap()
}

fn once() -> triage_config::settings::Settings {
    api("retry = { max_attempts = 1 }\ndeadline = \"60s\"\nattempt_timeout = \"30s\"")
}

/// Sends a request and disconnects after this time. Returns whether it got its response before.
async fn left_after(stage: &Arc<Stage>, request: Request<Bytes>, after: Duration) -> bool {
    timeout(after, stage.send(request)).await.is_ok()
}

fn is_adopted(answer: &Answered) -> bool {
    answer.header("triage-adopted") == "true"
}

/// The main check: fails if nothing is adopted, if something is adopted twice, or if an answered write is adopted.
#[tokio::test(start_paused = true)]
async fn the_next_equal_request_gets_the_answer_that_no_caller_got_once() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(2)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    sleep(secs(5)).await;
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.status, stage.arrived()), (201, 1), "{adopted:?}");
    assert!(is_adopted(&adopted) && &*adopted.body == b"scripted", "{adopted:?}");
    assert_eq!(adopted.header("triage-replay"), "");
    let next = stage.send(post("row")).await;
    assert_eq!((next.status, stage.arrived(), is_adopted(&next)), (201, 2, false), "{next:?}");
    let last = stage.send(post("row")).await;
    assert_eq!((last.status, stage.arrived()), (201, 3), "an answered write is no orphan: {last:?}");
}

#[tokio::test(start_paused = true)]
async fn an_orphan_under_way_is_waited_for() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(10)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    let began = Instant::now();
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.status, stage.arrived()), (201, 1), "{adopted:?}");
    assert!(is_adopted(&adopted));
    assert!(began.elapsed() >= secs(9) && began.elapsed() < secs(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn equal_requests_whose_callers_wait_are_never_merged() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(2)));
    let rows = join_all((0..5).map(|_| stage.send(post("row")))).await;
    assert!(rows.iter().all(|row| row.status == 201 && !is_adopted(row)), "{rows:?}");
    assert_eq!(stage.arrived(), 5);
}

/// Of ten equal requests three callers leave. Exactly three later ones adopt their results.
#[tokio::test(start_paused = true)]
async fn each_orphan_is_adopted_by_one_request() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(2)));
    let rows = join_all((0..10).map(|n| left_after(&stage, post("row"), if n < 3 { secs(1) } else { secs(20) }))).await;
    assert_eq!(rows.iter().filter(|answered| **answered).count(), 7);
    let again = join_all((0..5).map(|_| stage.send(post("row")))).await;
    assert_eq!(again.iter().filter(|row| is_adopted(row)).count(), 3, "{again:?}");
    assert_eq!(stage.arrived(), 12);
}

#[tokio::test(start_paused = true)]
async fn only_an_equal_request_of_the_same_caller_adopts() {
    let settings = api("retry = { max_attempts = 1 }");
    let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(2)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    sleep(secs(5)).await;
    let other_path = Request::post("/orders?again").body(Bytes::from_static(b"row")).unwrap();
    let other_method = Request::patch("/orders").body(Bytes::from_static(b"row")).unwrap();
    let keyed = Request::post("/orders").header("idempotency-key", "k").body(Bytes::from_static(b"row")).unwrap();
    for (case, other) in [("body", post("other")), ("path", other_path), ("method", other_method), ("key", keyed)] {
        let answer = stage.send(other).await;
        assert!(answer.status == 201 && !is_adopted(&answer), "{case}: {answer:?}");
    }
    assert!(is_adopted(&stage.send(post("row")).await));
}

fn with(name: &'static str, value: &'static str) -> Request<Bytes> {
    let mut request = post("row");
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

/// Empty and constant bodies are common. Credentials, an operation's name, a condition or an upstream key distinguish equal ones, under any
/// tenant.
#[tokio::test(start_paused = true)]
async fn a_header_that_tells_requests_apart_keeps_an_orphan_from_others() {
    let names = [
        "authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "apikey",
        "x-auth-token",
        "ocp-apim-subscription-key",
        "content-type",
        "content-encoding",
        "content-range",
        "soapaction",
        "x-amz-target",
        "x-http-method-override",
        "destination",
        "if-match",
        "cko-idempotency-key",
        "x-tenant-partition",
        "x-clinic",
    ];
    for tenant in ["\"x-clinic\"", "[\"x-clinic\", \"authorization\"]"] {
        let text = format!(
            "[upstreams.api]\nbase_url = \"http://api.invalid\"\nidempotency = {{ tenant_header = {tenant} }}\n"
        );
        let settings = triage_config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        for name in names {
            let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(2)));
            assert!(!left_after(&stage, with(name, "alice"), secs(1)).await);
            sleep(secs(5)).await;
            for other in [with(name, "bob"), post("row")] {
                let answer = stage.send(other).await;
                assert!(answer.status == 201 && !is_adopted(&answer), "{name}: {answer:?}");
            }
            assert!(is_adopted(&stage.send(with(name, "alice")).await), "{name}");
            assert_eq!(stage.arrived(), 3, "{name}");
        }
    }
}

/// The same with default settings, and if all callers are one tenant: an equal body does not prove that the caller is the same.
#[tokio::test(start_paused = true)]
async fn credentials_count_without_a_tenant_header_too() {
    for keys in ["", "idempotency = { tenant_header = \"off\" }"] {
        let text = format!("[upstreams.api]\nbase_url = \"http://api.invalid\"\n{keys}\n");
        let settings = triage_config::from_toml(&text).unwrap_or_else(|problems| panic!("{problems}"));
        let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(2)));
        assert!(!left_after(&stage, with("x-api-key", "alice"), secs(1)).await);
        sleep(secs(5)).await;
        assert!(!is_adopted(&stage.send(with("x-api-key", "bob")).await), "{keys}");
        assert!(is_adopted(&stage.send(with("x-api-key", "alice")).await), "{keys}");
    }
}

/// Clients, tracing and proxies change these headers with each repetition.
#[tokio::test(start_paused = true)]
async fn a_header_of_one_message_does_not_tell_requests_apart() {
    for name in ["accept", "date", "traceparent", "user-agent", "x-correlation-id", "x-forwarded-for", "x-request-id"] {
        let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(2)));
        assert!(!left_after(&stage, with(name, "one"), secs(1)).await);
        sleep(secs(5)).await;
        let answer = stage.send(with(name, "two")).await;
        assert!(is_adopted(&answer) && stage.arrived() == 1, "{name}: {answer:?}");
    }
}

/// The response streams to its caller. If the caller leaves, the host reads the rest of the body for the next request.
#[tokio::test(start_paused = true)]
async fn an_answer_streams_and_its_rest_is_read_for_an_orphan() {
    let stage = Stage::new(&once(), |_| Plan::of(Answer::Late(secs(8))));
    let began = Instant::now();
    let response = stage.host.call(post("row")).await;
    assert!(began.elapsed() < millis(10), "the head waits for the body: {:?}", began.elapsed());
    assert_eq!(response.status(), 200);
    drop(response);
    sleep(secs(1)).await;
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.status, &*adopted.body, stage.arrived()), (200, &b"late"[..], 1), "{adopted:?}");
    assert!(is_adopted(&adopted));
    assert!(stage.host.call(post("row")).await.into_body().collect().await.is_ok(), "one that reads all of it has it");
    let next = stage.send(post("row")).await;
    assert_eq!((is_adopted(&next), stage.arrived()), (false, 3), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_was_not_received() {
    let stage = Stage::new(&once(), |_| Plan::of(Answer::Broken(secs(1))));
    let broken = stage.host.call(post("row")).await.into_body().collect().await;
    assert!(broken.is_err());
    sleep(secs(1)).await;
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.problem().as_str(), stage.arrived()), ("answer-not-kept", 1), "{adopted:?}");
    assert!(is_adopted(&adopted));
}

/// The effect is unknown, and the policy cannot verify it: the write is not sent again.
#[tokio::test(start_paused = true)]
async fn an_unknown_orphan_is_reconciled() {
    let stage = Stage::new(&once(), |_| Plan::of(Answer::Lost).after(secs(2)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    sleep(secs(5)).await;
    let unknown = stage.send(post("row")).await;
    assert_eq!(
        (unknown.status, unknown.problem().as_str(), stage.arrived()),
        (504, "effect-unknown", 1),
        "{unknown:?}"
    );
    assert!(is_adopted(&unknown));
    // The caller got that result, so the next request is a new one.
    stage.then(|_| Plan::status(201));
    let next = stage.send(post("row")).await;
    assert_eq!((next.status, is_adopted(&next), stage.arrived()), (201, false, 2), "{next:?}");
}

/// A caller that got "effect unknown" may check for itself, so its next request is a new one. If it did not get that response, the next
/// equal request adopts the write.
#[tokio::test(start_paused = true)]
async fn a_write_answered_early_is_adopted_only_if_its_caller_got_no_answer() {
    for (answer, expected) in [(Answer::Status(201, &[]), 201), (Answer::Lost, 504)] {
        for (pause, is_answered_early) in
            [(Duration::ZERO, true), (secs(5), true), (Duration::ZERO, false), (secs(5), false)]
        {
            let plan = Plan::of(answer.clone()).after(secs(3));
            let stage = Stage::new(&once(), move |_| plan.clone());
            let mut hurried = post("row");
            hurried.headers_mut().insert("prefer", "wait=1".parse().unwrap());
            let early = stage.host.call(hurried).await;
            let retry_after = early.headers()["triage-retry-after-unknown"].to_str().unwrap();
            assert_eq!((early.status().as_u16(), retry_after), (504, "no"), "{early:?}");
            if is_answered_early {
                assert_eq!(read(early).await.problem(), "effect-unknown");
            } else {
                drop(early);
            }
            sleep(pause).await;
            let next = stage.send(post("row")).await;
            let case = format!("{answer:?}, {pause:?} later, early answer: {is_answered_early}: {next:?}");
            let arrived = if is_answered_early { 2 } else { 1 };
            assert_eq!(
                (next.status, stage.arrived(), is_adopted(&next)),
                (expected, arrived, !is_answered_early),
                "{case}"
            );
            stage.then(|_| Plan::status(201));
            let last = stage.send(post("row")).await;
            assert_eq!((last.status, is_adopted(&last), stage.arrived()), (201, false, arrived + 1), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_orphan_without_an_effect_is_sent() {
    let stage = Stage::new(&once(), |_| Plan::of(Answer::Refused).after(secs(2)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    stage.then(|_| Plan::status(201));
    let sent = stage.send(post("row")).await;
    assert_eq!((sent.status, is_adopted(&sent), stage.arrived()), (201, false, 2), "{sent:?}");
    let next = stage.send(post("row")).await;
    assert_eq!((next.status, stage.arrived()), (201, 3), "nothing is left to adopt: {next:?}");
}

#[tokio::test(start_paused = true)]
async fn an_orphan_under_way_for_too_long_is_left_to_the_next() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(20)));
    assert!(!left_after(&stage, post("row"), secs(1)).await);
    let mut hurried = post("row");
    hurried.headers_mut().insert("triage-deadline-ms", "2000".parse().unwrap());
    let refused = stage.send(hurried).await;
    assert_eq!((refused.status, refused.problem().as_str()), (409, "in-flight"), "{refused:?}");
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.status, is_adopted(&adopted), stage.arrived()), (201, true, 1), "{adopted:?}");
}

/// A request that adopts may lose its caller too.
#[tokio::test(start_paused = true)]
async fn an_adopted_answer_that_is_not_received_is_adopted_again() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(10)));
    for after in [secs(1), secs(2), millis(30)] {
        assert!(!left_after(&stage, post("row"), after).await);
    }
    sleep(secs(20)).await;
    drop(stage.host.call(post("row")).await);
    let adopted = stage.send(post("row")).await;
    assert_eq!((adopted.status, is_adopted(&adopted), stage.arrived()), (201, true, 1), "{adopted:?}");
}

#[tokio::test(start_paused = true)]
async fn orphans_are_kept_for_their_time_and_not_at_all_where_they_are_off() {
    let text = |orphans: &str| {
        format!("[upstreams.api]\nbase_url = \"http://api.invalid\"\nidempotency = {{ orphans = \"{orphans}\" }}\n")
    };
    for (orphans, after, expected) in [("off", secs(3), 2), ("1m", secs(59), 1), ("1m", secs(63), 2)] {
        let settings = triage_config::from_toml(&text(orphans)).unwrap_or_else(|problems| panic!("{problems}"));
        let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(2)));
        assert!(!left_after(&stage, post("row"), secs(1)).await);
        sleep(after).await;
        assert_eq!(stage.send(post("row")).await.status, 201);
        assert_eq!(stage.arrived(), expected, "{orphans}, {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn beyond_the_most_that_are_kept_a_write_is_sent_all_the_same() {
    let text = "[upstreams.api]\nbase_url = \"http://api.invalid\"\nidempotency = { max_orphans = 2 }\n";
    let settings = triage_config::from_toml(text).unwrap_or_else(|problems| panic!("{problems}"));
    let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(2)));
    for row in ["a", "b", "c"] {
        assert!(!left_after(&stage, post(row), secs(1)).await);
    }
    sleep(secs(5)).await;
    for (row, adopted) in [("c", false), ("a", true), ("b", true)] {
        let answer = stage.send(post(row)).await;
        assert_eq!((answer.status, is_adopted(&answer)), (201, adopted), "{row}: {answer:?}");
    }
}

/// A caller returns before the host notices that it left. The new request waits for that notice and checks again.
#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_before_its_leaving_is_noticed_adopts() {
    let stage = Stage::new(&once(), |_| Plan::status(201).after(secs(2)));
    let (first, again) = (Arc::clone(&stage), Arc::clone(&stage));
    let first = tokio::spawn(async move { left_after(&first, post("row"), millis(1_003)).await });
    let again = tokio::spawn(async move {
        sleep(millis(1_000)).await;
        again.send(post("row")).await
    });
    assert!(!first.await.unwrap());
    let answer = again.await.unwrap();
    assert_eq!((answer.status, is_adopted(&answer), stage.arrived()), (201, true, 1), "{answer:?}");
}

/// The same, but the host notices late: while the new request waits for its reservation.
#[tokio::test(start_paused = true)]
async fn an_orphan_is_found_right_before_the_first_byte() {
    let settings = api(
        "retry = { max_attempts = 1 }\ndeadline = \"60s\"\nattempt_timeout = \"30s\"\nlimits = [{ requests = 1, period = \"10s\" }]",
    );
    let stage = Stage::new(&settings, |_| Plan::status(201).after(secs(3)));
    let (first, again) = (Arc::clone(&stage), Arc::clone(&stage));
    let first = tokio::spawn(async move { left_after(&first, post("row"), secs(2)).await });
    sleep(secs(1)).await;
    let again = tokio::spawn(async move { again.send(post("row")).await });
    assert!(!first.await.unwrap());
    let answer = again.await.unwrap();
    assert_eq!((answer.status, is_adopted(&answer), stage.arrived()), (201, true, 1), "{answer:?}");
}

/// Whenever the caller disconnects, a request and its repetition have one effect together.
#[tokio::test(start_paused = true)]
async fn at_every_millisecond_and_poll_a_request_and_its_repetition_have_one_effect() {
    let defaults = "retry = { max_attempts = 1 }\ndeadline = \"60s\"\nattempt_timeout = \"30s\"\nconcurrency = 1\n\
                    limits = [{ requests = 1, period = \"50ms\" }]";
    let (mut unsent, mut sent) = (0, 0);
    for polls in 1.. {
        let stage = Stage::new(&api(defaults), |_| Plan::of(Answer::Late(millis(7))).after(millis(5)));
        // This request takes the current permit, so the next one must wait.
        assert_eq!(stage.get("/").await.status, 200);
        let host = stage.host.clone();
        let whole = async move { read(host.call(post("row")).await).await };
        let answered = polled(polls, whole).await.is_some();
        let was_sent = stage.arrived() == 2;
        let again = stage.send(post("row")).await;
        assert_eq!(again.status, 200, "polls: {polls}: {again:?}");
        assert_eq!(stage.arrived(), if answered { 3 } else { 2 }, "polls: {polls}");
        if answered {
            break;
        }
        if was_sent { sent += 1 } else { unsent += 1 }
    }
    for after in (1..80).step_by(3) {
        let stage = Stage::new(&api(defaults), |_| Plan::of(Answer::Late(millis(7))).after(millis(5)));
        assert_eq!(stage.get("/").await.status, 200);
        let answered = left_after(&stage, post("row"), Duration::from_micros(1_000 * after + 500)).await;
        if stage.arrived() == 2 {
            sent += 1;
        } else {
            unsent += 1;
        }
        let again = stage.send(post("row")).await;
        assert_eq!(again.status, 200, "left after {after} ms: {again:?}");
        assert_eq!(stage.arrived(), if answered { 3 } else { 2 }, "left after {after} ms");
    }
    assert!(unsent > 10 && sent > 5, "{unsent} before, {sent} after the send");
}
