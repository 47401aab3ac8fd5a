//! Every row of the API's table of calls.

use super::{BATCH, activate, ask, create};
use crate::emulator::{Call, Emulator, Options, Reply, Request, directory::iso_date_time};
use futures_util::future::join_all;
use http::{Method, header};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

fn detail(text: &str) -> Value {
    json!({ "detail": text })
}

#[tokio::test(start_paused = true)]
async fn health() {
    let emulator = Emulator::new(Options::default());
    let (status, body) = ask(&emulator, Request::get("/")).await;
    assert_eq!((status.as_u16(), body), (200, json!({ "status": "OK" })));
}

#[tokio::test(start_paused = true)]
async fn a_create_takes_five_seconds_and_answers_200() {
    let emulator = Emulator::new(Options::default());
    let begun = Instant::now();
    let (status, body) = ask(&emulator, create("A", None)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({ "id": 1, "name": "A", "address": "B", "phone": null, "creation_batch_id": null, "active": true,
                "created_at": "2026-01-01T00:00:05" })
    );
    let (_, body) = ask(&emulator, create("A", Some(BATCH))).await;
    assert_eq!((&body["id"], &body["active"], &body["creation_batch_id"]), (&json!(2), &json!(false), &json!(BATCH)));
    assert_eq!(emulator.duplicates(), 0, "another batch is another hospital");
}

#[tokio::test(start_paused = true)]
async fn a_create_is_committed_at_its_end_even_if_the_caller_left() {
    let emulator = Emulator::new(Options::default());
    let request = emulator.handle(create("A", None));
    assert!(tokio::time::timeout(Duration::from_secs(4), request).await.is_err());
    assert_eq!(emulator.hospitals().len(), 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(emulator.hospitals().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_batch_cap_is_checked_before_the_work_so_creates_race_past_it() {
    let emulator = Emulator::new(Options { limit_window: None, ..Options::default() });
    let all = join_all((0..35).map(|n| ask(&emulator, create(&format!("H{n}"), Some(BATCH))))).await;
    assert!(all.iter().all(|(status, _)| *status == 200));
    let (status, body) = ask(&emulator, create("late", Some(BATCH))).await;
    assert_eq!((status.as_u16(), body), (400, detail("Batch cannot exceed 20 hospitals")));
    assert_eq!(emulator.hospitals().len(), 35);
}

#[tokio::test(start_paused = true)]
async fn a_create_in_flight_lands_after_activate_and_after_delete() {
    let emulator = Emulator::new(Options::default());
    ask(&emulator, create("A", Some(BATCH))).await;
    let late = tokio::spawn({
        let emulator = emulator.clone();
        async move { ask(&emulator, create("late", Some(BATCH))).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, body) = ask(&emulator, activate(BATCH)).await;
    assert_eq!(body["activated_count"], 1);
    let (_, body) = ask(&emulator, Request::new(Method::DELETE, format!("/hospitals/batch/{BATCH}"), "")).await;
    assert_eq!(body["deleted_count"], 1);
    assert_eq!(late.await.unwrap().0, 200);
    assert_eq!(emulator.hospitals().iter().map(|h| h.active).collect::<Vec<_>>(), [false]);
}

#[tokio::test(start_paused = true)]
async fn forty_creates_starve_everything_else() {
    let emulator = Emulator::new(Options { limit_window: None, ..Options::default() });
    let creates: Vec<_> = (0..40)
        .map(|n| {
            let emulator = emulator.clone();
            tokio::spawn(async move { ask(&emulator, create(&format!("H{n}"), None)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    ask(&emulator, Request::get("/")).await;
    assert_eq!(begun.elapsed(), Duration::from_millis(4_300));
    join_all(creates).await;
}

#[tokio::test(start_paused = true)]
async fn one_hospital() {
    let emulator = Emulator::new(Options::default());
    ask(&emulator, create("A", None)).await;
    assert_eq!(ask(&emulator, Request::get("/hospitals/1")).await.1["name"], "A");
    assert_eq!(ask(&emulator, Request::get("/hospitals/")).await.1.as_array().unwrap().len(), 1);
    let put = |path: &str, body: Value| Request::new(Method::PUT, path, body.to_string());
    let (status, body) = ask(&emulator, put("/hospitals/1", json!({ "name": "C", "phone": "5" }))).await;
    assert_eq!(
        (status.as_u16(), &body["name"], &body["address"], &body["phone"]),
        (200, &json!("C"), &json!("B"), &json!("5"))
    );
    let (_, body) = ask(&emulator, put("/hospitals/1", json!({ "phone": null }))).await;
    assert_eq!((&body["name"], &body["phone"]), (&json!("C"), &Value::Null));
    assert_eq!(ask(&emulator, put("/hospitals/1", json!({ "name": " " }))).await.0, 422);
    let delete = |path: &str| Request::new(Method::DELETE, path, "");
    let (status, body) = ask(&emulator, delete("/hospitals/1")).await;
    assert_eq!((status.as_u16(), body), (204, Value::Null));
    for request in [delete("/hospitals/1"), Request::get("/hospitals/1"), put("/hospitals/-7", json!({ "name": "C" }))]
    {
        let (status, body) = ask(&emulator, request.clone()).await;
        assert_eq!((status.as_u16(), body), (404, detail("Hospital not found")), "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn batches() {
    let emulator = Emulator::new(Options::default());
    let batch = format!("/hospitals/batch/{BATCH}");
    let empty = detail("No hospitals found with the specified batch ID");
    for request in [Request::get(&batch), activate(BATCH), Request::new(Method::DELETE, &batch, "")] {
        let (status, body) = ask(&emulator, request.clone()).await;
        assert_eq!((status.as_u16(), body), (404, empty.clone()), "{request:?}");
    }
    ask(&emulator, create("A", Some(BATCH))).await;
    ask(&emulator, create("B", Some(&BATCH.to_uppercase()))).await;
    assert_eq!(ask(&emulator, Request::get(&batch)).await.1.as_array().unwrap().len(), 2);
    let (status, body) = ask(&emulator, activate(BATCH)).await;
    let message = format!("Activated 2 hospital(s) with batch ID {BATCH}");
    assert_eq!((status.as_u16(), body), (200, json!({ "activated_count": 2, "message": message })));
    let (status, body) = ask(&emulator, activate(BATCH)).await;
    let already = "Cannot activate batch: one or more hospitals in the batch are already active";
    assert_eq!((status.as_u16(), body), (400, detail(already)));
    let (status, body) = ask(&emulator, Request::new(Method::DELETE, &batch, "")).await;
    let message = format!("Deleted 2 hospital(s) with batch ID {BATCH}");
    assert_eq!((status.as_u16(), body), (200, json!({ "deleted_count": 2, "message": message })));
}

#[tokio::test(start_paused = true)]
async fn the_checks_refuse_each_malformed_request() {
    let emulator = Emulator::new(Options::default());
    let post = |body: &str| Request::post("/hospitals/", body.to_owned());
    let mut text = post("{}");
    text.headers.insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    let cases: &[(Request, &[(&str, Value)])] = &[
        (post("{}"), &[("missing", json!(["body", "name"])), ("missing", json!(["body", "address"]))]),
        (post(""), &[("missing", json!(["body"]))]),
        (post("[1]"), &[("model_attributes_type", json!(["body"]))]),
        (text, &[("model_attributes_type", json!(["body"]))]),
        (post("{\"name"), &[("json_invalid", json!(["body", 5]))]),
        (post(r#"{"name":" ","address":"B"}"#), &[("string_too_short", json!(["body", "name"]))]),
        (
            post(r#"{"name":1,"address":null}"#),
            &[("string_type", json!(["body", "name"])), ("string_type", json!(["body", "address"]))],
        ),
        (post(r#"{"name":"A","address":"B","phone":5}"#), &[("string_type", json!(["body", "phone"]))]),
        (
            post(r#"{"name":"A","address":"B","creation_batch_id":"x"}"#),
            &[("uuid_parsing", json!(["body", "creation_batch_id"]))],
        ),
        (
            post(r#"{"name":"A","address":"B","creation_batch_id":5}"#),
            &[("uuid_type", json!(["body", "creation_batch_id"]))],
        ),
        (Request::get("/hospitals/abc"), &[("int_parsing", json!(["path", "hospital_id"]))]),
        (Request::get("/hospitals/batch"), &[("int_parsing", json!(["path", "hospital_id"]))]),
        (Request::get("/hospitals/batch/abc"), &[("uuid_parsing", json!(["path", "batch_id"]))]),
        (activate("abc"), &[("uuid_parsing", json!(["path", "batch_id"]))]),
    ];
    for (request, expected) in cases {
        let (status, body) = ask(&emulator, request.clone()).await;
        assert_eq!(status, 422, "{request:?}");
        let complaints = body["detail"].as_array().unwrap();
        let seen: Vec<_> = complaints.iter().map(|c| (c["type"].as_str().unwrap(), c["loc"].clone())).collect();
        assert_eq!(seen, *expected, "{request:?}");
        assert!(complaints.iter().all(|c| c["msg"].is_string() && c.get("input").is_some()), "{request:?}");
    }
    assert_eq!(emulator.hospitals().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn routes_that_are_not_there() {
    let emulator = Emulator::new(Options::default());
    let cases = [
        (Request::post("/batches/1/activate", ""), 404, detail("Not Found")),
        (Request::get("/hospitals/batch/a/b"), 404, detail("Not Found")),
        (Request::get("/hospitals/1/"), 404, detail("Not Found")),
        (Request::get("/a/b/c/d/e/f/g/h"), 404, detail("Not Found")),
        (Request::new(Method::DELETE, "/hospitals/", ""), 405, detail("Method Not Allowed")),
        (Request::new(Method::HEAD, "/", ""), 405, detail("Method Not Allowed")),
        // The server's framework does not know this method.
        (Request::new(Method::from_bytes(b"QUERY").unwrap(), "/hospitals/", ""), 405, detail("Method Not Allowed")),
        (Request::post("/hospitals", "{}"), 307, Value::Null),
        (Request::get("/?a=b"), 200, json!({ "status": "OK" })),
    ];
    for (request, expected, text) in cases {
        let (status, body) = ask(&emulator, request.clone()).await;
        assert_eq!((status.as_u16(), body), (expected, text), "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_fixed_windows_without_retry_after() {
    let unlimited_time = Options { create_delay: Duration::ZERO, other_delay: Duration::ZERO, ..Options::default() };
    for (request, limit) in [
        (Request::get("/"), 100),
        (create("A", None), 30),
        (Request::get("/hospitals/"), 50),
        (Request::get("/hospitals/1"), 50),
        (Request::new(Method::PUT, "/hospitals/1", "{}"), 50),
        (Request::new(Method::DELETE, "/hospitals/1", ""), 50),
        (Request::get(format!("/hospitals/batch/{BATCH}")), 50),
        (activate(BATCH), 50),
        (Request::new(Method::DELETE, format!("/hospitals/batch/{BATCH}"), ""), 50),
    ] {
        let emulator = Emulator::new(unlimited_time.clone());
        for _ in 0..limit {
            assert_ne!(ask(&emulator, request.clone()).await.0, 429, "{request:?}");
        }
        let Reply::Answer(refusal) = emulator.handle(request.clone()).await else { panic!("no answer") };
        assert_eq!(refusal.status(), 429, "{request:?}");
        assert!(!refusal.headers().contains_key(header::RETRY_AFTER));
        let text = json!({ "error": format!("Rate limit exceeded: {limit} per 1 minute") });
        assert_eq!(super::read(&refusal).1, text);
        let elsewhere = Request { client: [10, 0, 0, 1].into(), ..request.clone() };
        assert_ne!(ask(&emulator, elsewhere).await.0, 429, "another client, another window");
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(ask(&emulator, request.clone()).await.0, 429, "{request:?}");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_ne!(ask(&emulator, request.clone()).await.0, 429, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn complaints_do_not_count_towards_a_limit() {
    let emulator = Emulator::new(Options::default());
    for _ in 0..40 {
        assert_eq!(ask(&emulator, Request::post("/hospitals/", "{}")).await.0, 422);
    }
    assert_eq!(ask(&emulator, create("A", None)).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn the_oldest_hospitals_are_forgotten_and_a_restart_forgets_all() {
    let emulator = Emulator::new(Options { capacity: 3, ..Options::immediate() });
    for n in 0..5 {
        ask(&emulator, create(&format!("H{n}"), Some(BATCH))).await;
    }
    assert_eq!(emulator.hospitals().iter().map(|h| h.id).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(emulator.made(), 5);
    emulator.restart();
    assert_eq!((emulator.hospitals().len(), emulator.made()), (0, 0));
    assert_eq!(ask(&emulator, create("A", None)).await.1["id"], 1);
}

#[tokio::test(start_paused = true)]
async fn work_in_flight_dies_with_the_process() {
    let emulator = Emulator::new(Options::default());
    let request = tokio::spawn({
        let emulator = emulator.clone();
        async move { emulator.handle(create("A", None)).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    emulator.restart();
    assert!(matches!(request.await.unwrap(), Reply::Reset));
    assert_eq!(emulator.hospitals().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn arrivals_are_recorded() {
    let emulator = Emulator::new(Options { create_delay: Duration::ZERO, ..Options::default() });
    for _ in 0..3 {
        ask(&emulator, create("A", None)).await;
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    ask(&emulator, Request::get("/")).await;
    assert_eq!(emulator.most_within(Call::Create, Duration::from_mins(1)), 2);
    assert_eq!(emulator.most_within(Call::Create, Duration::from_secs(61)), 3);
    assert_eq!(emulator.most_within(Call::Activate, Duration::from_secs(61)), 0);
    assert_eq!(emulator.arrivals().iter().filter(|arrival| arrival.call == Call::Health).count(), 1);
    assert_eq!(emulator.duplicates(), 2);
}

#[test]
fn dates() {
    for (micros, text) in [
        (0, "1970-01-01T00:00:00"),
        (951_782_400_000_000, "2000-02-29T00:00:00"),
        (1_767_225_599_000_001, "2025-12-31T23:59:59.000001"),
        (4_107_542_400_000_000, "2100-03-01T00:00:00"),
    ] {
        assert_eq!(iso_date_time(micros), text);
    }
}
