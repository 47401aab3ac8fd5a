//! Tries a policy with every status, failure and effect, and lists the verdicts that the host would not follow, or that would free an
//! idempotency key or repeat a write without proof. Cases show what an author thought of; this check shows the rest.

mod grouping;
mod outcomes;

use super::{
    Policy,
    contract::{Attempt, Class, Description, Effect, Endpoint, Purpose, Verdict},
    golden_tests::{self, CasesError, Request},
    host_view::HostView,
};
use crate::route::Router;
use grouping::Groups;
use http::{HeaderMap, Method};
use outcomes::{Came, Variant};
use serde::Serialize;
use std::{fmt, time::Duration};
use triage_core::{
    contract::leaves_unknown,
    idempotency::{Ended, Ending, Retention, retention},
    retry::{NextAction, ObservedResult},
};

/// The maximum number of requests that are taken from the cases. Each is tried with some ten thousand outcomes.
const MAX_REQUESTS: usize = 32;

/// The kinds of findings, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The policy trapped, ran too long, or returned an invalid verdict.
    Fault,
    /// With `settle = true` the host would send an unsafe request again, although nothing proves that it was not applied.
    RepeatsWrite,
    /// With `settle = true` the host would free the key of an unsafe request, although nothing proves that it was not applied.
    FreesKey,
    /// The host would not follow the verdict.
    NotFollowed,
}

/// Verdicts of one kind for one endpoint and effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind.
    pub kind: Kind,
    /// The endpoint's name.
    pub endpoint: String,
    /// The effect of the request.
    pub effect: Effect,
    /// Whether the outcomes are those of requests or of verifications.
    pub purpose: Purpose,
    /// The statuses, as ranges, and the failures.
    pub outcomes: Vec<String>,
    /// What else these attempts have in common, unlike others that were tried.
    pub only: Vec<String>,
    /// The verdict, or the fault.
    pub says: String,
    /// Why the host departs from the verdict, by its name in `triage-clamped`, or `class`; none for other kinds.
    pub reason: Option<&'static str>,
    /// What the host does; none for a fault.
    pub host: Option<String>,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The policy's name.
    pub policy: String,
    /// The policy's version.
    pub version: String,
    /// Whether the findings of the kind `not-followed` are those with `settle = true`.
    pub settle: bool,
    /// The number of decisions that were tried.
    pub decisions: u64,
    /// The findings, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether no verdict frees a key or repeats a write without proof, and no decision failed.
    pub fn passes(&self) -> bool {
        self.findings.iter().all(|finding| finding.kind == Kind::NotFollowed)
    }
}

/// Checks a policy with a request of its own for each endpoint, and with the requests of its cases: what they contain may lead to a
/// verification. `settle`: whether the host's departures are shown with the operator's grant or without it. What frees a key or repeats a
/// write is always looked for with the grant, since without it the host believes only its own proof.
///
/// # Errors
/// [`CasesError`] if the cases cannot be read.
pub fn check(policy: &Policy, cases: Option<&str>, settle: bool) -> Result<Report, CasesError> {
    let Description { name, version, endpoints, .. } = policy.description();
    let router = Router::new(endpoints.iter().map(|e| (e.method.as_ref(), e.path.as_str())))?;
    let of_cases = cases.map_or(Ok(Vec::new()), |cases| golden_tests::requests(cases, MAX_REQUESTS))?;
    let own = endpoints.iter().enumerate().flat_map(|(index, described)| {
        let methods =
            described.method.clone().map_or(vec![Method::GET, Method::PUT, Method::POST], |method| vec![method]);
        methods.into_iter().map(move |method| {
            let path = outcomes::path(&described.path);
            (index, Request { method, path, headers: HeaderMap::new(), body: "{}".to_owned() })
        })
    });
    let of_cases = of_cases.into_iter().filter_map(|request| {
        let path = request.path.split('?').next().unwrap_or_default();
        Some((router.find(&request.method, path)?, request))
    });
    let mut check = Check { policy, settle, decisions: 0, groups: Groups::default() };
    for (index, request) in own.chain(of_cases) {
        let Some(described) = endpoints.get(index) else { continue };
        let effect = Effect::of(&request.method).max(described.effect);
        check.request(&Subject { index, described, effect, request });
    }
    Ok(Report {
        policy: name.clone(),
        version: version.clone(),
        settle,
        decisions: check.decisions,
        findings: check.groups.findings(),
    })
}

struct Check<'a> {
    policy: &'a Policy,
    settle: bool,
    decisions: u64,
    groups: Groups,
}

/// A request whose outcomes are tried.
struct Subject<'a> {
    index: usize,
    described: &'a Endpoint,
    effect: Effect,
    request: Request,
}

impl Check<'_> {
    fn request(&mut self, subject: &Subject<'_>) {
        let mut verifies = false;
        for came in Came::all() {
            for variant in Variant::of_requests() {
                verifies |= self.one(subject, Purpose::Request, came, &variant);
            }
        }
        if verifies {
            for came in Came::all() {
                for variant in Variant::of_verifications(subject.described.commit_within) {
                    self.one(subject, Purpose::Probe, came, &variant);
                }
            }
        }
    }

    /// Tries one outcome. Returns whether the policy asks for a verification.
    fn one(&mut self, subject: &Subject<'_>, purpose: Purpose, came: Came, variant: &Variant) -> bool {
        let Subject { index, described, effect, request } = subject;
        let hints = if variant.hinted { outcomes::hints() } else { HeaderMap::new() };
        let attempt = Attempt {
            endpoint: *index,
            method: &request.method,
            effect: *effect,
            purpose,
            number: variant.number,
            prior_unknown: variant.prior_unknown,
            sent_ago: variant.sent_ago.or(came.is_sent().then_some(Duration::from_millis(20))),
            elapsed: Duration::from_secs(1),
            remaining: Duration::from_secs(600),
            previous_delay: Duration::ZERO,
            random: 0,
            now_unix_ms: golden_tests::NOW_UNIX_MS,
            keyed: variant.keyed,
            path: &request.path,
            request_headers: &request.headers,
            request_body: request.body.as_bytes(),
            taken: &[],
        };
        let outcome = came.outcome(&hints, variant.body);
        self.decisions += 1;
        let mut note = |kind, says: String, reason, host| {
            let key = grouping::Key { kind, endpoint: *index, effect: *effect, purpose, says, reason, host };
            self.groups.add(key, &described.name, came, variant);
        };
        let verdict = match self.policy.decide(&attempt, &outcome) {
            Ok(verdict) => verdict,
            Err(fault) => {
                note(Kind::Fault, fault.for_author(), None, None);
                return false;
            }
        };
        let says = said(&verdict);
        let trusted = HostView::of(described, &attempt, &outcome, &verdict, true);
        if *effect == Effect::Unsafe && !is_proof(came, variant, purpose, described.commit_within) {
            let does = || Some(trusted.does());
            if matches!(trusted.clamped.step, NextAction::Retry(_) | NextAction::Resend(_)) {
                note(Kind::RepeatsWrite, says.clone(), None, does());
            } else if is_released(&trusted) {
                note(Kind::FreesKey, says.clone(), None, does());
            }
        }
        let view = if self.settle { trusted } else { HostView::of(described, &attempt, &outcome, &verdict, false) };
        if let Some(departure) = view.departure().filter(|departure| !is_budget(departure.name())) {
            note(Kind::NotFollowed, says, Some(departure.name()), Some(view.does()));
        }
        matches!(verdict.next, super::contract::Next::Verify(_))
    }
}

/// Whether a departure says something of time or of the number of attempts, and so nothing of the outcome.
fn is_budget(reason: &str) -> bool {
    matches!(reason, "attempts" | "deadline" | "probes")
}

/// Whether HTTP, the connection or the commit time proves that the write was not applied, whatever the policy says.
fn is_proof(came: Came, variant: &Variant, purpose: Purpose, commit_within: Option<Duration>) -> bool {
    match (purpose, came) {
        (_, _) if purpose == Purpose::Request && variant.prior_unknown => false,
        (Purpose::Request, Came::Failed(failure)) => !failure.sent,
        // 307 and 308 send the caller elsewhere. Statuses that refuse a request say that it was not applied.
        (Purpose::Request, Came::Status(status)) => {
            matches!(status.as_u16(), 307 | 308 | 400..=499 | 501 | 505 | 511) && !leaves_unknown(status.as_u16())
        }
        // A list without the write, or no such resource, once the upstream can no longer apply it.
        (Purpose::Probe, Came::Status(status)) => {
            matches!(status.as_u16(), 200 | 404)
                && commit_within.zip(variant.sent_ago).is_some_and(|(within, ago)| ago >= within)
        }
        (Purpose::Probe, Came::Failed(_)) => false,
    }
}

/// Whether the host would delete the record of a request with a key after this outcome.
fn is_released(view: &HostView) -> bool {
    let HostView { clamped, input, .. } = view;
    let answered = matches!(input.seen, ObservedResult::Status(_)) && input.purpose == Purpose::Request;
    let ending = match &clamped.step {
        NextAction::Replace(_) => Ending::Answered,
        NextAction::Deliver if answered => Ending::Answered,
        NextAction::Deliver => {
            Ending::Refused { maybe_sent: input.seen != ObservedResult::NotSent, effect_unknown: false }
        }
        NextAction::Unsettled => Ending::Refused { maybe_sent: true, effect_unknown: true },
        NextAction::Retry(_) | NextAction::Resend(_) | NextAction::Verify(_) => return false,
    };
    let class = if clamped.step == NextAction::Unsettled { Class::Unknown } else { clamped.class };
    let ended = Ended {
        effect: input.effect,
        granted: input.granted,
        class,
        unsettled: clamped.unsettled(input.effect, input.unsettled),
        keyed: true,
        keeps_proof: false,
        ending,
    };
    retention(&ended) == Retention::Release
}

/// A verdict in words, without its wait.
fn said(verdict: &Verdict) -> String {
    use super::contract::Next::{Deliver, Replace, Retry, Verify};
    let next = match verdict.next {
        Deliver => "deliver",
        Retry(_) => "retry",
        Verify(_) => "verify",
        Replace(_) => "replace",
    };
    format!("{}, {next}", verdict.class.name())
}

impl Kind {
    fn heading(self) -> &'static str {
        match self {
            Self::Fault => "the policy fails:",
            Self::RepeatsWrite => {
                "with `settle = true` the host would repeat a write without proof that it was not applied:"
            }
            Self::FreesKey => {
                "with `settle = true` the host would free a write's idempotency key without proof that it was not applied:"
            }
            Self::NotFollowed => "the host would not follow:",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, effect, purpose, outcomes, only, says, reason, host, .. } = self;
        let of = if *purpose == Purpose::Probe { " (verification)" } else { "" };
        write!(f, "{endpoint}, {}{of}: {}", effect.name(), outcomes.join(", "))?;
        if !only.is_empty() {
            write!(f, " [{}]", only.join(", "))?;
        }
        write!(f, ": {says}")?;
        if let Some(reason) = reason {
            write!(f, "; {reason}")?;
        }
        host.as_ref().map_or(Ok(()), |host| write!(f, "; {host}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, version, settle, decisions, findings } = self;
        let grant = if *settle { "with" } else { "without" };
        writeln!(f, "{policy} {version}: {decisions} decisions tried, {grant} `settle = true`")?;
        let mut last = None;
        for finding in findings {
            if last != Some(finding.kind) {
                writeln!(f, "{}", finding.kind.heading())?;
                last = Some(finding.kind);
            }
            writeln!(f, "  {finding}")?;
        }
        if self.passes() {
            writeln!(f, "no verdict frees a key or repeats a write without proof, and no decision fails")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
