//! Keeps the text of a panic where the host finds it: in the instance's memory. A policy imports nothing by which it could say it, and a
//! panic ends as a trap without a text.

use std::{
    cell::UnsafeCell,
    fmt::{self, Write},
    panic::PanicHookInfo,
    ptr,
};

/// The maximum length of a text; the rest is cut.
const MAX_TEXT_BYTES: usize = 480;
/// The beginning of the text in memory. The host searches for it.
const MARK: [u8; 16] = *b"triage-panic-0.1";

/// The place of the text. `length` comes twice, the second time with its bits turned: other bytes after a mark are no text.
#[repr(C)]
struct Place {
    mark: [u8; 16],
    length: [u8; 4],
    turned: [u8; 4],
    text: [u8; MAX_TEXT_BYTES],
}

struct Kept(UnsafeCell<Place>);

// SAFETY: a component instance is entered by one thread at a time.
unsafe impl Sync for Kept {}

static KEPT: Kept =
    Kept(UnsafeCell::new(Place { mark: [0; 16], length: [0; 4], turned: [0; 4], text: [0; MAX_TEXT_BYTES] }));

/// Keeps the text of each panic from now on.
pub fn keep() {
    std::panic::set_hook(Box::new(write));
}

fn write(panic: &PanicHookInfo<'_>) {
    let mut text = Text { bytes: [0; MAX_TEXT_BYTES], length: 0 };
    let (file, line, column) =
        panic.location().map_or(("?", 0, 0), |location| (location.file(), location.line(), location.column()));
    let _ = write!(text, "{file}:{line}:{column}\n{}", panic.payload_as_str().unwrap_or("a value"));
    let length = (text.length as u32).to_le_bytes();
    let place = KEPT.0.get();
    let kept = Place { mark: MARK, length, turned: length.map(|byte| !byte), text: text.bytes };
    // SAFETY: the place is valid, and no other thread is there. Volatile, because nothing in this program reads it.
    unsafe { ptr::write_volatile(place, kept) };
}

/// Text of a limited length.
struct Text {
    bytes: [u8; MAX_TEXT_BYTES],
    length: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let mut fits = more.len().min(room.len());
        while !more.is_char_boundary(fits) {
            fits -= 1;
        }
        room[..fits].copy_from_slice(&more.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}
