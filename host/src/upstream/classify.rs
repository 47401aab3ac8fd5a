//! What a client error says: which kind of failure, and whether anything may have been sent.

use super::resolve::Unresolved;
use crate::policy::contract::{Failure, FailureKind};
use std::{error::Error, io};

type AnyError<'a> = &'a (dyn Error + 'static);

/// Classifies a reqwest error. `sent` is false only for the connect phase and for streams that the upstream says it refused
/// (RFC 9113 section 8.7): everything else may have reached it.
pub(super) fn failure(error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        return Failure { kind: connect(error, error.is_timeout()), sent: false };
    }
    if let Some(stream) = in_chain::<h2::Error>(error)
        && stream.is_remote()
        && stream.reason() == Some(h2::Reason::REFUSED_STREAM)
    {
        return Failure { kind: FailureKind::Reset, sent: false };
    }
    let kind = match after_send(error) {
        _ if error.is_timeout() => FailureKind::Timeout,
        None if error.is_body() || error.is_decode() => FailureKind::Body,
        kind => kind.unwrap_or(FailureKind::Protocol),
    };
    Failure { kind, sent: true }
}

/// Classifies what a connection that was open came to: the request may have reached the upstream.
pub(super) fn broken(error: &hyper::Error) -> Failure {
    Failure { kind: after_send(error).unwrap_or(FailureKind::Protocol), sent: true }
}

/// Classifies why there is no connection.
pub(super) fn connecting(error: AnyError<'_>) -> FailureKind {
    connect(error, in_chain::<io::Error>(error).is_some_and(|io| io.kind() == io::ErrorKind::TimedOut))
}

fn connect(error: AnyError<'_>, timed_out: bool) -> FailureKind {
    if in_chain::<Unresolved>(error).is_some() {
        FailureKind::Dns
    } else if tls(error) {
        FailureKind::Tls
    } else if timed_out {
        FailureKind::ConnectTimeout
    } else {
        FailureKind::Connect
    }
}

fn after_send(error: AnyError<'_>) -> Option<FailureKind> {
    if let Some(hyper) = in_chain::<hyper::Error>(error) {
        if hyper.is_parse() {
            return Some(FailureKind::Protocol);
        }
        if hyper.is_body_write_aborted() || hyper.is_user() {
            return Some(FailureKind::Send);
        }
        if hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed() {
            return Some(FailureKind::Reset);
        }
    }
    if let Some(io) = in_chain::<io::Error>(error) {
        return Some(match io.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::WriteZero => FailureKind::Send,
            _ => FailureKind::Reset,
        });
    }
    in_chain::<h2::Error>(error).map(|_| FailureKind::Reset)
}

fn tls(error: AnyError<'_>) -> bool {
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

fn in_chain<E: Error + 'static>(error: AnyError<'_>) -> Option<&E> {
    chain(error).find_map(|link| link.downcast_ref::<E>())
}

fn chain<'a>(error: AnyError<'a>) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&link| link.source())
}
