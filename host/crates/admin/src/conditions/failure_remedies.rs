//! What to do about a failed attempt.

use crate::{policy::contract::FailureKind, telemetry::FailureCause};

/// The remedy for a failure of an upstream.
pub(crate) fn remedy(cause: FailureCause) -> &'static str {
    match cause {
        FailureCause::Answered(401 | 403) => "Check the credentials that the callers send to the upstream.",
        FailureCause::Answered(429) => {
            "Set or lower `limits` for the upstream, so that the host waits before the upstream refuses."
        }
        FailureCause::Answered(503) => {
            "The upstream says that it is unavailable: look at its own health, maintenance or capacity."
        }
        FailureCause::Answered(_) => "The upstream answers with an error: look at its own log.",
        FailureCause::BodyBroken => {
            "The upstream breaks its answers off: look at its own log, and at proxies on the way."
        }
        FailureCause::HealthCall => {
            "The health call of the upstream, which its policy names, fails: look at the upstream's own log."
        }
        FailureCause::Failed(_, Some(reason)) => reason.text(),
        FailureCause::Failed(kind, None) => match kind {
            FailureKind::Dns => {
                "The name in `base_url` has no address: correct the name, or look at the resolver of this machine."
            }
            FailureKind::Connect => {
                "The upstream accepts no connection: check that it runs, its address in `base_url`, and firewalls on the way."
            }
            FailureKind::ConnectTimeout => {
                "No connection to the upstream in time: check firewalls and routes, and whether its machine runs."
            }
            FailureKind::Tls => {
                "The TLS handshake with the upstream fails: look at the log line of the failed attempt."
            }
            FailureKind::Timeout => {
                "The upstream answers too slowly: look at its load; if it may take this long, raise `attempt_timeout`."
            }
            FailureKind::Reset | FailureKind::Send | FailureKind::Body => {
                "The upstream closes connections in mid-request: look at its own log, its restarts, and proxies on the way."
            }
            FailureKind::Protocol => "The answer is not HTTP: check the port and the scheme in `base_url`.",
            FailureKind::Exhausted => "Raise the limit of open files (LimitNOFILE, ulimit -n).",
        },
    }
}
