//! The outcomes and attempts that a check tries.

use super::super::contract::{Failure, FailureKind, Outcome};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::time::Duration;

/// Every status of HTTP, and some that are none.
const STATUSES: std::ops::RangeInclusive<u16> = 100..=599;
const BEYOND: [u16; 3] = [600, 799, 999];
/// Failures before anything is sent.
const UNSENT: [FailureKind; 4] =
    [FailureKind::Dns, FailureKind::Connect, FailureKind::ConnectTimeout, FailureKind::Tls];
/// Failures after which the upstream may have the request, or not.
const EITHER: [FailureKind; 5] =
    [FailureKind::Send, FailureKind::Reset, FailureKind::Timeout, FailureKind::Protocol, FailureKind::Body];
/// The bodies of verifications: none, and an empty list.
const BODIES: [&str; 2] = ["", "[]"];

/// The result of an attempt. Ordered as it is shown.
#[derive(Debug, Clone, Copy)]
pub(super) enum Came {
    Status(StatusCode),
    Failed(Failure),
}

impl Came {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let statuses = STATUSES.chain(BEYOND).filter_map(|status| StatusCode::from_u16(status).ok());
        let unsent = UNSENT.into_iter().chain(EITHER).map(|kind| Failure::new(kind, false));
        let sent = EITHER.into_iter().map(|kind| Failure::new(kind, true));
        statuses.map(Self::Status).chain(unsent.chain(sent).map(Self::Failed))
    }

    pub(super) fn is_sent(self) -> bool {
        match self {
            Self::Status(_) => true,
            Self::Failed(failure) => failure.sent,
        }
    }

    pub(super) fn outcome<'a>(self, headers: &'a HeaderMap, body: &'a str) -> Outcome<'a> {
        match self {
            Self::Status(status) => Outcome::Response { status, headers, body: body.as_bytes(), complete: true },
            Self::Failed(failure) => Outcome::Failure(failure),
        }
    }
}

/// The rest of an attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Variant {
    pub(super) id: u32,
    pub(super) number: u32,
    pub(super) keyed: bool,
    pub(super) prior_unknown: bool,
    pub(super) hinted: bool,
    pub(super) sent_ago: Option<Duration>,
    pub(super) body: &'static str,
    /// Whether the time since the send is past the upstream's commit time; none for requests.
    pub(super) is_late: Option<bool>,
}

/// The number of variants of a request, and of a verification.
pub(super) const REQUESTS: u32 = 16;
pub(super) const VERIFICATIONS: u32 = 12;

impl Variant {
    /// First and second attempt, with and without a key, an earlier unknown attempt, and the upstream's hints.
    pub(super) fn of_requests() -> impl Iterator<Item = Self> {
        (0..REQUESTS).map(|id| Self {
            id,
            number: 1 + (id & 1),
            keyed: id & 2 != 0,
            prior_unknown: id & 4 != 0,
            hinted: id & 8 != 0,
            sent_ago: None,
            body: "",
            is_late: None,
        })
    }

    /// First and second verification, soon after the send, shortly before the commit time is over, and after it.
    pub(super) fn of_verifications(commit_within: Option<Duration>) -> impl Iterator<Item = Self> {
        let within = commit_within.unwrap_or(Duration::from_secs(60));
        let times = [
            Duration::from_millis(20),
            within.saturating_sub(Duration::from_millis(1)),
            within + Duration::from_secs(1),
        ];
        (0..VERIFICATIONS).map(move |id| {
            let time = (id >> 2) as usize;
            Self {
                id,
                number: 1 + (id & 1),
                keyed: true,
                prior_unknown: true,
                hinted: false,
                sent_ago: times.get(time).copied(),
                body: BODIES[usize::from(id & 2 != 0)],
                is_late: Some(time == 2),
            }
        })
    }
}

/// Headers by which an upstream says that a retry helps.
pub(super) fn hints() -> HeaderMap {
    let hints = [("x-should-retry", "true"), ("retry-after", "1")];
    let pair = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    hints.into_iter().map(pair).collect()
}

/// A path that a template matches.
pub(super) fn path(template: &str) -> String {
    let segment = |segment: &str| if segment.contains('{') { "1".to_owned() } else { segment.to_owned() };
    template.split('/').map(segment).collect::<Vec<_>>().join("/")
}
