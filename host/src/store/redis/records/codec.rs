//! An answer as bytes, before it is sealed. Lengths are big-endian; the first byte is the version.

use crate::{
    idempotency::{Answer, Stored},
    policy::contract::Class,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const VERSION: u8 = 1;
const ANSWER: u8 = 0;
const TOO_LARGE: u8 = 1;

/// Bytes that are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a kept answer cannot be read: it was written by another version of the host; run one version in the whole fleet"
)]
pub struct Unreadable;

pub fn encode(stored: &Stored) -> Vec<u8> {
    let mut out = vec![VERSION];
    match stored {
        Stored::TooLarge { status } => {
            out.push(TOO_LARGE);
            out.extend(status.as_u16().to_be_bytes());
        }
        Stored::Answer(answer) => {
            out.push(ANSWER);
            out.extend(answer.status.as_u16().to_be_bytes());
            part(&mut out, answer.class.as_bytes());
            part(&mut out, answer.policy.as_bytes());
            out.extend((answer.headers.len() as u32).to_be_bytes());
            for (name, value) in &answer.headers {
                part(&mut out, name.as_str().as_bytes());
                part(&mut out, value.as_bytes());
            }
            part(&mut out, &answer.body);
        }
    }
    out
}

/// # Errors
/// [`Unreadable`].
pub fn decode(bytes: &[u8]) -> Result<Stored, Unreadable> {
    let mut from = Reader(bytes);
    let (version, kind) = (from.byte()?, from.byte()?);
    let status = StatusCode::from_u16(u16::from_be_bytes(from.chunk()?)).map_err(|_| Unreadable)?;
    let stored = match (version, kind) {
        (VERSION, TOO_LARGE) => Stored::TooLarge { status },
        (VERSION, ANSWER) => {
            let class = class(from.text()?)?;
            let policy = from.text()?.into();
            let mut headers = HeaderMap::new();
            for _ in 0..u32::from_be_bytes(from.chunk()?) {
                let name = HeaderName::from_bytes(from.part()?).map_err(|_| Unreadable)?;
                let value = HeaderValue::from_bytes(from.part()?).map_err(|_| Unreadable)?;
                headers.try_append(name, value).map_err(|_| Unreadable)?;
            }
            let body = Bytes::copy_from_slice(from.part()?);
            Stored::Answer(Answer { status, headers, body, class, policy })
        }
        _ => return Err(Unreadable),
    };
    if from.0.is_empty() { Ok(stored) } else { Err(Unreadable) }
}

fn class(name: &str) -> Result<&'static str, Unreadable> {
    use Class::{AlreadyApplied, Applied, NotApplied, Rejected, Throttled, Unknown};
    let all = [Applied, AlreadyApplied, NotApplied, Throttled, Unknown, Rejected];
    all.into_iter().map(Class::name).find(|own| *own == name).ok_or(Unreadable)
}

fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_be_bytes());
    out.extend(bytes);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Unreadable)?;
        self.0 = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        self.chunk().map(|[byte]| byte)
    }

    fn part(&mut self) -> Result<&'a [u8], Unreadable> {
        let len = u32::from_be_bytes(self.chunk()?);
        self.take(usize::try_from(len).map_err(|_| Unreadable)?)
    }

    fn text(&mut self) -> Result<&'a str, Unreadable> {
        str::from_utf8(self.part()?).map_err(|_| Unreadable)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    fn answers() -> impl Strategy<Value = Stored> {
        let header = ("[a-z][a-z0-9-]{0,20}", prop::collection::vec(0x20..0x7f_u8, 0..40));
        let answer = (
            100..1000_u16,
            prop::collection::vec(header, 0..8),
            prop::collection::vec(any::<u8>(), 0..400),
            prop::sample::select(vec!["applied", "already-applied", "rejected"]),
            "[a-z@0-9=;]{0,40}",
        );
        let whole = answer.prop_map(|(status, headers, body, class, policy)| {
            let pair = |(name, value): (String, Vec<u8>)| {
                (HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&value).unwrap())
            };
            let mut map = HeaderMap::new();
            for (name, value) in headers.into_iter().map(pair) {
                map.append(name, value);
            }
            let status = StatusCode::from_u16(status).unwrap();
            Stored::Answer(Answer { status, headers: map, body: body.into(), class, policy: policy.into() })
        });
        let too_large =
            (100..1000_u16).prop_map(|status| Stored::TooLarge { status: StatusCode::from_u16(status).unwrap() });
        prop_oneof![9 => whole, 1 => too_large]
    }

    proptest! {
        #[test]
        fn an_answer_comes_back_as_it_was(stored in answers()) {
            prop_assert_eq!(decode(&encode(&stored)), Ok(stored));
        }

        #[test]
        fn a_part_of_an_answer_is_none(stored in answers(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&stored);
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), Err(Unreadable));
        }

        #[test]
        fn nothing_panics_on_garbage(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&garbage);
        }
    }
}
