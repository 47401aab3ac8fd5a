//! W3C Trace Context: reads and writes `traceparent`.
//!
//! Each attempt is a span of the caller's trace. Without a caller's trace, a new one begins only if traces are exported: a header
//! "not sampled" would switch off the upstream's own traces, and "sampled" would force them.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;

/// The header with the ids of trace and parent span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with vendor-specific data of the trace.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The trace of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    /// Id of the caller's span; 0 if the trace begins here.
    parent: u64,
    flags: u8,
}

impl TraceContext {
    /// Reads the caller's trace. If it is invalid, removes both headers, because the specification forbids passing them on.
    pub fn take(headers: &mut HeaderMap) -> Option<Self> {
        headers.get(TRACEPARENT)?;
        let mut all = headers.get_all(TRACEPARENT).iter();
        let read = match (all.next(), all.next()) {
            (Some(only), None) => Self::parse(only.as_bytes()),
            _ => None,
        };
        if read.is_none() {
            headers.remove(TRACEPARENT);
            headers.remove(TRACESTATE);
        }
        read
    }

    /// Parses `00-TRACE-PARENT-FLAGS` in lower-case hexadecimal. Later versions may append a dash and more.
    fn parse(value: &[u8]) -> Option<Self> {
        let (known, rest) = value.split_at_checked(55)?;
        let [version, trace, parent, flags] = known.split(|byte| *byte == b'-').collect::<Vec<_>>().try_into().ok()?;
        let hex = |digits: &[u8], count: usize| {
            let fits = digits.len() == count && digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            fits.then(|| std::str::from_utf8(digits).ok().and_then(|digits| u128::from_str_radix(digits, 16).ok()))?
        };
        let version = hex(version, 2)?;
        let more = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with(b"-"),
        };
        let trace = hex(trace, 32).filter(|trace| *trace != 0)?;
        let parent = hex(parent, 16).and_then(|parent| u64::try_from(parent).ok()).filter(|parent| *parent != 0)?;
        let flags = u8::try_from(hex(flags, 2)?).ok()?;
        // Of a later version's flags, only the known one is passed on.
        more.then_some(Self { trace, parent, flags: if version == 0 { flags } else { flags & 1 } })
    }

    /// Begins a new, sampled trace.
    pub fn begin(trace: u128) -> Self {
        Self { trace: trace.max(1), parent: 0, flags: 1 }
    }

    /// Whether the trace is sampled.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    /// Id of the caller's span; 0 if the trace begins here.
    pub fn parent(&self) -> u64 {
        self.parent
    }

    /// The header for an attempt; `span`: random id of the attempt's span.
    pub fn header(&self, span: u64) -> HeaderValue {
        let (trace, span, flags) = (self.trace, span.max(1), self.flags);
        HeaderValue::try_from(format!("00-{trace:032x}-{span:016x}-{flags:02x}"))
            .unwrap_or_else(|_| HeaderValue::from_static("00"))
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.trace)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn take(values: &[&str]) -> (Option<TraceContext>, HeaderMap) {
        let mut headers = HeaderMap::new();
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        (TraceContext::take(&mut headers), headers)
    }

    #[test]
    fn a_trace_is_continued_under_a_span_of_its_own() {
        let (trace, headers) = take(&[GOOD]);
        assert!(headers.contains_key(TRACESTATE));
        assert_eq!(trace.unwrap().header(0xab), "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000ab-01");
        assert_eq!(trace.unwrap().header(0), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-01", "never zero");
        let later = GOOD.replacen("00", "cc", 1).replace("-01", "-ff-what-comes");
        assert_eq!(take(&[&later]).0.unwrap().header(1).to_str().unwrap().rsplit('-').next(), Some("01"));
    }

    #[test]
    fn an_invalid_trace_context_is_removed() {
        for (what, value) in [
            ("empty", String::new()),
            ("upper case", GOOD.to_uppercase()),
            ("short", GOOD[..54].to_owned()),
            ("longer than its version", format!("{GOOD}-x")),
            ("version ff", GOOD.replacen("00", "ff", 1)),
            ("no trace", GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32))),
            ("no parent", GOOD.replace("00f067aa0ba902b7", &"0".repeat(16))),
            ("a sign", GOOD.replace("00f067aa0ba902b7", "+0f067aa0ba902b7")),
            ("no dashes", GOOD.replace('-', "0")),
        ] {
            let (trace, headers) = take(&[&value]);
            assert!(trace.is_none() && headers.is_empty(), "{what}: {trace:?} {headers:?}");
        }
        let (trace, headers) = take(&[GOOD, GOOD]);
        assert!(trace.is_none() && headers.is_empty(), "twice");
        assert!(take(&[]).1.contains_key(TRACESTATE), "alone it concerns nobody");
    }

    proptest! {
        #[test]
        fn no_value_breaks_it(value in prop::collection::vec(0x20_u8..0x7f, 0..80)) {
            if let Some(trace) = TraceContext::parse(&value) {
                prop_assert_eq!(TraceContext::parse(trace.header(7).as_bytes()).unwrap().trace, trace.trace);
            }
        }
    }
}
