//! The exact reason of a failed attempt, for a problem's detail, the log and `triage explain`.
//!
//! The contract with policies knows the kind of a failure only (`wit/types.wit`): a policy decides by it alone, so that a new
//! reason here changes no decision.

/// A cause that an operator can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum FailureReason {
    /// No trusted authority has signed the upstream's certificate.
    UnknownAuthority,
    /// The upstream shows an authority's certificate as its own.
    AuthorityAsServer,
    /// The certificate is for other names.
    WrongName,
    /// The certificate's time is over.
    Expired,
    /// The certificate's time has not begun.
    NotYetValid,
    /// The certificate was revoked.
    Revoked,
    /// The certificate cannot be used for another reason.
    BadCertificate,
    /// The upstream wants a certificate of its callers, or refuses the one it got.
    ClientCertificate,
    /// No version or cipher suite of TLS is common to both sides.
    TlsVersion,
    /// The answer to the handshake was not TLS.
    NotTls,
    /// The handshake failed otherwise.
    TlsHandshake,
    /// The answer has more header fields than it may.
    TooManyFields,
    /// The answer's head has more fields or bytes than it may.
    HeadTooLarge,
    /// The answer comes in a transfer coding that was not asked for.
    TransferCoding,
    /// The answer's length is none, or two differ.
    ContentLength,
    /// The answer's status is none that HTTP has.
    Status,
    /// The upstream changed the protocol unasked.
    Upgrade,
}

impl FailureReason {
    /// The name in problems, logs and explanations.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The fact, and what to do about it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::UnknownAuthority => {
                "no trusted authority has signed the upstream's certificate; set ca_file to the upstream's authority"
            }
            Self::AuthorityAsServer => {
                "the upstream uses an authority's certificate as its server certificate; give the upstream a server \
                 certificate that the authority has signed"
            }
            Self::WrongName => {
                "the upstream's certificate does not cover the host name in base_url; use a name of the certificate \
                 in base_url"
            }
            Self::Expired => "the upstream's certificate has expired; renew it, or correct this machine's clock",
            Self::NotYetValid => {
                "the upstream's certificate is not valid yet; correct the clock of this machine or of the upstream"
            }
            Self::Revoked => "the upstream's certificate was revoked; renew it",
            Self::BadCertificate => "the upstream's certificate is not usable; give the upstream another one",
            Self::ClientCertificate => {
                "the upstream requires a client certificate, and this host has none; put a proxy with a client \
                 certificate between"
            }
            Self::TlsVersion => {
                "the upstream and this host share no version or cipher suite of TLS; the upstream needs TLS 1.2 or 1.3"
            }
            Self::NotTls => {
                "the upstream does not speak TLS on this port; write http:// in base_url, or use the upstream's TLS \
                 port"
            }
            Self::TlsHandshake => "the TLS handshake failed; see the upstream's log",
            Self::TooManyFields => "the answer has more header fields than max_header_fields allows; raise the limit",
            Self::HeadTooLarge => {
                "the answer's head is too large, or has more header fields than max_header_fields allows; raise the \
                 limit, or make the upstream send less"
            }
            Self::TransferCoding => {
                "the answer has a transfer coding other than chunked, which the host did not \
                                     request"
            }
            Self::ContentLength => "the answer's content-length is not a number, too large, or present twice",
            Self::Status => "the answer's status is above 599",
            Self::Upgrade => "the upstream switched protocols, which the host did not request",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use strum::VariantArray as _;

    #[test]
    fn every_reason_has_a_name_and_a_text_of_its_own() {
        let names: BTreeSet<_> = FailureReason::VARIANTS.iter().map(|reason| reason.name()).collect();
        let texts: BTreeSet<_> = FailureReason::VARIANTS.iter().map(|reason| reason.text()).collect();
        assert_eq!((names.len(), texts.len()), (FailureReason::VARIANTS.len(), FailureReason::VARIANTS.len()));
    }
}
