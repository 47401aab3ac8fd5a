//! No policy can cause an unsafe request to be resent, or a key to be released, without proof. Checks every policy, method, status and
//! failure, with and without key and grant, through the clamp and the record's decision.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::{sync::Arc, time::Duration};
use triage_core::{
    retry::{self, ClampInput, Clamped, NextAction, ObservedResult, clamp},
    route::Router,
};
use triage_engine::{
    Engine, LoadOptions, Policy,
    contract::{Attempt, Class, Effect, Failure, FailureKind, Outcome, Purpose, Verdict},
    prebuilt,
};
use triage_state::idempotency::{Ended, Ending, Retention, retention};

const METHODS: [&str; 10] = ["GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PUT", "DELETE", "POST", "PATCH", "LAUNCH"];
const UNSAFE_METHODS: [&str; 3] = ["POST", "PATCH", "LAUNCH"];
const STATUSES: std::ops::RangeInclusive<u16> = 100..=999;
const FAILURES: [FailureKind; 9] = [
    FailureKind::Dns,
    FailureKind::Connect,
    FailureKind::ConnectTimeout,
    FailureKind::Tls,
    FailureKind::Send,
    FailureKind::Reset,
    FailureKind::Timeout,
    FailureKind::Protocol,
    FailureKind::Body,
];
/// Bodies of an upstream without a batch, without a match, or without content.
const PROBE_BODIES: [&str; 4] = [
    "",
    "[]",
    r#"{"detail":"No hospitals found with the specified batch ID"}"#,
    r#"{"resourceType":"Bundle","type":"searchset","total":0}"#,
];

/// A request to decide on.
struct Request {
    path: &'static str,
    headers: HeaderMap,
    body: &'static str,
}

/// The number of played cases.
#[derive(Debug, Default)]
pub struct Played {
    /// Outcomes of requests, each with and without a grant.
    pub requests: u64,
    /// Outcomes of verifications.
    pub verifications: u64,
}

/// With and without a key, a hint that a retry helps, and an earlier unknown effect.
const VARIANTS: [[bool; 3]; 8] = [
    [false, false, false],
    [true, true, false],
    [true, false, true],
    [false, true, true],
    [true, false, false],
    [false, true, false],
    [false, false, true],
    [true, true, true],
];
/// The number of these variants for a component with an interpreter, whose decisions take milliseconds here. They contain each flag both
/// set and unset.
pub const FEW_VARIANTS: usize = 3;

/// Plays every case with a policy.
pub fn play(name: &str, policy: &Policy, variants: usize) -> Played {
    let mut played = Played::default();
    for request in requests(name) {
        for method in METHODS {
            Subject::new(name, policy, method, &request).play(&VARIANTS[..variants], &mut played);
        }
    }
    played
}

fn requests(name: &str) -> Vec<Request> {
    const BATCH: &str = r#"{"name":"A","address":"B","creation_batch_id":"7d3c5a52-0000-4000-8000-000000000001"}"#;

    let plain = |path, body| Request { path, headers: HeaderMap::new(), body };
    let with_header = |path, header, value| Request { headers: headers(&[(header, value)]), ..plain(path, "{}") };
    let mut all = vec![plain("/anything", "")];
    match name {
        "hospital-directory" => all.extend([
            plain("/hospitals/", BATCH),
            plain("/hospitals/", r#"{"name":"A","address":"B"}"#),
            plain("/hospitals/batch/7d3c5a52-0000-4000-8000-000000000001/activate", ""),
        ]),
        "fhir" => all.extend([
            plain("/", r#"{"resourceType":"Bundle","type":"transaction"}"#),
            plain("/Patient", r#"{"resourceType":"Patient"}"#),
            with_header("/Patient", "if-none-exist", "identifier=urn:mrn|1"),
            with_header("/Patient/1", "if-match", "W/\"1\""),
        ]),
        _ => {}
    }
    all
}

fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
    all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy)]
enum Received {
    Status(StatusCode),
    Failed(Failure),
}

impl Received {
    fn all() -> impl Iterator<Item = Self> {
        let statuses = STATUSES.map(|status| Self::Status(StatusCode::from_u16(status).unwrap()));
        let failures = FAILURES.into_iter().flat_map(|kind| [true, false].map(|sent| Failure::new(kind, sent)));
        statuses.chain(failures.map(Self::Failed))
    }

    fn seen(self) -> ObservedResult {
        match self {
            Self::Status(status) => ObservedResult::Status(status.as_u16()),
            Self::Failed(Failure { sent: false, .. }) => ObservedResult::NotSent,
            Self::Failed(_) => ObservedResult::Lost,
        }
    }

    fn outcome<'a>(self, headers: &'a HeaderMap, body: &'a str) -> Outcome<'a> {
        match self {
            Self::Status(status) => Outcome::Response { status, headers, body: body.as_bytes(), complete: true },
            Self::Failed(failure) => Outcome::Failure(failure),
        }
    }
}

/// A policy's endpoint for one method and request.
struct Subject<'a> {
    name: &'a str,
    policy: &'a Policy,
    method: Method,
    request: &'a Request,
    endpoint: usize,
    effect: Effect,
    commit_within: Option<Duration>,
}

impl<'a> Subject<'a> {
    fn new(name: &'a str, policy: &'a Policy, method: &str, request: &'a Request) -> Self {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let endpoints = &policy.description().endpoints;
        let router = Router::new(endpoints.iter().map(|e| (e.method.as_ref(), e.path.as_str()))).unwrap();
        let endpoint = router.find(&method, request.path).unwrap();
        let described = &endpoints[endpoint];
        let effect = Effect::of(&method).max(described.effect);
        Self { name, policy, method, request, endpoint, effect, commit_within: described.commit_within }
    }

    fn play(&self, variants: &[[bool; 3]], played: &mut Played) {
        if UNSAFE_METHODS.contains(&self.method.as_str()) {
            assert_eq!(self.effect, Effect::Unsafe, "{} {}", self.name, self.method);
        }
        let mut probe_is_played = false;
        for received in Received::all() {
            for &[keyed, hinted, unsettled] in variants {
                let hints = if hinted {
                    headers(&[("x-should-retry", "true"), ("retry-after", "1")])
                } else {
                    HeaderMap::new()
                };
                let verdict = self.verdict(Purpose::Request, keyed, unsettled, None, &received.outcome(&hints, ""));
                for granted in [false, true] {
                    let facts = self.facts(Purpose::Request, granted, unsettled, received.seen(), Duration::ZERO);
                    let clamped = clamp(verdict.clone(), &facts, &retry::Settings::default());
                    self.check_request(received, &facts, &clamped);
                    played.requests += 1;
                    if matches!(clamped.step, NextAction::Verify(_)) && !probe_is_played {
                        probe_is_played = true;
                        self.play_probe(played);
                    }
                }
            }
        }
    }

    /// Plays every outcome of a verification, before and after the upstream's commit time.
    fn play_probe(&self, played: &mut Played) {
        let within = self.commit_within.unwrap_or(Duration::from_secs(60));
        for received in Received::all() {
            for body in PROBE_BODIES {
                for sent_ago in [
                    Duration::from_secs(1),
                    within.saturating_sub(Duration::from_millis(1)),
                    within + Duration::from_secs(1),
                ] {
                    let nothing = HeaderMap::new();
                    let outcome = received.outcome(&nothing, body);
                    let verdict = self.verdict(Purpose::Probe, true, true, Some(sent_ago), &outcome);
                    let facts = self.facts(Purpose::Probe, true, true, received.seen(), sent_ago);
                    let clamped = clamp(verdict, &facts, &retry::Settings::default());
                    let absence_counts = sent_ago >= within;
                    let describe = || format!("{}: {body:?} {sent_ago:?} {clamped:?}", self.describe(received, &facts));
                    assert!(
                        absence_counts || !matches!(clamped.step, NextAction::Retry(_)),
                        "sent again: {}",
                        describe()
                    );
                    assert!(absence_counts || !self.is_released(&facts, &clamped), "released: {}", describe());
                    // Only a response that can show presence can prove absence.
                    let is_proof = matches!(received, Received::Status(status) if matches!(status.as_u16(), 200 | 404));
                    assert!(is_proof || !matches!(clamped.step, NextAction::Retry(_)), "sent again: {}", describe());
                    assert!(is_proof || !self.is_released(&facts, &clamped), "released: {}", describe());
                    played.verifications += 1;
                }
            }
        }
    }

    fn check_request(&self, received: Received, facts: &ClampInput, clamped: &Clamped) {
        let is_released = self.is_released(facts, clamped);
        if self.effect == Effect::Idempotent {
            // Resending an idempotent request is harmless, but its key must not be released while its effect is unknown.
            assert!(clamped.class != Class::Unknown || !is_released, "{}: {clamped:?}", self.describe(received, facts));
        }
        if self.effect != Effect::Unsafe {
            return;
        }
        let is_resent = matches!(clamped.step, NextAction::Retry(_) | NextAction::Resend(_));
        assert!(
            !is_resent || self.may_be_resent(received, facts),
            "sent again: {}: {clamped:?}",
            self.describe(received, facts)
        );
        assert!(
            !is_released || self.may_be_released(received, facts),
            "released: {}: {clamped:?}",
            self.describe(received, facts)
        );
    }

    /// Whether the host has proof that the request was not applied, or the operator trusts this policy's table.
    fn may_be_resent(&self, received: Received, facts: &ClampInput) -> bool {
        let proof = match received {
            Received::Failed(failure) => !failure.sent,
            Received::Status(status) => match status.as_u16() {
                425 | 429 => true,
                // A lock, or a transaction that was rolled back.
                409 | 423 => facts.granted && self.name == "fhir",
                _ => false,
            },
        };
        proof && !facts.unsettled
    }

    /// Whether the host has proof that a request has no effect. A refusal by HTTP's own statuses counts if the operator trusts the policy.
    fn may_be_released(&self, received: Received, facts: &ClampInput) -> bool {
        let proof = match received {
            Received::Failed(failure) => !failure.sent,
            Received::Status(status) => match status.as_u16() {
                307 | 308 | 425 | 429 => true,
                408 => false,
                // The policy's table counts these statuses as refusals.
                460 | 499 => facts.granted && self.name == "fhir",
                400..=499 | 501 | 505 | 511 => facts.granted,
                _ => false,
            },
        };
        proof && !facts.unsettled
    }

    /// Whether the record would be deleted after this verdict.
    fn is_released(&self, facts: &ClampInput, clamped: &Clamped) -> bool {
        let unsettled = clamped.unsettled(self.effect, facts.unsettled);
        let answered = matches!(facts.seen, ObservedResult::Status(_)) && facts.purpose == Purpose::Request;
        let ending = match &clamped.step {
            NextAction::Replace(_) => Ending::Answered,
            NextAction::Deliver if answered => Ending::Answered,
            NextAction::Deliver => {
                Ending::Refused { maybe_sent: facts.seen != ObservedResult::NotSent, effect_unknown: false }
            }
            NextAction::Unsettled => Ending::Refused { maybe_sent: true, effect_unknown: true },
            NextAction::Retry(_) | NextAction::Resend(_) | NextAction::Verify(_) => return false,
        };
        let class = if clamped.step == NextAction::Unsettled { Class::Unknown } else { clamped.class };
        let ended = Ended {
            effect: self.effect,
            granted: facts.granted,
            class,
            unsettled,
            keyed: true,
            keeps_proof: false,
            ending,
        };
        retention(&ended) == Retention::Release
    }

    fn facts(
        &self,
        purpose: Purpose,
        granted: bool,
        unsettled: bool,
        seen: ObservedResult,
        sent_ago: Duration,
    ) -> ClampInput {
        ClampInput {
            effect: self.effect,
            granted,
            purpose,
            seen,
            attempts: 1,
            verifications: u32::from(purpose == Purpose::Probe),
            unsettled,
            repeatable: true,
            sent_ago: (unsettled || seen != ObservedResult::NotSent).then_some(sent_ago),
            commit_within: self.commit_within,
            remaining: Duration::from_secs(600),
            attempt_needs: Duration::from_secs(5),
            hint: None,
            upstream_key: None,
        }
    }

    fn verdict(
        &self,
        purpose: Purpose,
        keyed: bool,
        prior_unknown: bool,
        sent_ago: Option<Duration>,
        outcome: &Outcome<'_>,
    ) -> Verdict {
        let attempt = Attempt {
            endpoint: self.endpoint,
            method: &self.method,
            effect: self.effect,
            purpose,
            number: 1,
            prior_unknown,
            sent_ago,
            elapsed: Duration::from_secs(1),
            remaining: Duration::from_secs(600),
            previous_delay: Duration::ZERO,
            random: 0,
            now_unix_ms: 1_767_225_600_000,
            keyed,
            path: self.request.path,
            request_headers: &self.request.headers,
            request_body: self.request.body.as_bytes(),
            taken: &[],
        };
        self.policy.decide(&attempt, outcome).unwrap_or_else(|fault| panic!("{} {}: {fault}", self.name, self.method))
    }

    fn describe(&self, received: Received, facts: &ClampInput) -> String {
        let (name, method, path) = (self.name, &self.method, self.request.path);
        format!("{name} {method} {path} {received:?} granted {} unsettled {}", facts.granted, facts.unsettled)
    }
}

#[test]
fn no_embedded_policy_repeats_a_write_or_frees_its_key_without_proof() {
    let engine = Engine::start().unwrap();
    let reused = LoadOptions { reuse_instances: true, ..LoadOptions::default() };
    let embedded = prebuilt::names().into_iter().map(|name| {
        (name, Policy::load(&engine, &super::component(name), &reused).unwrap_or_else(|e| panic!("{name}: {e:?}")))
    });
    let all: Vec<(&str, Arc<Policy>)> = std::iter::once(("builtin", Policy::builtin())).chain(embedded).collect();
    let mut total = 0;
    for (name, policy) in all {
        let Played { requests, verifications } = play(name, &policy, VARIANTS.len());
        println!("{name}: {requests} outcomes of requests, {verifications} of verifications");
        assert!(requests >= 146_880, "{name}: {requests}");
        total += requests + verifications;
    }
    println!("{total} cases");
}
