//! The journal: what was about to be sent, with which key, and the result. This module is pure: it converts bytes to a status.
//!
//! Each line is one JSON object, and lines are only appended. The journal names lines of the CSV file, keys and ids, but no contents of
//! rows. A line is valid once its newline is written. A `sending` line is synced before the first byte of its request, so an incomplete one
//! was not followed by a send. An incomplete `result` line leaves its row as "maybe sent", which is safe.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The version of the format. Version 1 did not count lines that end with CR alone.
pub const VERSION: u32 = 2;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// The first line: the import that the journal belongs to.
    Import(Head),
    /// A batch and its id, written before any request.
    Batch {
        /// The position of the batch in the file, from 0.
        number: u32,
        /// The `creation_batch_id` of the batch's rows.
        id: Uuid,
    },
    /// A request is about to be sent, possibly again.
    Sending {
        /// The row or activation.
        what: Subject,
        /// The request's idempotency key.
        key: Uuid,
    },
    /// The result of a request.
    Result {
        /// The row or activation.
        what: Subject,
        /// The request's result.
        is: Recorded,
    },
}

/// Identifies the import that a journal belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The format's [`VERSION`].
    pub version: u32,
    /// The CSV file's SHA-256 in hexadecimal.
    pub csv_sha256: String,
    /// The host's URL. The keys are valid only there.
    pub to: String,
    /// Rows per batch; the last one may have fewer.
    pub batch_size: u8,
}

/// The subject of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The row that begins at this line of the CSV file.
    Line(u64),
    /// The activation of this batch.
    Activation(u32),
}

/// The result of a request, as the journal records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// Applied. The number is the hospital's id, or how many hospitals became active.
    Applied(u64),
    /// Rejected permanently.
    Rejected,
    /// Nothing was sent.
    NotSent,
    /// The effect is unknown.
    Unknown,
}

/// The status of a subject after the lines so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectStatus {
    /// The idempotency key, which never changes.
    pub key: Uuid,
    /// The last result; none if the journal ends after `sending`.
    pub result: Option<Recorded>,
}

/// How a run continues with a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Never sent: send it with a new key.
    Fresh,
    /// Send it with an earlier run's key.
    Again {
        /// The idempotency key of the earlier run.
        key: Uuid,
        /// Whether an earlier run may have sent it. The request then says so.
        maybe_sent: bool,
    },
    /// Already settled: nothing to do.
    Settled(Recorded),
}

/// The contents of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// The first line; none in an empty journal.
    pub head: Option<Head>,
    /// The ids of the batches by number.
    pub batches: BTreeMap<u32, Uuid>,
    subjects: BTreeMap<Subject, SubjectStatus>,
}

/// Why a journal is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The file does not begin like a journal.
    #[error("the file is not an import journal; name another with --journal")]
    Foreign,
    /// Another version of the program wrote the journal.
    #[error("the journal has format {0}, this program reads up to {VERSION}; resume with the program that wrote it")]
    Version(u32),
    /// An earlier version counted the lines of such a CSV file differently.
    #[error("the journal counts the lines of a file with CR line ends differently; check the batches by hand")]
    LineCount,
    /// A complete line is invalid, which a crash alone does not cause.
    #[error(
        "line {0} of the journal cannot be read, and the rows after it are not reliable: check the batches by hand"
    )]
    Unreadable(u64),
    /// A line contradicts an earlier one.
    #[error("line {0} of the journal contradicts an earlier one; check the batches by hand")]
    Contradiction(u64),
}

/// Reads a journal up to its last complete line, and returns the number of bytes read. The rest is incomplete and can be removed.
///
/// # Errors
/// [`JournalError`] if the file is no journal, or has damage that a crash does not cause.
pub fn read(bytes: &[u8]) -> Result<(Past, usize), JournalError> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut past = Past::default();
    for (at, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = at as u64 + 1;
        match serde_json::from_slice(line) {
            Ok(entry) => past.fold(entry, number)?,
            Err(_) if number == 1 => return Err(JournalError::Foreign),
            Err(_) => return Err(JournalError::Unreadable(number)),
        }
    }
    // The file is only an incomplete first line. It may be removed only if it begins like a journal.
    let ours = br#"{"import":{"#;
    let looks_ours = bytes.iter().zip(ours).all(|(a, b)| a == b);
    if past.head.is_none() && !looks_ours { Err(JournalError::Foreign) } else { Ok((past, whole)) }
}

impl Past {
    /// How this run continues with a subject.
    pub fn start(&self, what: Subject) -> Start {
        match self.subjects.get(&what) {
            None => Start::Fresh,
            Some(SubjectStatus { key, result }) => match result {
                None | Some(Recorded::Unknown) => Start::Again { key: *key, maybe_sent: true },
                Some(Recorded::NotSent) => Start::Again { key: *key, maybe_sent: false },
                Some(settled @ (Recorded::Applied(_) | Recorded::Rejected)) => Start::Settled(*settled),
            },
        }
    }

    /// Applies one line.
    fn fold(&mut self, entry: Entry, number: u64) -> Result<(), JournalError> {
        let contradiction = Err(JournalError::Contradiction(number));
        match entry {
            Entry::Import(_) if self.head.is_some() => return contradiction,
            Entry::Import(head) if !(1..=VERSION).contains(&head.version) => {
                return Err(JournalError::Version(head.version));
            }
            Entry::Import(head) => self.head = Some(head),
            _ if self.head.is_none() => return Err(JournalError::Foreign),
            Entry::Batch { number: batch, id } => {
                if *self.batches.entry(batch).or_insert(id) != id {
                    return contradiction;
                }
            }
            Entry::Sending { what, key } => {
                let subject = self.subjects.entry(what).or_insert(SubjectStatus { key, result: None });
                let settled = matches!(subject.result, Some(Recorded::Applied(_) | Recorded::Rejected));
                if subject.key != key || settled {
                    return contradiction;
                }
                subject.result = None;
            }
            Entry::Result { what, is } => match self.subjects.get_mut(&what) {
                Some(subject) if subject.result.is_none() => subject.result = Some(is),
                _ => return contradiction,
            },
        }
        Ok(())
    }
}

/// Serializes lines.
pub fn lines(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        // Enums and structs of numbers, text and ids always have a JSON form.
        if serde_json::to_writer(&mut bytes, entry).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}
