//! The text of a Rust policy's panic, read from its instance's memory after the trap.
//!
//! A policy imports nothing by which it could say why it panics, and an instance that trapped cannot be called again. The SDK's panic hook
//! (`guest-policies/sdk/src/panics.rs`) writes the text into memory instead.

use super::convert;
use std::fmt;
use wasmtime::{AsContext, WasmCoreDump};

/// The bytes before a text.
const MARK: &[u8; 16] = b"triage-panic-0.1";
/// The maximum length of a text.
const MAX_TEXT_BYTES: usize = 480;
/// The part of a memory that is searched. The SDK's place is among the static data at the beginning of it.
const SEARCHED_BYTES: usize = 1 << 20;

/// Where a policy panicked, and its text. Everything in it comes from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PanicText {
    /// File, line and column.
    pub at: String,
    /// The panic's own text. It may quote what the policy was shown, so it is for the policy's author and not for the log of a host.
    pub text: String,
}

impl fmt::Display for PanicText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

/// The text of the panic that ended in this trap, if the guest wrote one.
pub(super) fn of(error: &wasmtime::Error, store: impl AsContext) -> Option<PanicText> {
    let dump = error.downcast_ref::<WasmCoreDump>()?;
    dump.memories().iter().find_map(|memory| {
        let bytes = memory.data(&store);
        found(bytes.get(..SEARCHED_BYTES).unwrap_or(bytes))
    })
}

/// The error of a trap without the dump, whose text is not for people.
pub(super) fn without_dump(error: wasmtime::Error) -> wasmtime::Error {
    if !error.is::<WasmCoreDump>() {
        return error;
    }
    let cause = error.chain().nth(1).map(ToString::to_string);
    wasmtime::Error::msg(cause.unwrap_or_default())
}

fn found(memory: &[u8]) -> Option<PanicText> {
    let places = memory.windows(MARK.len()).enumerate().filter(|(_, window)| window == MARK);
    places.map(|(index, _)| memory.get(index + MARK.len()..).unwrap_or_default()).find_map(text)
}

/// The text behind a mark: its length, the same with its bits turned, and the bytes. The mark of the hook's own code has none behind it.
fn text(place: &[u8]) -> Option<PanicText> {
    let (length, rest) = place.split_first_chunk::<4>()?;
    let (turned, rest) = rest.split_first_chunk::<4>()?;
    if length.map(|byte| !byte) != *turned {
        return None;
    }
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length <= MAX_TEXT_BYTES)?;
    let text = String::from_utf8_lossy(rest.get(..length)?);
    let (at, text) = text.split_once('\n')?;
    Some(PanicText { at: convert::short(at, 120), text: convert::short(text, MAX_TEXT_BYTES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(length: u32, turned: u32, text: &str) -> Vec<u8> {
        // The mark in the code of the hook comes first.
        let code = [MARK, &b"other bytes"[..]].concat();
        [&code[..], MARK, &length.to_le_bytes(), &turned.to_le_bytes(), text.as_bytes(), &[0; 500]].concat()
    }

    #[test]
    fn a_text_is_found_behind_a_mark_with_its_length_twice() {
        let expected = PanicText { at: "src/lib.rs:7:9".to_owned(), text: "no entry found".to_owned() };
        let text = "src/lib.rs:7:9\nno entry found";
        assert_eq!(found(&memory(29, !29, text)), Some(expected));
        assert_eq!(found(&memory(29, 29, text)), None, "another length");
        assert_eq!(found(&memory(u32::MAX, 0, text)), None, "longer than any text");
        assert_eq!(found(&memory(14, !14, text)), None, "no text behind the place");
        assert_eq!(found(MARK), None, "the memory ends");
        let hostile = found(&memory(8, !8, "a\x1b[2J\nb\u{7}")).map(|panic| panic.to_string());
        assert_eq!(hostile.as_deref(), Some("a [2J: b "), "no control characters");
    }
}
