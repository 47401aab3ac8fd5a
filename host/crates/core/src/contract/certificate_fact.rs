//! What a refused certificate says of itself: for operators, in the log, in explanations and at the command line. Callers are not told.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// The end of the year 9999, the last moment that a certificate can name, in seconds since 1970.
const MAX_UNIX_SECONDS: u64 = 253_402_300_799;
/// Maximum bytes of a certificate's names in one text. A failure is passed by value, so its facts stay small.
const MAX_NAME_BYTES: usize = 80;

/// The part of a certificate that explains why it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertificateFact {
    /// The names that it covers.
    Names(CertificateNames),
    /// When it expired, in seconds since 1970.
    ExpiredAt(u64),
    /// When it becomes valid, in seconds since 1970.
    ValidFrom(u64),
}

impl fmt::Display for CertificateFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) if names.len == 0 && names.omitted == 0 => f.write_str("the certificate has no names"),
            Self::Names(names) => write!(f, "the certificate's names: {names}"),
            Self::ExpiredAt(at) => write!(f, "the certificate expired on {}", date(*at)),
            Self::ValidFrom(from) => write!(f, "the certificate is valid from {}", date(*from)),
        }
    }
}

fn date(unix_seconds: u64) -> httpdate::HttpDate {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds.min(MAX_UNIX_SECONDS))).into()
}

/// The names of a certificate, as many as fit.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateNames {
    text: [u8; MAX_NAME_BYTES],
    len: u8,
    /// How many names did not fit.
    omitted: u16,
}

impl CertificateNames {
    /// Takes the first names that fit. The peer chose them, so a byte that no host name has becomes `?`.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut text, mut len, mut omitted) = ([0; MAX_NAME_BYTES], 0, 0_u16);
        for name in names {
            let separator: &[u8] = if len == 0 { b"" } else { b", " };
            let end = len + separator.len() + name.len();
            match text.get_mut(len..end) {
                Some(free) if omitted == 0 => {
                    let shown = name.bytes().map(|byte| if is_of_names(byte) { byte } else { b'?' });
                    free.iter_mut().zip(separator.iter().copied().chain(shown)).for_each(|(to, from)| *to = from);
                    len = end;
                }
                _ => omitted = omitted.saturating_add(1),
            }
        }
        Self { text, len: u8::try_from(len).unwrap_or_default(), omitted }
    }
}

/// Whether a host name, a wildcard or an address may have this byte.
fn is_of_names(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*' | b':')
}

impl fmt::Display for CertificateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.get(..usize::from(self.len)).unwrap_or_default();
        f.write_str(str::from_utf8(text).unwrap_or_default())?;
        match self.omitted {
            0 => Ok(()),
            omitted if self.len == 0 => write!(f, "{omitted}, too long to show"),
            omitted => write!(f, " and {omitted} more"),
        }
    }
}

impl fmt::Debug for CertificateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateNames({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> String {
        CertificateFact::Names(CertificateNames::new(names.iter().copied())).to_string()
    }

    #[test]
    fn names_are_shown_as_far_as_they_fit() {
        let long = "a".repeat(MAX_NAME_BYTES);
        for (given, shown) in [
            (&[][..], "the certificate has no names"),
            (&["a.example"], "the certificate's names: a.example"),
            (&["*.a.example", "10.0.0.1", "::1"], "the certificate's names: *.a.example, 10.0.0.1, ::1"),
            (&["a\n\"é.example"], "the certificate's names: a????.example"),
            (&[&long], &format!("the certificate's names: {long}")),
            (&["a.example", &long, "b.example"], "the certificate's names: a.example and 2 more"),
        ] {
            assert_eq!(names(given), shown, "{given:?}");
        }
        let longer = long.clone() + "a";
        assert_eq!(names(&[&longer, "a.example"]), "the certificate's names: 2, too long to show");
        assert_eq!(CertificateNames::new(std::iter::repeat_n("a", 100_000)).omitted, u16::MAX);
    }

    #[test]
    fn times_are_dates() {
        let text = |fact: CertificateFact| fact.to_string();
        assert_eq!(
            text(CertificateFact::ExpiredAt(1_009_843_200)),
            "the certificate expired on Tue, 01 Jan 2002 00:00:00 GMT"
        );
        assert_eq!(
            text(CertificateFact::ValidFrom(u64::MAX)),
            "the certificate is valid from Fri, 31 Dec 9999 23:59:59 GMT"
        );
    }
}
