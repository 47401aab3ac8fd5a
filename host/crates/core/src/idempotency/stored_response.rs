//! The part of an answer that a finished record keeps for replays.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{fmt, sync::Arc};

/// The answer that a finished record keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The whole answer, replayed unchanged.
    Answer(StoredBody),
    /// Only the status: the write took effect, but its answer was larger than [`super::Settings::max_response_bytes`]. The request
    /// is never sent again; a repetition gets an error that says so.
    TooLarge {
        /// The answer's status.
        status: StatusCode,
    },
}

/// A whole answer, ready to replay.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredBody {
    /// The status.
    pub status: StatusCode,
    /// The end-to-end headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The name of the verdict's class.
    pub class: &'static str,
    /// The policy that gave the verdict, by name and digest.
    pub policy: Arc<str>,
}

impl Stored {
    /// Keeps `answer` whole, or only its status if its body is larger than `max_response_bytes`.
    pub fn capped(answer: StoredBody, max_response_bytes: usize) -> Self {
        if answer.body.len() > max_response_bytes {
            Self::TooLarge { status: answer.status }
        } else {
            Self::Answer(answer)
        }
    }

    /// The status that the first request got.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Answer(answer) => answer.status,
            Self::TooLarge { status } => *status,
        }
    }
}

impl fmt::Debug for StoredBody {
    /// Bodies and header values may hold patients' data: only their amount is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .field("class", &self.class)
            .field("policy", &self.policy)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_answer_leaves_its_status() {
        let answer = StoredBody {
            status: StatusCode::CREATED,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"patient"),
            class: "applied",
            policy: "p@1".into(),
        };
        assert_eq!(Stored::capped(answer.clone(), 7), Stored::Answer(answer.clone()));
        assert_eq!(Stored::capped(answer.clone(), 6), Stored::TooLarge { status: StatusCode::CREATED });
        assert!(!format!("{answer:?}").contains("patient"));
    }
}
