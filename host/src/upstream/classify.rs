//! What a client error says: which kind of failure, and whether anything may have been sent.

use super::resolve::Unresolved;
use crate::policy::contract::{Failure, FailureKind};
use std::{error::Error, io};

/// Classifies a reqwest error. `sent` is false only for the connect phase and for streams that the upstream says it refused
/// (RFC 9113 section 8.7): everything else may have reached it.
pub(super) fn failure(error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        let kind = if in_chain::<Unresolved>(error).is_some() {
            FailureKind::Dns
        } else if tls(error) {
            FailureKind::Tls
        } else if error.is_timeout() {
            FailureKind::ConnectTimeout
        } else {
            FailureKind::Connect
        };
        return Failure { kind, sent: false };
    }
    if let Some(stream) = in_chain::<h2::Error>(error)
        && stream.is_remote()
        && stream.reason() == Some(h2::Reason::REFUSED_STREAM)
    {
        return Failure { kind: FailureKind::Reset, sent: false };
    }
    Failure { kind: after_send(error), sent: true }
}

fn after_send(error: &reqwest::Error) -> FailureKind {
    if error.is_timeout() {
        return FailureKind::Timeout;
    }
    if let Some(hyper) = in_chain::<hyper::Error>(error) {
        if hyper.is_parse() {
            return FailureKind::Protocol;
        }
        if hyper.is_body_write_aborted() || hyper.is_user() {
            return FailureKind::Send;
        }
        if hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed() {
            return FailureKind::Reset;
        }
    }
    if let Some(io) = in_chain::<io::Error>(error) {
        return match io.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::WriteZero => FailureKind::Send,
            _ => FailureKind::Reset,
        };
    }
    if in_chain::<h2::Error>(error).is_some() {
        return FailureKind::Reset;
    }
    if error.is_body() || error.is_decode() { FailureKind::Body } else { FailureKind::Protocol }
}

fn tls(error: &reqwest::Error) -> bool {
    chain(error).any(handshake)
}

/// The handshake's error travels inside an `io::Error`, at times inside another one, whose `source` skips its payload.
fn handshake(link: &(dyn Error + 'static)) -> bool {
    if link.is::<rustls::Error>() {
        return true;
    }
    let payload = link.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    payload.is_some_and(|inner| {
        std::iter::successors(Some(inner as &(dyn Error + 'static)), |&link| link.source()).any(handshake)
    })
}

fn in_chain<E: Error + 'static>(error: &reqwest::Error) -> Option<&E> {
    chain(error).find_map(|link| link.downcast_ref::<E>())
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&link| link.source())
}
