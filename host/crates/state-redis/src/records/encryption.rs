//! Encryption of stored responses and requests: they contain patient data, so they leave this process encrypted.
//!
//! ChaCha20-Poly1305 (RFC 8439), each value under a key of its own: HKDF-SHA256 (RFC 5869) of the configured key and 32 random
//! bytes, so that no nonce is used twice however many hosts share the key. The record's id is authenticated too: a value that is
//! moved to another record does not decrypt.

use crate::{
    connection::secret,
    error::{KeyError, OpenError},
};
use crate::{idempotency::RecordId, secret::TokenSource};
use base64::{
    Engine as _, alphabet,
    engine::general_purpose::{GeneralPurpose, NO_PAD},
};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::{
    aead::{self, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    digest, hkdf, hmac,
    rand::{SecureRandom as _, SystemRandom},
};
use std::fmt;

/// Length of a configured key, in bytes.
pub const KEY_LEN: usize = 32;

const VERSION: u8 = 1;
const KEY_ID_LEN: usize = 4;
const SALT_LEN: usize = 32;
const LABEL: &[u8] = b"triage record answer";
/// HKDF label for the secret of owners' proofs. Its length differs from that of the salts for values, so no two inputs are equal.
const PROOF_LABEL: &[u8] = b"triage record owner";

/// Why a value was not encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No key is configured.
    #[error("there is no key to encrypt answers with; set `state.key_file`")]
    NoKey,
    /// The system's random number generator failed.
    #[error("the system gave no random numbers; the host cannot encrypt answers")]
    NoRandom,
    /// Encrypted with a key that is not configured.
    #[error("an answer was encrypted with key {id}, which is not in `state.key_file`; keep old keys there, below the \
             new one, for as long as records live", id = KeyId(*id))]
    UnknownKey {
        /// First bytes of the key's hash.
        id: [u8; KEY_ID_LEN],
    },
    /// Truncated, changed, or moved from another record.
    #[error(
        "a stored answer cannot be decrypted: it was modified, or belongs to another record; do not trust the state \
         store"
    )]
    Broken,
}

/// RFC 4648 section 4. Padding is cut off before, so that a key may come without it.
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, NO_PAD.with_decode_allow_trailing_bits(true));

struct KeyId([u8; KEY_ID_LEN]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", HEXLOWER.encode_display(&self.0))
    }
}

/// Encrypts with the first key and decrypts with any: put a new key before the old ones.
pub struct Sealer {
    keys: Vec<Key>,
    random: SystemRandom,
}

struct Key {
    id: [u8; KEY_ID_LEN],
    derive: hkdf::Prk,
}

impl Sealer {
    /// A sealer with these keys; the first one encrypts.
    pub fn new(keys: &[[u8; KEY_LEN]]) -> Self {
        let key = |bytes: &[u8; KEY_LEN]| Key {
            id: key_id(bytes),
            derive: hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL).extract(bytes),
        };
        Self { keys: keys.iter().map(key).collect(), random: SystemRandom::new() }
    }

    /// Reads keys from the text of a file or a variable, one per line; the first one encrypts.
    ///
    /// # Errors
    /// [`KeyError`] where a line is no key, or there is none.
    pub fn read(text: &str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
            let key = HEXLOWER_PERMISSIVE
                .decode(line.as_bytes())
                .ok()
                .or_else(|| BASE64.decode(line.trim_end_matches('=')).ok())
                .and_then(|bytes| bytes.try_into().ok());
            keys.push(key.ok_or(KeyError::Malformed { line: index + 1 })?);
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(Self::new(&keys)) }
    }

    /// Reads the configured keys, if any.
    ///
    /// # Errors
    /// [`OpenError::File`], [`OpenError::Key`].
    pub fn configured(source: Option<&TokenSource>) -> Result<Self, OpenError> {
        let Some(source) = source else { return Ok(Self::new(&[])) };
        Self::read(&secret(source, "state.key_file")?).map_err(OpenError::Key)
    }

    /// Whether there is a key to encrypt with.
    pub fn has_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The secrets of the proofs by which callers read their records, one for each key, in the same order.
    pub fn proof_secrets(&self) -> Vec<hmac::Key> {
        let secret = |key: &Key| key.derive.expand(&[PROOF_LABEL], hmac::HMAC_SHA256).map(hmac::Key::from).ok();
        self.keys.iter().filter_map(secret).collect()
    }

    /// Encrypts a value of a record.
    ///
    /// # Errors
    /// [`SealError::NoKey`], [`SealError::NoRandom`].
    pub fn seal(&self, id: RecordId, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let key = self.keys.first().ok_or(SealError::NoKey)?;
        let mut salt = [0; SALT_LEN];
        self.random.fill(&mut salt).map_err(|_| SealError::NoRandom)?;
        let head = [&[VERSION][..], &key.id, &salt].concat();
        let mut body = plain.to_vec();
        let own = key.of(&salt)?;
        own.seal_in_place_append_tag(nonce(), aad(&head, id), &mut body).map_err(|_| SealError::Broken)?;
        Ok([head, body].concat())
    }

    /// Decrypts a value of this record.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`], [`SealError::Broken`].
    pub fn open(&self, id: RecordId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (head, body) = sealed.split_at_checked(1 + KEY_ID_LEN + SALT_LEN).ok_or(SealError::Broken)?;
        let (&[version], rest) = head.split_first_chunk::<1>().ok_or(SealError::Broken)?;
        let (key_id, salt) = rest.split_first_chunk::<KEY_ID_LEN>().ok_or(SealError::Broken)?;
        if version != VERSION {
            return Err(SealError::Broken);
        }
        let key = self.keys.iter().find(|key| key.id == *key_id).ok_or(SealError::UnknownKey { id: *key_id })?;
        let mut body = body.to_vec();
        let plain = key.of(salt)?.open_in_place(nonce(), aad(head, id), &mut body).map_err(|_| SealError::Broken)?;
        let len = plain.len();
        body.truncate(len);
        Ok(body)
    }
}

impl Key {
    fn of(&self, salt: &[u8]) -> Result<LessSafeKey, SealError> {
        let info = [salt];
        let okm = self.derive.expand(&info, &CHACHA20_POLY1305).map_err(|_| SealError::Broken)?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

/// Constant, because each derived key encrypts one value.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

fn aad(head: &[u8], id: RecordId) -> Aad<Vec<u8>> {
    Aad::from([head, id.as_bytes()].concat())
}

fn key_id(key: &[u8; KEY_LEN]) -> [u8; KEY_ID_LEN] {
    let hash = digest::digest(&digest::SHA256, &[b"triage key id", &key[..]].concat());
    hash.as_ref().first_chunk().copied().unwrap_or_default()
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} keys)", self.keys.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::fixtures::id;
    use proptest::prelude::*;

    const OLD: [u8; KEY_LEN] = [1; KEY_LEN];
    const NEW: [u8; KEY_LEN] = [2; KEY_LEN];

    #[test]
    fn an_answer_opens_for_its_record_alone() {
        let sealer = Sealer::new(&[OLD]);
        let sealed = sealer.seal(id(1), b"patient 7").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"patient"), "it can be read");
        assert_eq!(sealer.open(id(1), &sealed).unwrap(), b"patient 7");
        assert_eq!(sealer.open(id(2), &sealed), Err(SealError::Broken), "moved to another record");
        assert_ne!(sealer.seal(id(1), b"patient 7").unwrap(), sealed, "equal answers have equal ciphertexts");
    }

    #[test]
    fn keys_are_exchanged_one_after_the_other() {
        let sealed = Sealer::new(&[OLD]).seal(id(1), b"a").unwrap();
        let both = Sealer::new(&[NEW, OLD]);
        assert_eq!(both.open(id(1), &sealed).unwrap(), b"a");
        let sealed = both.seal(id(1), b"b").unwrap();
        assert_eq!(Sealer::new(&[NEW]).open(id(1), &sealed).unwrap(), b"b", "the first key seals");
        let unknown = Sealer::new(&[OLD]).open(id(1), &sealed).unwrap_err();
        assert!(unknown.to_string().starts_with("an answer was encrypted with key "), "{unknown}");
        assert_eq!(Sealer::new(&[]).seal(id(1), b"c"), Err(SealError::NoKey));
    }

    #[test]
    fn keys_are_read_in_both_forms() {
        let hex = "01".repeat(KEY_LEN);
        let both = format!("\n {hex} \nAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n");
        let sealed = Sealer::new(&[NEW]).seal(id(1), b"a").unwrap();
        assert_eq!(Sealer::read(&both).unwrap().open(id(1), &sealed).unwrap(), b"a");
        let sealed = Sealer::read(&both).unwrap().seal(id(1), b"a").unwrap();
        assert_eq!(Sealer::new(&[OLD]).open(id(1), &sealed).unwrap(), b"a", "the first line seals");
        assert_eq!(Sealer::read(" \n").unwrap_err(), KeyError::Empty);
        let (text, upper) = ("AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg", "0A".repeat(KEY_LEN));
        for (form, key) in [
            (format!("{text}I"), NEW),
            (format!("{text}I=="), NEW),
            // Two bits of the last digit belong to no byte.
            (format!("{text}L"), NEW),
            (upper.to_lowercase(), [10; KEY_LEN]),
            (upper, [10; KEY_LEN]),
        ] {
            assert_eq!(
                Sealer::read(&form).unwrap().open(id(1), &Sealer::new(&[key]).seal(id(1), b"a").unwrap()).unwrap(),
                b"a",
                "{form}"
            );
        }
        for text in ["secret", "0101", "AgIC", &"zz".repeat(KEY_LEN)] {
            assert_eq!(Sealer::read(&format!("{hex}\n{text}")).unwrap_err(), KeyError::Malformed { line: 2 }, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_answer_does_not_open(plain in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let sealer = Sealer::new(&[OLD]);
            let mut sealed = sealer.seal(id(1), &plain).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(sealer.open(id(1), &sealed).is_err());
        }

        #[test]
        fn nothing_panics_on_garbage(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(Sealer::new(&[OLD]).open(id(1), &garbage).is_err());
        }
    }
}
