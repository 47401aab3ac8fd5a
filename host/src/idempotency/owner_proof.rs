//! The proof that a caller shows to read a record: a message authentication code (HMAC-SHA-256), made with a secret of the hosts.
//! A record's id follows from its tenant and key, which others may guess; its proof does not.

use super::fingerprint::{RecordId, Tenant};
use crate::entropy::Entropy;
use ring::hmac::{self, HMAC_SHA256};
use std::fmt;

/// A proof's length in bytes: 128 bits, which no caller guesses through a limit on reads.
pub(crate) const PROOF_BYTES: usize = 16;

/// Makes and checks proofs.
pub(crate) struct OwnerProofs(Vec<hmac::Key>);

impl OwnerProofs {
    /// With the secrets that hosts share: the first one makes proofs, all of them check. Without any, proofs only tell tenants apart:
    /// a caller that knows a tenant's credentials and key can make them.
    pub(crate) fn shared(secrets: Vec<hmac::Key>) -> Self {
        if secrets.is_empty() { Self(vec![hmac::Key::new(HMAC_SHA256, &[])]) } else { Self(secrets) }
    }

    /// With a secret of this process, for records that end with it.
    pub(crate) fn of_process(entropy: &Entropy) -> Self {
        let secret: Vec<u8> = (0..4).flat_map(|_| entropy.next().to_le_bytes()).collect();
        Self(vec![hmac::Key::new(HMAC_SHA256, &secret)])
    }

    /// The proof of the caller that is this tenant.
    pub(crate) fn of(&self, id: RecordId, tenant: &Tenant) -> [u8; PROOF_BYTES] {
        let mut proof = [0; PROOF_BYTES];
        if let Some(code) = self.0.first().map(|secret| hmac::sign(secret, &message(id, tenant))) {
            proof.copy_from_slice(&code.as_ref()[..PROOF_BYTES]);
        }
        proof
    }

    /// Whether the proof is this tenant's. Takes the same time wherever it differs.
    pub(crate) fn holds(&self, id: RecordId, tenant: &Tenant, proof: &[u8]) -> bool {
        use subtle::ConstantTimeEq as _;
        let message = message(id, tenant);
        let is_made_with = |secret| bool::from(hmac::sign(secret, &message).as_ref()[..PROOF_BYTES].ct_eq(proof));
        self.0.iter().any(is_made_with)
    }
}

/// Both parts have a fixed length, so that no two splits are one message.
fn message(id: RecordId, tenant: &Tenant) -> Vec<u8> {
    [&b"record-owner"[..], tenant.as_bytes(), id.as_bytes()].concat()
}

impl fmt::Debug for OwnerProofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerProofs({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{idempotency::Tenant, store::memory::records::tests::id};
    use http::{HeaderMap, HeaderName, HeaderValue};

    fn tenant(token: &'static str) -> Tenant {
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(token))]);
        Tenant::of(&headers, &[HeaderName::from_static("authorization")])
    }

    fn secret(byte: u8) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, &[byte; 32])
    }

    /// A caller that guesses the key of a caller without credentials, for whom all callers are one tenant, cannot read its record.
    #[test]
    fn a_proof_does_not_follow_from_key_and_tenant() {
        let everybody = Tenant::of(&HeaderMap::new(), &[]);
        let processes = [1, 2].map(|seed| OwnerProofs::of_process(&Entropy::seeded(seed)));
        let fleets = [3, 4].map(|byte| OwnerProofs::shared(vec![secret(byte)]));
        let hosts: Vec<_> = processes.into_iter().chain(fleets).chain([OwnerProofs::shared(Vec::new())]).collect();
        for (number, host) in hosts.iter().enumerate() {
            for (other, guess) in hosts.iter().enumerate() {
                let proof = guess.of(id(1), &everybody);
                assert_eq!(host.holds(id(1), &everybody, &proof), number == other, "{number} and {other}");
            }
        }
    }

    #[test]
    fn a_proof_is_one_tenants_for_one_record() {
        let proofs = OwnerProofs::of_process(&Entropy::seeded(1));
        let proof = proofs.of(id(1), &tenant("ann"));
        assert!(proofs.holds(id(1), &tenant("ann"), &proof));
        assert!(!proofs.holds(id(1), &tenant("bob"), &proof) && !proofs.holds(id(2), &tenant("ann"), &proof));
        for wrong in [&proof[1..], &[], &[0; PROOF_BYTES], &[0; 64]] {
            assert!(!proofs.holds(id(1), &tenant("ann"), wrong), "{wrong:?}");
        }
    }

    /// Callers that were answered before a secret was exchanged still read their records.
    #[test]
    fn a_proof_outlives_the_exchange_of_its_secret() {
        let old = OwnerProofs::shared(vec![secret(1)]).of(id(1), &tenant("ann"));
        let both = OwnerProofs::shared(vec![secret(2), secret(1)]);
        assert!(both.holds(id(1), &tenant("ann"), &old));
        assert_ne!(both.of(id(1), &tenant("ann")), old, "the first secret makes proofs");
        assert!(!OwnerProofs::shared(vec![secret(2)]).holds(id(1), &tenant("ann"), &old));
    }
}
