//! The binary format of an answer, or of a write's request, as memory keeps it and as it is before encryption for shared state.
//! The first byte is the version. The second byte is the kind, so that an answer is never read as a request. Lengths are big-endian.

use super::{Fingerprint, KeptRequest, Stored, StoredBody};
use crate::contract::Class;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

const VERSION: u8 = 1;
const ANSWER: u8 = 0;
const TOO_LARGE: u8 = 1;
const REQUEST: u8 = 2;

/// The bytes are not a valid answer or request of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored answer cannot be decoded: another version of the host wrote it; run one version in the whole fleet")]
pub struct Unreadable;

/// A response as shared state keeps it: a version, then lengths and fields.
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
            headers(&mut out, &answer.headers);
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
            let headers = from.headers()?;
            let body = Bytes::copy_from_slice(from.part()?);
            Stored::Answer(StoredBody { status, headers, body, class, policy })
        }
        _ => return Err(Unreadable),
    };
    if from.0.is_empty() { Ok(stored) } else { Err(Unreadable) }
}

/// The request of a write.
pub fn encode_request(request: &KeptRequest) -> Vec<u8> {
    let mut out = vec![VERSION, REQUEST, u8::from(request.keyed)];
    out.extend(request.fingerprint.as_bytes());
    part(&mut out, request.method.as_str().as_bytes());
    part(&mut out, request.path_and_query.as_bytes());
    headers(&mut out, &request.headers);
    part(&mut out, &request.body);
    out
}

/// # Errors
/// [`Unreadable`].
pub fn decode_request(bytes: &[u8]) -> Result<KeptRequest, Unreadable> {
    let mut from = Reader(bytes);
    let keyed = match from.chunk()? {
        [VERSION, REQUEST, 0] => false,
        [VERSION, REQUEST, 1] => true,
        _ => return Err(Unreadable),
    };
    let fingerprint = Fingerprint::from_bytes(from.chunk()?);
    let method = Method::from_bytes(from.part()?).map_err(|_| Unreadable)?;
    let path_and_query = from.text()?.to_owned();
    let headers = from.headers()?;
    let body = Bytes::copy_from_slice(from.part()?);
    let request = KeptRequest { fingerprint, method, path_and_query, headers, body, keyed };
    if from.0.is_empty() { Ok(request) } else { Err(Unreadable) }
}

fn headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    out.extend((headers.len() as u32).to_be_bytes());
    for (name, value) in headers {
        part(out, name.as_str().as_bytes());
        part(out, value.as_bytes());
    }
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

    fn headers(&mut self) -> Result<HeaderMap, Unreadable> {
        let mut headers = HeaderMap::new();
        for _ in 0..u32::from_be_bytes(self.chunk()?) {
            let name = HeaderName::from_bytes(self.part()?).map_err(|_| Unreadable)?;
            let value = HeaderValue::from_bytes(self.part()?).map_err(|_| Unreadable)?;
            headers.try_append(name, value).map_err(|_| Unreadable)?;
        }
        Ok(headers)
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

    fn headers() -> impl Strategy<Value = HeaderMap> {
        let header = ("[a-z][a-z0-9-]{0,20}", prop::collection::vec(0x20..0x7f_u8, 0..40));
        prop::collection::vec(header, 0..8).prop_map(|headers| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(&value).unwrap());
            }
            map
        })
    }

    fn requests() -> impl Strategy<Value = KeptRequest> {
        let method = prop::sample::select(vec![Method::POST, Method::PATCH, Method::from_bytes(b"MERGE").unwrap()]);
        let parts = (any::<[u8; 32]>(), method, "/[a-z/?=]{0,40}", headers(), any::<bool>());
        (parts, prop::collection::vec(any::<u8>(), 0..400)).prop_map(|(parts, body)| {
            let (fingerprint, method, path_and_query, headers, keyed) = parts;
            let fingerprint = Fingerprint::from_bytes(fingerprint);
            KeptRequest { fingerprint, method, path_and_query, headers, body: body.into(), keyed }
        })
    }

    fn answers() -> impl Strategy<Value = Stored> {
        let answer = (
            100..1000_u16,
            headers(),
            prop::collection::vec(any::<u8>(), 0..400),
            prop::sample::select(vec!["applied", "already-applied", "rejected"]),
            "[a-z@0-9=;]{0,40}",
        );
        let whole = answer.prop_map(|(status, headers, body, class, policy)| {
            let status = StatusCode::from_u16(status).unwrap();
            Stored::Answer(StoredBody { status, headers, body: body.into(), class, policy: policy.into() })
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
        fn a_request_comes_back_as_it_was(request in requests()) {
            prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
        }

        #[test]
        fn a_part_of_an_answer_is_none(stored in answers(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&stored);
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), Err(Unreadable));
        }

        #[test]
        fn a_part_of_a_request_is_none(request in requests(), cut in any::<prop::sample::Index>()) {
            let bytes = encode_request(&request);
            prop_assert_eq!(decode_request(&bytes[..cut.index(bytes.len())]), Err(Unreadable));
        }

        #[test]
        fn neither_passes_for_the_other(stored in answers(), request in requests()) {
            prop_assert_eq!(decode_request(&encode(&stored)), Err(Unreadable));
            prop_assert_eq!(decode(&encode_request(&request)), Err(Unreadable));
        }

        #[test]
        fn nothing_panics_on_garbage(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&garbage);
            let _ = decode_request(&[&[VERSION, REQUEST, 0][..], &garbage].concat());
        }
    }
}
