//! The canonical form of a conditional create's condition (`If-None-Exist`). Clients spell one search in several ways. The host sends
//! requests with equal conditions one after the other, so it must recognise equal conditions.

use std::{fmt::Write as _, ops::ControlFlow};

/// The header that holds such a condition.
pub const IF_NONE_EXIST: &str = "if-none-exist";

/// The canonical form: all parameters, decoded, sorted, without repetitions and joined by `&`. A condition may be a query, with or without
/// a leading `?`, or a whole URL, of which the query counts. Bytes with a meaning in a query are percent-encoded again, so that two
/// different searches never have the same form.
///
/// `+` and `%20` both mean a space, as in HTML forms.
pub fn canonical(condition: &[u8]) -> String {
    let condition = condition.trim_ascii();
    let before_query = condition.iter().try_fold(0, |at, byte| match byte {
        b'?' => ControlFlow::Break(Some(at)),
        b'=' | b'&' => ControlFlow::Break(None),
        _ => ControlFlow::Continue(at + 1),
    });
    let query = match before_query {
        ControlFlow::Break(Some(at)) => &condition[at + 1..],
        _ => condition,
    };
    let parameters = query.split(|byte| *byte == b'&').filter(|parameter| !parameter.is_empty());
    let mut parameters: Vec<Vec<u8>> = parameters.map(decoded).collect();
    parameters.sort_unstable();
    parameters.dedup();
    let mut out = String::with_capacity(condition.len());
    for parameter in &parameters {
        if !out.is_empty() {
            out.push('&');
        }
        for byte in parameter {
            match byte {
                b'%' | b'&' | b'+' | b'?' | ..=b' ' | 0x7f.. => {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "%{byte:02X}");
                }
                _ => out.push(char::from(*byte)),
            }
        }
    }
    out
}

/// A part of a query without its percent-encoding. A `%` without two digits stays.
fn decoded(part: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut decoded = Vec::with_capacity(part.len());
    let mut at = 0;
    while let Some(byte) = part.get(at) {
        at += 1;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => match (digit(part.get(at)), digit(part.get(at + 1))) {
                (Some(high), Some(low)) => {
                    decoded.push((high << 4 | low) as u8);
                    at += 2;
                }
                _ => decoded.push(b'%'),
            },
            byte => decoded.push(*byte),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn spellings_of_one_search_are_one() {
        for (condition, expected) in [
            ("identifier=urn:mrn|1", "identifier=urn:mrn|1"),
            ("identifier=urn:mrn%7C1", "identifier=urn:mrn|1"),
            ("identifier=urn%3Amrn%7c1", "identifier=urn:mrn|1"),
            ("?identifier=urn:mrn|1", "identifier=urn:mrn|1"),
            (" Patient?identifier=urn:mrn|1 ", "identifier=urn:mrn|1"),
            ("http://a.example/fhir/Patient?identifier=x", "identifier=x"),
            ("b=2&a=1", "a=1&b=2"),
            ("a=1&&b=2&a=1&", "a=1&b=2"),
            ("name=a+b", "name=a%20b"),
            ("name=a%20b", "name=a%20b"),
            ("name=a%2Bb", "name=a%2Bb"),
            ("name=a%26b=c", "name=a%26b=c"),
            ("name=100%", "name=100%25"),
            ("name=a?b", "name=a%3Fb"),
            ("", ""),
            ("?", ""),
            ("&&", ""),
        ] {
            assert_eq!(canonical(condition.as_bytes()), expected, "{condition}");
        }
        assert_eq!(canonical(b"name=\xe9"), canonical(b"name=%E9"));
        assert_ne!(canonical(b"a=1&b=2"), canonical(b"a=1%26b=2"), "one parameter, not two");
    }

    fn parameter() -> impl Strategy<Value = Vec<u8>> {
        (vec(any::<u8>(), 1..5), vec(any::<u8>(), 0..12)).prop_map(|(name, value)| [&name[..], b"=", &value].concat())
    }

    /// As a client may write it: each byte as it is, where that is no syntax, or encoded in either case of digits.
    fn spelled(parameter: &[u8], plain: &[bool], upper: bool) -> String {
        let mut out = String::new();
        for (byte, plain) in parameter.iter().zip(plain.iter().cycle()) {
            let is_syntax = !byte.is_ascii_graphic() || b"%&+?#".contains(byte);
            let _ = match (*plain && !is_syntax, upper) {
                (true, _) => write!(out, "{}", char::from(*byte)),
                (false, true) => write!(out, "%{byte:02X}"),
                (false, false) => write!(out, "%{byte:02x}"),
            };
        }
        out
    }

    proptest! {
        #[test]
        fn order_and_encoding_do_not_count(
            parameters in vec(parameter(), 0..5).prop_shuffle(),
            plain in vec(any::<bool>(), 1..20),
            upper in any::<bool>(),
            before in prop_oneof![Just("?"), Just("Patient?"), Just("https://a.example/fhir/Patient?")],
        ) {
            let mut sorted = parameters.clone();
            sorted.sort_unstable();
            let join = |all: &[Vec<u8>], plain: &[bool]| {
                all.iter().map(|one| spelled(one, plain, upper)).collect::<Vec<_>>().join("&")
            };
            let one = canonical(format!("{before}{}", join(&sorted, &[false])).as_bytes());
            let other = canonical(format!("{before}{}", join(&parameters, &plain)).as_bytes());
            prop_assert_eq!(&one, &other);
            prop_assert_eq!(canonical(one.as_bytes()), one, "it is its own spelling");
        }

        #[test]
        fn different_parameters_stay_different(one in vec(parameter(), 1..4), other in vec(parameter(), 1..4)) {
            let set = |all: &[Vec<u8>]| all.iter().cloned().collect::<std::collections::BTreeSet<_>>();
            let text = |all: &[Vec<u8>]| {
                let all: Vec<String> = all.iter().map(|one| spelled(one, &[false], true)).collect();
                canonical(format!("?{}", all.join("&")).as_bytes())
            };
            prop_assert_eq!(set(&one) == set(&other), text(&one) == text(&other));
        }

        #[test]
        fn any_bytes_have_one_spelling(bytes in vec(any::<u8>(), 0..60)) {
            let once = canonical(&bytes);
            prop_assert_eq!(canonical(once.as_bytes()), once);
        }
    }
}
