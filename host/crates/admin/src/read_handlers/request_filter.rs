//! Which of the recent requests a caller wants.

use crate::{AdminState, dto::input::RequestsQuery, error::REASONS, response::Refusal, telemetry::RequestRow};
use std::str::FromStr;

/// The filter of a query; what it leaves out fits.
#[derive(Debug)]
pub(super) struct RequestFilter {
    upstream: Option<String>,
    endpoint: Option<String>,
    status: Option<StatusFilter>,
    reason: Option<String>,
}

/// A status, or a class of statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StatusFilter {
    Status(u16),
    /// The first digit.
    Class(u16),
}

impl FromStr for StatusFilter {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let malformed = || Refusal::Malformed("status must be a status such as 503, or a class such as 5xx".to_owned());
        let (first, rest) = text.split_at_checked(1).ok_or_else(malformed)?;
        let class = first.parse().ok().filter(|class| (1..=5).contains(class)).ok_or_else(malformed)?;
        let is_number = rest.len() == 2 && rest.bytes().all(|byte| byte.is_ascii_digit());
        match rest {
            "xx" => Ok(Self::Class(class)),
            _ if is_number => text.parse().map(Self::Status).map_err(|_| malformed()),
            _ => Err(malformed()),
        }
    }
}

impl StatusFilter {
    fn fits(self, status: Option<u16>) -> bool {
        status.is_some_and(|status| match self {
            Self::Status(own) => status == own,
            Self::Class(class) => status / 100 == class,
        })
    }
}

impl RequestFilter {
    /// The filter of a query.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the status or the reason is none.
    pub(super) fn of(query: RequestsQuery) -> Result<Self, Refusal> {
        let RequestsQuery { upstream, endpoint, status, reason, .. } = query;
        if reason.as_ref().is_some_and(|reason| !REASONS.contains(&reason.as_str())) {
            return Err(Refusal::Malformed(format!(
                "reason must be the last word of a problem's type, one of {}",
                REASONS.join(", ")
            )));
        }
        Ok(Self { upstream, endpoint, status: status.map(|status| status.parse()).transpose()?, reason })
    }

    /// Whether a request fits.
    pub(super) fn fits(&self, row: &RequestRow) -> bool {
        is(self.upstream.as_ref(), &row.names.upstream)
            && is(self.endpoint.as_ref(), &row.names.endpoint)
            && self.status.is_none_or(|status| status.fits(row.status))
            && self.reason.as_deref().is_none_or(|reason| row.reason == Some(reason))
    }

    /// Whether no upstream of the host, or no endpoint of it, has the name that the filter wants. A misspelt name must not look like one
    /// without requests.
    pub(super) fn names_none(&self, state: &AdminState) -> bool {
        let upstreams = &state.host.shared.rollout.upstreams;
        !upstreams.iter().filter(|serving| is(self.upstream.as_ref(), &serving.settings.name)).any(|serving| {
            self.endpoint.is_none()
                || serving
                    .current()
                    .endpoints
                    .iter()
                    .any(|endpoint| is(self.endpoint.as_ref(), &endpoint.described.name))
        })
    }
}

/// Whether a name is the wanted one, if one is wanted.
fn is(wanted: Option<&String>, own: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_three_digits_or_a_class() {
        assert_eq!("503".parse(), Ok(StatusFilter::Status(503)));
        assert_eq!("5xx".parse(), Ok(StatusFilter::Class(5)));
        for text in ["", "5", "50", "5x", "5XX", "xxx", "600", "000", "5000", "+50", "5\u{e9}", "\u{e9}00", "-5x"] {
            assert!(text.parse::<StatusFilter>().is_err(), "{text}");
        }
        assert!(StatusFilter::Class(5).fits(Some(503)) && !StatusFilter::Class(5).fits(Some(404)));
        assert!(!StatusFilter::Status(503).fits(None), "the caller left before the answer");
    }
}
