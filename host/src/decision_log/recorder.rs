//! What an upstream's decisions are recorded in: off unless an operator starts it, bounded, and over by itself.

use super::{
    encode::DecisionInput,
    format::{Gap, Head},
};
use crate::{clock::Timestamp, upstream_runtime::UpstreamRuntime};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The lines that are held at once: some ten thousand decisions without contents. Whoever records takes them several times a
/// second.
const BYTES: usize = 8 << 20;
/// How long lines are held that nobody takes after the end.
const HELD: Duration = Duration::from_mins(10);

/// One upstream's recorder.
#[derive(Debug, Default)]
pub struct Recorder {
    /// The recording's number, times two, plus one where it has contents; 0: nothing is recorded.
    on: AtomicU64,
    held: Mutex<ActiveRecording>,
}

/// A recording that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording(u64);

impl Recording {
    /// Whether contents are recorded.
    pub fn has_contents(self) -> bool {
        self.0 & 1 == 1
    }
}

/// One is under way already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this upstream is being recorded already; stop that recording first, or wait for its end")]
pub struct AlreadyRecording;

#[derive(Debug, Default)]
struct ActiveRecording {
    /// How many recordings there were.
    recordings: u64,
    /// When the present one ends, or the last one did.
    until: Timestamp,
    view: RecordingStatus,
    lines: Vec<u8>,
    /// Generations whose head is among the lines.
    headed: Vec<u64>,
    /// Dropped since the last line.
    gap: u64,
    /// Whether lines were taken since the start.
    taken: bool,
}

/// How a recording stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordingStatus {
    /// Whether decisions are recorded now.
    pub recording: bool,
    /// Whether with contents.
    pub contents: bool,
    /// Decisions since the start.
    pub decisions: u64,
    /// Decisions that found no room.
    pub dropped: u64,
    /// Bytes that nobody has taken yet.
    pub bytes: usize,
    /// Until its end.
    pub remaining_ms: Option<u64>,
}

impl Recorder {
    /// The recording that is under way; none: nothing else is to be done. One atomic load.
    pub fn recording(&self) -> Option<Recording> {
        match self.on.load(Ordering::Relaxed) {
            0 => None,
            number => Some(Recording(number)),
        }
    }

    /// Records from now on, for so long. What an earlier recording left is gone.
    ///
    /// # Errors
    /// [`AlreadyRecording`]
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

    /// Ends the recording, if there is one. What it left can still be taken.
    pub fn stop(&self, now: Timestamp) -> RecordingStatus {
        let mut held = self.held.lock();
        if held.view.recording {
            self.end(&mut held, now);
        }
        held.view(now)
    }

    /// The lines since the last time, each trace whole in itself; and whether this is the first time.
    pub fn take(&self, now: Timestamp) -> (Vec<u8>, bool) {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        held.close_gap();
        held.headed.clear();
        let first = !std::mem::replace(&mut held.taken, true);
        (std::mem::take(&mut held.lines), first)
    }

    /// How it stands.
    pub fn view(&self, now: Timestamp) -> RecordingStatus {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        held.view(now)
    }

    /// Forgets what nobody has taken for long.
    pub fn purge_expired(&self, now: Timestamp) {
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        if !held.view.recording && now.since(held.until) > HELD {
            held.lines = Vec::new();
        }
    }

    /// Writes a decision down, or counts it where there is no room.
    pub fn note(&self, recording: Recording, shown: &DecisionInput<'_>, now: Timestamp) {
        // Outside the lock: the work of other threads goes on meanwhile.
        let line = serde_json::to_vec(&shown.line(recording.has_contents())).unwrap_or_default();
        let mut held = self.held.lock();
        self.end_if_due(&mut held, now);
        // Another recording may have begun, one without contents.
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
        // Room for a gap's own line is always left.
        if self.lines.len() + head.len() + line.len() + 64 > BYTES {
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
