//! The proof that a caller shows to read a record: a message authentication code (HMAC-SHA-256), made with a secret of the hosts.
//! A record's id follows from its tenant and key, which others may guess; its proof does not.

use super::fingerprint::{RecordId, Tenant};
use crate::rng::Rng;
use ring::hmac::{self, HMAC_SHA256};
use std::fmt;

/// A proof's length in bytes: 128 bits cannot be guessed.
pub const PROOF_BYTES: usize = 16;

/// Makes and checks proofs.
pub struct OwnerProofs(Vec<hmac::Key>);

impl OwnerProofs {
    /// Uses secrets that all hosts of a fleet have. The first one makes proofs; a proof of any of them is valid. Without a secret no proof
    /// is made or valid, and so no caller can read a record.
    pub fn shared(secrets: Vec<hmac::Key>) -> Self {
        Self(secrets)
    }

    /// Uses a random secret of this process, for records in its memory.
    pub fn of_process(entropy: &Rng) -> Self {
        let secret: Vec<u8> = (0..4).flat_map(|_| entropy.next().to_le_bytes()).collect();
        Self(vec![hmac::Key::new(HMAC_SHA256, &secret)])
    }

    /// The proof that this tenant of this upstream owns the record; none without a secret. Call it only for the record's own tenant and
    /// upstream, because the proof alone lets its holder read the record.
    pub fn of(&self, id: RecordId, tenant: &Tenant, upstream: &str) -> Option<[u8; PROOF_BYTES]> {
        let code = hmac::sign(self.0.first()?, &message(id, tenant, upstream));
        code.as_ref().first_chunk().copied()
    }

    /// Whether the proof is valid for this tenant and upstream. Takes the same time for every invalid proof, so that timing reveals no
    /// byte.
    pub fn holds(&self, id: RecordId, tenant: &Tenant, upstream: &str, proof: &[u8]) -> bool {
        use subtle::ConstantTimeEq as _;
        let message = message(id, tenant, upstream);
        let is_made_with = |secret| bool::from(hmac::sign(secret, &message).as_ref()[..PROOF_BYTES].ct_eq(proof));
        self.0.iter().any(is_made_with)
    }
}

/// The signed message. All parts but the last have a fixed length, so that two different inputs never give one message.
fn message(id: RecordId, tenant: &Tenant, upstream: &str) -> Vec<u8> {
    [&b"record-owner"[..], tenant.as_bytes(), id.as_bytes(), upstream.as_bytes()].concat()
}

impl fmt::Debug for OwnerProofs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerProofs({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        idempotency::{RecordId, Tenant, fingerprint::digest},
        rng::Rng,
    };
    use http::{HeaderMap, HeaderName, HeaderValue};

    const UP: &str = "directory";

    fn tenant(token: &'static str) -> Tenant {
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(token))]);
        Tenant::of(&headers, &[HeaderName::from_static("authorization")])
    }

    fn id(n: u64) -> RecordId {
        RecordId::draw(&Rng::seeded(n))
    }

    fn secret(byte: u8) -> hmac::Key {
        hmac::Key::new(HMAC_SHA256, &[byte; 32])
    }

    /// A caller that guesses the key of a caller without credentials, for whom all callers are one tenant, cannot read its record.
    #[test]
    fn a_proof_does_not_follow_from_key_and_tenant() {
        let everybody = Tenant::of(&HeaderMap::new(), &[]);
        let processes = [1, 2].map(|seed| OwnerProofs::of_process(&Rng::seeded(seed)));
        let fleets = [3, 4].map(|byte| OwnerProofs::shared(vec![secret(byte)]));
        let hosts: Vec<_> = processes.into_iter().chain(fleets).collect();
        for (number, host) in hosts.iter().enumerate() {
            for (other, guess) in hosts.iter().enumerate() {
                let proof = guess.of(id(1), &everybody, UP).unwrap();
                assert_eq!(host.holds(id(1), &everybody, UP, &proof), number == other, "{number} and {other}");
            }
        }
    }

    /// Bob knows the id of Ann's record from a notice, and makes a proof of all that he knows.
    #[test]
    fn no_proof_is_made_without_a_secret() {
        let bob = tenant("bob");
        let without_upstream = [&b"record-owner"[..], bob.as_bytes(), id(1).as_bytes()].concat();
        let empty = hmac::Key::new(HMAC_SHA256, &[]);
        let messages = [message(id(1), &bob, UP), without_upstream];
        let mut guesses: Vec<Vec<u8>> =
            messages.iter().map(|message| hmac::sign(&empty, message).as_ref()[..PROOF_BYTES].to_vec()).collect();
        // What earlier versions took.
        guesses.push(digest("record-owner", &[bob.as_bytes(), id(1).as_bytes()])[..PROOF_BYTES].to_vec());
        guesses.push(vec![0; PROOF_BYTES]);
        let hosts = [
            OwnerProofs::shared(Vec::new()),
            OwnerProofs::shared(vec![secret(1)]),
            OwnerProofs::of_process(&Rng::seeded(1)),
        ];
        for host in &hosts {
            for guess in &guesses {
                assert!(!host.holds(id(1), &bob, UP, guess), "{host:?}: {guess:?}");
            }
        }
        assert_eq!(hosts[0].of(id(1), &bob, UP), None);
    }

    #[test]
    fn a_proof_is_one_tenants_for_one_record_of_one_upstream() {
        let proofs = OwnerProofs::of_process(&Rng::seeded(1));
        let ann = tenant("ann");
        let proof = proofs.of(id(1), &ann, UP).unwrap();
        assert!(proofs.holds(id(1), &ann, UP, &proof));
        assert!(!proofs.holds(id(1), &tenant("bob"), UP, &proof) && !proofs.holds(id(2), &ann, UP, &proof));
        assert!(!proofs.holds(id(1), &ann, "other", &proof));
        for wrong in [&proof[1..], &[], &[0; PROOF_BYTES], &[0; 64]] {
            assert!(!proofs.holds(id(1), &ann, UP, wrong), "{wrong:?}");
        }
    }

    /// Callers that were answered before a secret was exchanged still read their records.
    #[test]
    fn a_proof_outlives_the_exchange_of_its_secret() {
        let ann = tenant("ann");
        let old = OwnerProofs::shared(vec![secret(1)]).of(id(1), &ann, UP).unwrap();
        let both = OwnerProofs::shared(vec![secret(2), secret(1)]);
        assert!(both.holds(id(1), &ann, UP, &old));
        assert_ne!(both.of(id(1), &ann, UP), Some(old), "the first secret makes proofs");
        assert!(!OwnerProofs::shared(vec![secret(2)]).holds(id(1), &ann, UP, &old));
    }
}
