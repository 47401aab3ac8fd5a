//! The journal: what was meant to be sent, with which key, and what came of it. Pure: bytes in, standing out.
//!
//! One JSON object a line, only ever appended. It names lines of the CSV file, keys and ids, never what the rows say. A line
//! counts once its newline is there: a `sending` line is synced before the first byte of its request, so a torn one was not
//! followed by a send, and a torn `result` leaves its row as "maybe sent", which is safe.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// The version of the format. Version 1 counted no line that ends with a carriage return alone.
pub const VERSION: u32 = 2;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Entry {
    /// The first line: what is imported.
    Import(Head),
    /// A batch and its id, written before anything is sent.
    Batch {
        /// Counts from 0 in the order of the rows.
        number: u32,
        /// The `creation_batch_id` of its rows.
        id: Uuid,
    },
    /// A request is about to be sent, perhaps once more.
    Sending {
        /// What it is about.
        what: Subject,
        /// Its idempotency key.
        key: Uuid,
    },
    /// What came of it.
    Result {
        /// What it was about.
        what: Subject,
        /// The result.
        is: Recorded,
    },
}

/// What a journal belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// [`VERSION`].
    pub version: u32,
    /// The CSV file's SHA-256.
    pub csv_sha256: String,
    /// The host's URL: keys mean nothing elsewhere.
    pub to: String,
    /// Rows in each batch but the last.
    pub batch_size: u8,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The row that begins at this line of the CSV file.
    Line(u64),
    /// The activation of this batch.
    Activation(u32),
}

/// A result, as far as the journal tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// Done: the hospital's id, or how many hospitals became active.
    Applied(u64),
    /// Refused for good.
    Rejected,
    /// Nothing was sent.
    NotSent,
    /// It may or may not have been done.
    Unknown,
}

/// How a subject stands after the lines so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectStatus {
    /// Its key: once chosen it never changes.
    pub key: Uuid,
    /// The last result; none: it was about to be sent when the journal ends.
    pub result: Option<Recorded>,
}

/// What a run does with a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It was never sent: send it with a new key.
    Fresh,
    /// Ask with this key.
    Again {
        /// The key.
        key: Uuid,
        /// Whether an earlier run may have sent it: the host is told so.
        maybe_sent: bool,
    },
    /// Nothing: it is settled.
    Settled(Recorded),
}

/// All that a journal says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Past {
    /// The first line; none in an empty journal.
    pub head: Option<Head>,
    /// The ids of the batches.
    pub batches: BTreeMap<u32, Uuid>,
    subjects: BTreeMap<Subject, SubjectStatus>,
}

/// Why a journal is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It begins with something else.
    #[error("the file is no import journal; name another with --journal")]
    Foreign,
    /// Another version wrote it.
    #[error("the journal has format {0}, this program reads up to {VERSION}; resume with the program that wrote it")]
    Version(u32),
    /// An earlier version counted the lines of such a file otherwise.
    #[error("the journal counts the lines of a file with CR line ends otherwise; look at the batches by hand")]
    LineCount,
    /// A whole line cannot be read: more than a crash has happened.
    #[error("line {0} of the journal cannot be read; the rows after it cannot be trusted: look at the batches by hand")]
    Unreadable(u64),
    /// A line contradicts an earlier one.
    #[error("line {0} of the journal contradicts an earlier one; look at the batches by hand")]
    Contradiction(u64),
}

/// Reads a journal up to its last whole line; also how many bytes that is. What follows is torn and can be cut off.
///
/// # Errors
/// [`JournalError`] where the file is something else or was damaged otherwise than by a crash.
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
    // Nothing but a torn first line: only what looks like ours may be cut off.
    let ours = br#"{"import":{"#;
    let looks_ours = bytes.iter().zip(ours).all(|(a, b)| a == b);
    if past.head.is_none() && !looks_ours { Err(JournalError::Foreign) } else { Ok((past, whole)) }
}

impl Past {
    /// How a subject starts in this run.
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

    /// Adds one line.
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
                let standing = self.subjects.entry(what).or_insert(SubjectStatus { key, result: None });
                let settled = matches!(standing.result, Some(Recorded::Applied(_) | Recorded::Rejected));
                if standing.key != key || settled {
                    return contradiction;
                }
                standing.result = None;
            }
            Entry::Result { what, is } => match self.subjects.get_mut(&what) {
                Some(standing) if standing.result.is_none() => standing.result = Some(is),
                _ => return contradiction,
            },
        }
        Ok(())
    }
}

/// Lines as they are written.
pub fn lines(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        // Enums and structs of numbers, texts and ids always have a JSON form.
        if serde_json::to_writer(&mut bytes, entry).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}
