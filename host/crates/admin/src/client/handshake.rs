//! Why TLS with a listener failed, in terms of the commands' options. [`FailureReason::text`] speaks of upstreams.

use crate::contract::{CertificateFact, FailureReason};

/// The fact, what the certificate says of itself, and what to do. None if the failure is not one of TLS. `has_identity`: the client has a
/// certificate to show.
pub(super) fn text(reason: FailureReason, certificate: Option<CertificateFact>, has_identity: bool) -> Option<String> {
    let (fact, remedy) = match reason {
        FailureReason::UnknownAuthority => {
            ("no trusted authority has signed its certificate", "give its authority with --ca-file FILE")
        }
        FailureReason::AuthorityAsServer => (
            "it uses an authority's certificate as its server certificate",
            "set admin.tls.certificate to a certificate that the authority has signed",
        ),
        FailureReason::WrongName => {
            ("its certificate does not cover the host name of this URL", "use a name of the certificate in --admin URL")
        }
        FailureReason::Expired => {
            ("its certificate has expired", "renew admin.tls.certificate, or correct this machine's clock")
        }
        FailureReason::NotYetValid => {
            ("its certificate is not valid yet", "correct the clock of this machine or of the host")
        }
        FailureReason::Revoked => ("its certificate was revoked", "renew admin.tls.certificate"),
        FailureReason::BadCertificate => {
            ("its certificate is not usable", "set admin.tls.certificate to another certificate")
        }
        FailureReason::ClientCertificate if has_identity => (
            "it refuses this client certificate",
            "give one that is valid now and signed by an authority of admin.tls.client_ca",
        ),
        FailureReason::ClientCertificate => {
            ("it requires a client certificate", "give one with --client-certificate FILE and --client-key FILE")
        }
        FailureReason::TlsVersion => {
            ("it shares no version or cipher suite of TLS with this command", "it needs TLS 1.2 or 1.3")
        }
        FailureReason::NotTls => (
            "it does not speak TLS on this port",
            "write http:// in the URL, or use the port of an admin listener with TLS",
        ),
        // A listener that cannot verify a client certificate's signature says decrypt_error, as for other failures.
        FailureReason::TlsHandshake if has_identity => (
            "the TLS handshake failed, perhaps because it refuses this client certificate",
            "see the host's log; the certificate must be valid now and signed by an authority of admin.tls.client_ca",
        ),
        FailureReason::TlsHandshake => ("the TLS handshake failed", "see the host's log"),
        FailureReason::TooManyFields
        | FailureReason::HeadTooLarge
        | FailureReason::TransferCoding
        | FailureReason::ContentLength
        | FailureReason::Status
        | FailureReason::Upgrade => return None,
    };
    let certificate = certificate.map_or(String::new(), |fact| format!(" ({fact})"));
    Some(format!("{fact}{certificate}; {remedy}"))
}
