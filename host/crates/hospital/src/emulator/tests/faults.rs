//! Faults and the cold start.

use super::{activate, ask, create};
use crate::emulator::{Call, ColdStart, Emulator, Fault, Faults, Meanwhile, Options, Reply, Request, When};
use http::{StatusCode, header};
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};

const BOOM: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

async fn with(faults: Faults) -> (Arc<Emulator>, Reply) {
    let emulator = Emulator::new(Options::immediate());
    emulator.set_faults(faults);
    let reply = emulator.handle(create("A", None)).await;
    (emulator, reply)
}

fn always(fault: Fault) -> Faults {
    Faults::none().on(Call::Create, When::Always, fault)
}

#[tokio::test(start_paused = true)]
async fn each_fault_does_what_it_says() {
    let (emulator, reply) = with(always(Fault::FailBefore(BOOM))).await;
    assert!(matches!(reply, Reply::Answer(response) if response.status() == 500));
    assert_eq!(emulator.made(), 0);

    let (emulator, reply) = with(always(Fault::FailAfter(BOOM))).await;
    assert!(matches!(reply, Reply::Answer(response) if response.status() == 500));
    assert_eq!(emulator.made(), 1);

    let (emulator, reply) = with(always(Fault::ResetBefore)).await;
    assert!(matches!(reply, Reply::Reset));
    assert_eq!(emulator.made(), 0);

    let (emulator, reply) = with(always(Fault::ResetAfter)).await;
    assert!(matches!(reply, Reply::Reset));
    assert_eq!(emulator.made(), 1);

    let (emulator, reply) = with(always(Fault::Unreadable)).await;
    let Reply::Answer(response) = reply else { panic!("no answer") };
    assert_eq!(response.status(), 200);
    assert!(serde_json::from_slice::<serde_json::Value>(response.body()).is_err());
    assert_eq!(emulator.made(), 1);

    let (emulator, reply) = with(always(Fault::CutShort)).await;
    assert!(matches!(reply, Reply::CutShort(response, sent) if sent < response.body().len()));
    assert_eq!(emulator.made(), 1);

    let (emulator, reply) = with(always(Fault::StallBefore)).await;
    assert!(matches!(reply, Reply::Stall));
    assert_eq!(emulator.made(), 0);

    let (emulator, reply) = with(always(Fault::StallAfter)).await;
    assert!(matches!(reply, Reply::Stall));
    assert_eq!(emulator.made(), 1);

    let (emulator, reply) = with(Faults::none().refuse(When::Always)).await;
    assert!(matches!(reply, Reply::Refused));
    assert_eq!((emulator.made(), emulator.arrivals().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_storm_comes_with_and_without_retry_after() {
    for wait in [None, Some(Duration::from_secs(7))] {
        let (emulator, reply) = with(always(Fault::RateLimited(wait))).await;
        let Reply::Answer(response) = reply else { panic!("no answer") };
        assert_eq!(response.status(), 429);
        let sent = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(sent, wait.map(|wait| wait.as_secs().to_string()));
        assert_eq!(emulator.made(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_create_may_be_committed_later() {
    let range = Duration::from_secs(10)..=Duration::from_mins(1);
    let (emulator, reply) = with(always(Fault::ResetThenCommit(range))).await;
    assert!(matches!(reply, Reply::Reset));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(emulator.made(), 0);
    tokio::time::sleep(Duration::from_secs(52)).await;
    assert_eq!(emulator.made(), 1);
}

#[tokio::test(start_paused = true)]
async fn faults_strike_by_call_and_pattern_and_can_be_changed() {
    let emulator = Emulator::new(Options::immediate());
    emulator.set_faults(Faults::none().on(Call::Create, When::every(3), Fault::FailBefore(BOOM)).on(
        Call::Activate,
        When::First(1),
        Fault::FailBefore(StatusCode::BAD_GATEWAY),
    ));
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(ask(&emulator, create("A", None)).await.0.as_u16());
        assert_eq!(ask(&emulator, Request::get("/")).await.0, 200);
    }
    assert_eq!(seen, [200, 200, 500, 200, 200, 500]);
    assert_eq!(ask(&emulator, activate(super::BATCH)).await.0, 502);
    assert_eq!(ask(&emulator, activate(super::BATCH)).await.0, 404);
    assert_eq!(emulator.faults_injected(), 3);
    emulator.set_faults(Faults::none().anywhere(When::Always, Fault::FailBefore(StatusCode::SERVICE_UNAVAILABLE)));
    assert_eq!(ask(&emulator, Request::get("/")).await.0, 503);
    emulator.set_faults(Faults::none());
    assert_eq!(ask(&emulator, Request::get("/")).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn chances_are_shares_of_one_draw_and_repeat_with_the_seed() {
    let run = || async {
        let emulator = Emulator::new(Options::immediate());
        emulator.set_faults(Faults::none().on(Call::Create, When::Chance(0.10), Fault::ResetAfter).on(
            Call::Create,
            When::Chance(0.05),
            Fault::FailAfter(BOOM),
        ));
        let mut seen = (0, 0);
        for _ in 0..4_000 {
            match emulator.handle(create("A", None)).await {
                Reply::Reset => seen.0 += 1,
                Reply::Answer(response) if response.status() == 500 => seen.1 += 1,
                _ => {}
            }
        }
        assert_eq!(emulator.made(), 4_000);
        seen
    };
    let (resets, failures) = run().await;
    assert!((340..460).contains(&resets) && (150..250).contains(&failures), "{resets} {failures}");
    assert_eq!((resets, failures), run().await);
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_answers_503_until_awake_and_forgets() {
    let cold = ColdStart {
        idle: Duration::from_mins(15),
        waking: Duration::from_secs(30),
        meanwhile: Meanwhile::Answer(StatusCode::SERVICE_UNAVAILABLE),
        asleep: false,
    };
    let emulator = Emulator::new(Options { cold_start: Some(cold), ..Options::immediate() });
    assert_eq!(ask(&emulator, create("A", None)).await.0, 200);
    tokio::time::advance(Duration::from_secs(901)).await;
    assert_eq!(ask(&emulator, Request::get("/")).await.0, 503);
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(ask(&emulator, Request::get("/")).await.0, 503);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&emulator, Request::get("/")).await.0, 200);
    assert_eq!(emulator.made(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_may_hold_requests_until_awake() {
    let cold = ColdStart {
        idle: Duration::from_mins(15),
        waking: Duration::from_mins(1),
        meanwhile: Meanwhile::Hold,
        asleep: true,
    };
    let emulator = Emulator::new(Options { cold_start: Some(cold), ..Options::default() });
    let begun = tokio::time::Instant::now();
    assert_eq!(ask(&emulator, create("A", None)).await.0, 200);
    assert_eq!(begun.elapsed(), Duration::from_secs(65));
    emulator.sleep();
    assert_eq!(ask(&emulator, create("A", None)).await.1["id"], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Every request gets a response, without a panic (a panic would end in a reset).
    #[test]
    fn any_request_is_answered(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "BREW"]),
        path in prop_oneof!["(/|hospitals|batch|[0-9a-f-]{0,36}|activate|\\?|é){0,9}", "\\PC{0,40}"],
        body in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let reply = runtime.block_on(async {
            let emulator = Emulator::new(Options::default());
            emulator.handle(Request::new(method.parse().unwrap(), path, body)).await
        });
        prop_assert!(matches!(reply, Reply::Answer(_)), "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn in_process_faults_are_the_failures_of_sockets() {
    use crate::{
        contract::{Failure, FailureKind},
        emulator::InProcess,
        upstream::{Outbound, OutboundBody, Transport as _},
    };
    use http_body_util::BodyExt as _;

    let emulator = Emulator::new(Options::immediate());
    let transport = InProcess(emulator.clone());
    let send = || {
        let Request { method, path_and_query, headers, body, .. } = create("A", None);
        let body = OutboundBody::Bytes(body);
        transport.send(Outbound { method, path_and_query, headers, body, guarded: true })
    };
    let answer = send().await.unwrap();
    assert_eq!((answer.status, answer.body.collect().await.is_ok()), (StatusCode::OK, true));
    emulator.set_faults(always(Fault::CutShort));
    assert!(send().await.unwrap().body.collect().await.is_err());
    emulator.set_faults(always(Fault::ResetAfter));
    assert_eq!(send().await.unwrap_err(), Failure::new(FailureKind::Reset, true));
    emulator.set_faults(Faults::none().refuse(When::Always));
    assert_eq!(send().await.unwrap_err(), Failure::new(FailureKind::Connect, false));
    emulator.set_faults(always(Fault::StallAfter));
    assert!(tokio::time::timeout(Duration::from_mins(10), send()).await.is_err());
    assert_eq!(emulator.made(), 4);
}
