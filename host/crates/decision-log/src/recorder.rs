//! Records the decisions of an upstream. Off until an operator starts it; bounded in memory and in time.

use super::{
    encode::DecisionInput,
    format::{Gap, Head},
};
use crate::{clock::Timestamp, upstream_runtime::UpstreamRuntime};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Maximum bytes of lines in memory: some ten thousand decisions without contents. The recording client reads several times a
/// second.
const MAX_BUFFERED_BYTES: usize = 8 << 20;
/// How long unread lines are kept after the end.
const UNREAD_LINES_TTL: Duration = Duration::from_mins(10);

/// Recorder of one upstream.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Twice the recording's number, plus one with contents; 0: off.
    on: AtomicU64,
    held: Mutex<ActiveRecording>,
}

/// A running recording: its number, and whether it has contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording(u64);

impl Recording {
    /// Whether the recording has contents.
    pub fn has_contents(self) -> bool {
        self.0 & 1 == 1
    }
}

/// Another recording is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a recording of this upstream runs already; stop it first, or wait for its end")]
pub struct AlreadyRecording;

#[derive(Debug, Default)]
struct ActiveRecording {
    /// Number of recordings so far.
    recordings: u64,
    /// End of the running recording, or of the last one.
    until: Timestamp,
    view: RecordingStatus,
    lines: Vec<u8>,
    /// Generations whose head is in `lines`.
    headed: Vec<u64>,
    /// Decisions dropped since the last line.
    gap: u64,
    /// Whether lines were read since the start.
    taken: bool,
}

/// Status of a recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordingStatus {
    /// Whether a recording is running.
    pub recording: bool,
    /// Whether it has contents.
    pub contents: bool,
    /// Decisions recorded since the start.
    pub decisions: u64,
    /// Decisions dropped for lack of space.
    pub dropped: u64,
    /// Bytes not read yet.
    pub bytes: usize,
    /// Time until the end; `None` when not running.
    pub remaining_ms: Option<u64>,
}

impl Recorder {
    /// The running recording, if any. Costs one atomic load, because every request calls it.
    pub fn recording(&self) -> Option<Recording> {
        match self.on.load(Ordering::Relaxed) {
            0 => None,
            number => Some(Recording(number)),
        }
    }

    /// Starts a recording for `time`. Unread lines of an earlier one are dropped.
    ///
    /// # Errors
    /// [`AlreadyRecording`] while another one is running.
    pub fn start(&self, contents: bool, time: Duration, now: Timestamp) -> Result<RecordingStatus, AlreadyRecording> {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        if held.view.recording {
            return Err(AlreadyRecording);
        }
        let recordings = held.recordings + 1;
        let view = RecordingStatus { recording: true, contents, ..RecordingStatus::default() };
        *held = ActiveRecording { recordings, until: now.after(time), view, ..ActiveRecording::default() };
        self.on.store(recordings * 2 + u64::from(contents), Ordering::Relaxed);
        Ok(held.view(now))
    }

    /// Ends the recording, if any. Its lines can still be read.
    pub fn stop(&self, now: Timestamp) -> RecordingStatus {
        let mut held = self.held.lock();
        if held.view.recording {
            self.end(&mut held, now);
        }
        held.view(now)
    }

    /// The lines since the last call, as a decision log complete with its heads; and whether this is the first call.
    pub fn take(&self, now: Timestamp) -> (Vec<u8>, bool) {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        held.close_gap();
        held.headed.clear();
        let first = !std::mem::replace(&mut held.taken, true);
        (std::mem::take(&mut held.lines), first)
    }

    /// Status of the recording.
    pub fn view(&self, now: Timestamp) -> RecordingStatus {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        held.view(now)
    }

    /// Drops lines that were not read within ten minutes of the end.
    pub fn purge_expired(&self, now: Timestamp) {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        if !held.view.recording && now.since(held.until) > UNREAD_LINES_TTL {
            held.lines = Vec::new();
        }
    }

    /// Records a decision, or counts it as dropped if there is no space.
    pub fn note(&self, recording: Recording, shown: &DecisionInput<'_>, now: Timestamp) {
        // Outside the lock, so that other threads can record meanwhile.
        let line = serde_json::to_vec(&shown.line(recording.has_contents())).unwrap_or_default();
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        // Another recording may have started, without contents.
        if self.on.load(Ordering::Relaxed) != recording.0 {
            return;
        }
        held.push(shown.service, recording.has_contents(), &line);
    }

    fn end_if_due(&self, held: &mut ActiveRecording, now: Timestamp) {
        if held.view.recording && now >= held.until {
            let until = held.until;
            self.end(held, until);
        }
    }

    fn end(&self, held: &mut ActiveRecording, now: Timestamp) {
        self.on.store(0, Ordering::Relaxed);
        held.view.recording = false;
        held.until = now;
    }
}

impl ActiveRecording {
    fn view(&self, now: Timestamp) -> RecordingStatus {
        let remaining = self.view.recording.then(|| crate::clock::millis(self.until.since(now)));
        RecordingStatus { bytes: self.lines.len(), remaining_ms: remaining, ..self.view }
    }

    fn push(&mut self, service: &UpstreamRuntime, contents: bool, line: &[u8]) {
        let head = if self.headed.contains(&service.generation) {
            Vec::new()
        } else {
            serde_json::to_vec(&Head::of(service, contents)).unwrap_or_default()
        };
        // Keep 64 bytes for the line of a gap.
        if self.lines.len() + head.len() + line.len() + 64 > MAX_BUFFERED_BYTES {
            self.view.dropped += 1;
            self.gap += 1;
            return;
        }
        self.close_gap();
        if !head.is_empty() {
            self.line(&head);
            self.headed.push(service.generation);
        }
        self.line(line);
        self.view.decisions += 1;
    }

    fn close_gap(&mut self) {
        let dropped = std::mem::take(&mut self.gap);
        if dropped > 0 {
            self.line(&serde_json::to_vec(&Gap { dropped }).unwrap_or_default());
        }
    }

    fn line(&mut self, line: &[u8]) {
        self.lines.extend_from_slice(line);
        self.lines.push(b'\n');
    }
}
