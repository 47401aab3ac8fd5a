//! A stored answer in one allocation of its own.
//!
//! The headers and body of an answer are slices of the read buffer of the upstream's connection. An answer that is kept for a day
//! would keep that whole buffer: 71 kB for two bytes were measured beside large downloads. A copy holds only the answer, and its
//! size is known to the byte.

use super::{codec, stored_response::Stored};
use http::StatusCode;
use std::{fmt, sync::Arc};

/// The two counters before the bytes of an `Arc<[u8]>`, and an allocator's rounding.
const ALLOCATION_BYTES: usize = 32;

/// A stored answer as bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Compact(Arc<[u8]>);

impl Compact {
    /// Copies an answer.
    pub fn of(stored: &Stored) -> Self {
        Self(codec::encode(stored).into())
    }

    /// The answer, with buffers of its own.
    pub fn open(&self) -> Stored {
        // Decoding cannot fail: this process encoded the bytes, and a property test covers the round trip.
        codec::decode(&self.0).unwrap_or(Stored::TooLarge { status: StatusCode::OK })
    }

    /// The memory that the copy takes, in bytes, with the allocation's overhead.
    pub fn size(&self) -> usize {
        self.0.len() + ALLOCATION_BYTES
    }
}

impl From<Stored> for Compact {
    fn from(stored: Stored) -> Self {
        Self::of(&stored)
    }
}

impl From<Arc<Stored>> for Compact {
    fn from(stored: Arc<Stored>) -> Self {
        Self::of(&stored)
    }
}

impl fmt::Debug for Compact {
    /// Bodies and header values may hold patients' data: only their amount is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compact({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::StoredBody;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};

    /// A buffer whose owner is dropped with its last slice: the count of `_lives` shows whether the buffer is still in memory.
    struct ReadBuffer {
        bytes: Vec<u8>,
        _lives: Arc<()>,
    }

    impl AsRef<[u8]> for ReadBuffer {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    /// Without the copy the kept answer holds the buffer of the connection that it was read from.
    #[test]
    fn a_kept_answer_holds_nothing_of_the_buffer_it_was_read_from() -> Result<(), http::Error> {
        let lives = Arc::new(());
        let buffer = Bytes::from_owner(ReadBuffer { bytes: vec![b'x'; 64 << 10], _lives: Arc::clone(&lives) });
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_maybe_shared(buffer.slice(0..10))?);
        let answer = StoredBody {
            status: StatusCode::OK,
            headers,
            body: buffer.slice(100..102),
            class: "applied",
            policy: "p@1".into(),
        };
        drop(buffer);
        let stored = Stored::Answer(answer);
        let kept = Compact::of(&stored);
        assert_eq!(kept.open(), stored);
        assert!(kept.size() < 128, "{} bytes for a body of 2", kept.size());
        assert_eq!(Arc::strong_count(&lives), 2, "the answer that goes out still has it");
        drop(stored);
        assert_eq!(Arc::strong_count(&lives), 1, "the kept one does not");
        Ok(())
    }
}
