//! What is kept of an answer so that it can be given again.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{fmt, sync::Arc};

/// What a finished record keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// The answer, to be given again as it was.
    Answer(StoredBody),
    /// Only that the effect took place: the answer was larger than [`super::Settings::max_response_bytes`]. The request is never
    /// sent again; a repetition is told so.
    TooLarge {
        /// The answer's status.
        status: StatusCode,
    },
}

/// A whole answer.
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
    /// `answer`, or what is left of it where its body is larger than `max_response_bytes`.
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
