//! Classifies a client error: the kind of failure, and whether the request may have been sent.

use super::resolve::Unresolved;
use crate::contract::{CertificateFact, CertificateNames, Failure, FailureKind, FailureReason};
use rustls::CertificateError;
use std::{error::Error, io};

type AnyError<'a> = &'a (dyn Error + 'static);

/// Classifies a reqwest error. `sent` is false only for errors while connecting and for streams that the upstream reports as refused (RFC
/// 9113 section 8.7). In every other case the request may have reached the upstream.
pub(super) fn failure(error: &reqwest::Error) -> Failure {
    if error.is_connect() {
        return unconnected(error, error.is_timeout());
    }
    if let Some(stream) = in_chain::<h2::Error>(error)
        && stream.is_remote()
        && stream.reason() == Some(h2::Reason::REFUSED_STREAM)
    {
        return Failure::new(FailureKind::Reset, false);
    }
    let kind = match after_send(error) {
        _ if error.is_timeout() => FailureKind::Timeout,
        None if error.is_body() || error.is_decode() => FailureKind::Body,
        kind => kind.unwrap_or(FailureKind::Protocol),
    };
    with_reason(kind, true, error)
}

/// Classifies an error on an open connection. The request may have reached the upstream.
pub(super) fn broken(error: &hyper::Error) -> Failure {
    with_reason(after_send(error).unwrap_or(FailureKind::Protocol), true, error)
}

/// Classifies an error while connecting.
pub(super) fn connecting(error: AnyError<'_>) -> Failure {
    unconnected(error, in_chain::<io::Error>(error).is_some_and(|io| io.kind() == io::ErrorKind::TimedOut))
}

fn unconnected(error: AnyError<'_>, timed_out: bool) -> Failure {
    let kind = if is_exhausted(error) {
        FailureKind::Exhausted
    } else if in_chain::<Unresolved>(error).is_some() {
        FailureKind::Dns
    } else if reason(error).is_some() {
        FailureKind::Tls
    } else if timed_out {
        FailureKind::ConnectTimeout
    } else {
        FailureKind::Connect
    };
    with_reason(kind, false, error)
}

fn with_reason(kind: FailureKind, sent: bool, error: AnyError<'_>) -> Failure {
    Failure { kind, sent, reason: reason(error), certificate: chain(error).find_map(tls_error).and_then(fact) }
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

/// Whether this machine lacks a resource for the connection: file descriptors of the process or the system, or buffers.
fn is_exhausted(error: AnyError<'_>) -> bool {
    let codes = chain(error).filter_map(|link| link.downcast_ref::<io::Error>()?.raw_os_error());
    codes.map(rustix::io::Errno::from_raw_os_error).any(|code| {
        use rustix::io::Errno;
        matches!(code, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    })
}

/// The reason, if an operator can act on it. TLS can fail after the handshake too: in version 1.3 the upstream checks the client's
/// certificate after it has sent its own last message.
fn reason(error: AnyError<'_>) -> Option<FailureReason> {
    let too_large = in_chain::<hyper::Error>(error).is_some_and(hyper::Error::is_parse_too_large);
    if too_large { Some(FailureReason::HeadTooLarge) } else { chain(error).find_map(tls_error).map(tls) }
}

/// The error of a failed handshake. It is wrapped in an `io::Error`, sometimes in two. `Error::source` skips a wrapped error, so this
/// function unwraps it by `get_ref`.
fn tls_error<'a>(link: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = link.downcast_ref::<rustls::Error>() {
        return Some(error);
    }
    let payload = link.downcast_ref::<io::Error>().and_then(io::Error::get_ref)?;
    chain(payload).find_map(tls_error)
}

/// What the upstream's certificate says of itself, where that explains the failure.
fn fact(error: &rustls::Error) -> Option<CertificateFact> {
    let rustls::Error::InvalidCertificate(error) = error else { return None };
    Some(match error {
        CertificateError::NotValidForNameContext { presented, .. } => {
            CertificateFact::Names(CertificateNames::new(presented.iter().map(|name| bare_name(name))))
        }
        CertificateError::ExpiredContext { not_after, .. } => CertificateFact::ExpiredAt(not_after.as_secs()),
        CertificateError::NotValidYetContext { not_before, .. } => CertificateFact::ValidFrom(not_before.as_secs()),
        _ => return None,
    })
}

/// rustls formats names for debugging, such as `DnsName("a.example")` and `IpAddress(10.0.0.1)`.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

fn tls(error: &rustls::Error) -> FailureReason {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            Alert::ProtocolVersion
            | Alert::HandshakeFailure
            | Alert::InsufficientSecurity
            | Alert::NoApplicationProtocol,
        ) => FailureReason::TlsVersion,
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => FailureReason::ClientCertificate,
        rustls::Error::InvalidMessage(_) => FailureReason::NotTls,
        _ => FailureReason::TlsHandshake,
    }
}

fn certificate(error: &CertificateError) -> FailureReason {
    match error {
        // The signature does not match: usually a private authority was recreated under the same name, and the old one is still trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => FailureReason::UnknownAuthority,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => FailureReason::WrongName,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => FailureReason::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => FailureReason::NotYetValid,
        CertificateError::Revoked => FailureReason::Revoked,
        // rustls has no variant for this.
        CertificateError::Other(other)
            if matches!(other.0.downcast_ref::<webpki::Error>(), Some(webpki::Error::CaUsedAsEndEntity)) =>
        {
            FailureReason::AuthorityAsServer
        }
        _ => FailureReason::BadCertificate,
    }
}

fn in_chain<E: Error + 'static>(error: AnyError<'_>) -> Option<&E> {
    chain(error).find_map(|link| link.downcast_ref::<E>())
}

fn chain<'a>(error: AnyError<'a>) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&link| link.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as clients wrap it.
    #[derive(Debug, thiserror::Error)]
    #[error("tcp open error")]
    struct Wrapped(#[source] io::Error);

    #[test]
    fn a_lack_of_descriptors_is_this_hosts_own_failure() {
        for (code, kind) in [
            (24, FailureKind::Exhausted),
            (23, FailureKind::Exhausted),
            (105, FailureKind::Exhausted),
            (111, FailureKind::Connect),
            (110, FailureKind::ConnectTimeout),
        ] {
            assert_eq!(connecting(&Wrapped(io::Error::from_raw_os_error(code))).kind, kind, "{code}");
        }
        let unresolved = Unresolved(io::Error::from_raw_os_error(24));
        assert_eq!(connecting(&unresolved).kind, FailureKind::Exhausted, "a lookup needs one too");
        assert_eq!(connecting(&Unresolved(io::Error::other("no such name"))).kind, FailureKind::Dns);
    }
}
