//! The upstream's own idempotency key of one request: its value, and the sends that carried it.

use super::{
    RequestContext,
    request_context::{AttemptResult, Progress},
};
use crate::{
    idempotency::{KeyTag, KeyedSends, key},
    policy::contract::Effect,
    retry::upstream_key::{KeyAnswer, KeyFacts},
};
use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use tokio::time::Instant;

/// Facts about the upstream's idempotency key, which is the same on every send of a request. The key itself is in the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UpstreamKey {
    pub(crate) tag: KeyTag,
    valid_for: Duration,
    /// Whether the host generated the key from a seed.
    is_generated: bool,
}

/// The sends under the key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeySends {
    /// When the first send began that may have reached the upstream.
    first: Option<Instant>,
    /// Whether every send that may have reached the upstream carried the key, including those of the record's earlier owners.
    all_carried: bool,
    /// Attempts that were answered "in progress".
    in_progress: u32,
    /// The information about the key in the last response.
    answer: KeyAnswer,
    /// Whether the next attempt is made only because of the key.
    pub(crate) justifies_attempt: bool,
}

impl Default for KeySends {
    fn default() -> Self {
        Self { first: None, all_carried: true, in_progress: 0, answer: KeyAnswer::Silent, justifies_attempt: false }
    }
}

impl KeySends {
    /// The sends of a record's earlier owners. Unless all of them carried this key, the key proves nothing.
    pub(crate) fn reconciled(own: Option<UpstreamKey>, earlier: Option<KeyedSends>, now: Instant) -> Self {
        let same = earlier.filter(|earlier| own.is_some_and(|own| own.tag == earlier.key));
        let first = same.and_then(|same| now.checked_sub(same.first_ago));
        Self { first, all_carried: first.is_some(), ..Self::default() }
    }

    /// Records a send that began at `began` and may have reached the upstream.
    pub(crate) fn sent(&mut self, began: Instant) {
        self.first.get_or_insert(began);
    }

    /// Records what a response to the request itself says about the key.
    pub(crate) fn answered(&mut self, arrival: &AttemptResult, unsettled: bool) {
        self.answer = match arrival {
            AttemptResult::Answer(answer) => KeyAnswer::of(answer.status, &answer.headers, &answer.read),
            AttemptResult::Failure(_) => KeyAnswer::Silent,
        };
        self.in_progress += u32::from(self.answer.is_pending(unsettled));
    }
}

impl RequestContext {
    /// Sets the key of an unsafe request: the caller's, else one generated from `seed`. The seed must belong to this request alone and be
    /// the same for each owner of its record. It is hashed, so that the key does not reveal it.
    pub(super) fn carry_upstream_key(&mut self, seed: &[u8]) {
        let Some(settings) = self.endpoint().settings.upstream_key.clone() else { return };
        if self.effect != Effect::Unsafe {
            return;
        }
        if self.upstream_key.take().is_some_and(|earlier| earlier.is_generated) {
            // The request now runs under another record, whose sends carry another key.
            self.headers.remove(&settings.header);
        }
        let own = |name: &http::HeaderName| {
            let mut values = self.headers.get_all(name).iter();
            (values.next().cloned(), values.next().is_some())
        };
        let mut is_generated = false;
        let value = match own(&settings.header) {
            // Several values: it is unknown which one the upstream uses.
            (Some(_), true) => return,
            (Some(value), false) => Some(value),
            (None, _) => match own(&key::IDEMPOTENCY_KEY) {
                (Some(value), false) => Some(value),
                _ if settings.generate => {
                    is_generated = true;
                    generated(seed)
                }
                _ => None,
            },
        };
        let Some(value) = value.filter(|value| (1..=2 * key::MAX_KEY_LEN).contains(&value.len())) else { return };
        self.upstream_key = Some(UpstreamKey {
            tag: KeyTag::of(&settings.header, &value),
            valid_for: settings.valid_for,
            is_generated,
        });
        self.headers.insert(settings.header, value);
    }

    /// The clamp's input about the key.
    pub(super) fn key_facts(&self, progress: &Progress) -> Option<KeyFacts> {
        let sends = &progress.key_sends;
        Some(KeyFacts {
            answer: sends.answer,
            first_sent_ago: sends.first.map(|first| first.elapsed()),
            valid_for: self.upstream_key?.valid_for,
            on_every_send: sends.all_carried,
            in_progress: sends.in_progress,
        })
    }

    /// Whether the upstream would still deduplicate a send that begins now. Checked again right before the send, since waits may have taken
    /// longer than the clamp expected.
    pub(crate) fn key_holds(&self, progress: &Progress) -> bool {
        self.key_facts(progress).is_some_and(|key| key.allows(Duration::ZERO, self.endpoint().settings.attempt_timeout))
    }
}

/// Generates a key in the form of a UUID, which every upstream accepts.
fn generated(seed: &[u8]) -> Option<HeaderValue> {
    let hash = Sha256::new().chain_update(b"triage upstream key").chain_update(seed).finalize();
    let bytes = *hash.first_chunk::<16>()?;
    HeaderValue::from_str(&uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_generated_key_is_a_uuid_of_its_seed() {
        let key = |seed: &[u8]| generated(seed).unwrap().to_str().unwrap().to_owned();
        assert_eq!(key(b"one"), key(b"one"));
        assert_ne!(key(b"one"), key(b"two"));
        assert_eq!(key(b"one").parse::<uuid::Uuid>().unwrap().get_version_num(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_record_whose_sends_carried_another_key_proves_nothing() {
        let tag = KeyTag::from_bytes([1; 16]);
        let own = UpstreamKey { tag, valid_for: Duration::from_secs(10), is_generated: false };
        let earlier = KeyedSends { key: tag, first_ago: Duration::from_secs(4) };
        let other = KeyedSends { key: KeyTag::from_bytes([2; 16]), ..earlier };
        let now = Instant::now();
        let holds = |own, earlier| KeySends::reconciled(own, earlier, now).all_carried;
        assert!(holds(Some(own), Some(earlier)));
        assert!(!holds(Some(own), Some(other)), "another key");
        assert!(!holds(Some(own), None), "sends without a key");
        assert!(!holds(None, Some(earlier)), "this one carries none");
        let sends = KeySends::reconciled(Some(own), Some(earlier), now);
        assert_eq!(sends.first, now.checked_sub(Duration::from_secs(4)), "counted from the first send of all");
    }
}
