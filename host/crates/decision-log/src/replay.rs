//! Replays a decision log through a candidate policy, on several threads and in bounded memory.

use super::{
    encode::settings_digest,
    endpoint_match::{Beside, EndpointMatch, Places},
    format::{Decision, Gap, Head, InvalidLine, Kind, RecordedVerdict},
    inputs::{self, Hand},
    report::{Difference, Missing, Report, plain},
};
use crate::{
    policy::{
        Policy,
        contract::{self, Effect, Purpose},
    },
    route::RouteError,
};
use http::Method;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};
use tokio::time::Instant;

/// Maximum length of a line: two bodies of 1 MiB, each byte of which may need six in JSON.
const MAX_LINE_BYTES: usize = 16 << 20;
/// Size of a batch for a thread.
const BATCH_BYTES: usize = 256 << 10;
/// Maximum of generations in a log.
const MAX_HEADS: usize = 1000;

/// Why a decision log could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Reading failed.
    #[error("the trace cannot be read")]
    Read(#[from] io::Error),
    /// A line is invalid.
    #[error("line {line} is not a line of a trace; name a file that `triage record` wrote")]
    Line {
        /// Number of the line, from 1.
        line: u64,
        /// The error in the line.
        #[source]
        source: InvalidLine,
    },
    /// The log has no decision.
    #[error("the trace holds no decision; record again while the policy decides on requests")]
    Empty,
    /// The candidate's endpoints cannot be routed.
    #[error("the candidate's endpoints cannot be routed")]
    Route(#[from] RouteError),
}

/// A head, with its endpoints compared with the candidate's.
#[derive(Debug)]
struct Recorded {
    head: Head,
    beside: Vec<Beside>,
}

type Heads = HashMap<u64, Arc<Recorded>>;

/// A batch of lines for a thread.
struct Batch {
    /// Number of the first line.
    first: u64,
    /// Complete lines; only the last line of the log may be incomplete.
    bytes: Vec<u8>,
    heads: Arc<Heads>,
    /// Whether the log ends in this batch without a line feed.
    breaks_off: bool,
}

/// State shared by the threads.
struct Queue {
    batches: Mutex<Receiver<Batch>>,
    /// Whether a thread has found an invalid line: the other threads stop.
    failed: AtomicBool,
}

/// Replays every decision of a log through a candidate on `threads` threads, and reports differences. `settings`: those with which
/// the candidate was loaded.
///
/// # Errors
/// [`ReplayError`], with the number of the invalid line.
pub fn replay(trace: impl Read, policy: &Policy, settings: &str, threads: usize) -> Result<Report, ReplayError> {
    let began = Instant::now();
    let places = Places::new(policy.description())?;
    let (sender, batches) = sync_channel::<Batch>(threads.max(1) * 2);
    let queue = Queue { batches: Mutex::new(batches), failed: AtomicBool::new(false) };
    let (read, worked) = thread::scope(|scope| {
        let works: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(|| work(&queue, policy, &places))).collect();
        let read = Reading::new(&places, settings_digest(settings)).run(trace, &sender, &queue.failed);
        drop(sender);
        let joined = works.into_iter().map(|work| {
            work.join().unwrap_or_else(|_| Err(ReplayError::Read(io::Error::other("a replay thread failed"))))
        });
        (read, joined.collect::<Vec<_>>())
    });
    // Report the first invalid line, whichever thread found it.
    let line = |error: &ReplayError| match error {
        ReplayError::Line { line, .. } => *line,
        _ => 0,
    };
    let (mut parts, mut failed): (Vec<Report>, Vec<ReplayError>) = (Vec::new(), Vec::new());
    for result in worked.into_iter().chain([read]) {
        match result {
            Ok(part) => parts.push(part),
            Err(error) => failed.push(error),
        }
    }
    if let Some(error) = failed.into_iter().min_by_key(line) {
        return Err(error);
    }
    let mut report = parts.pop().unwrap_or_default();
    let mut cut_off = false;
    for part in parts {
        cut_off |= part.cut_off;
        report.add(part);
    }
    if report.decisions == 0 {
        return Err(ReplayError::Empty);
    }
    let description = policy.description();
    let digest = policy.digest().map_or_else(|| "native".to_owned(), |digest| digest.short());
    report.candidate = format!("{} {} ({digest})", description.name, plain(&description.version, 64));
    report.cut_off |= cut_off;
    report.took = began.elapsed();
    Ok(report)
}

/// State of the reading thread: it handles heads and gaps itself, and sends decisions to the other threads.
struct Reading<'a> {
    places: &'a Places<'a>,
    settings: String,
    heads: Arc<Heads>,
    report: Report,
}

impl<'a> Reading<'a> {
    fn new(places: &'a Places<'a>, settings: String) -> Self {
        Self { places, settings, heads: Arc::default(), report: Report::default() }
    }

    fn run(
        mut self,
        trace: impl Read,
        batches: &SyncSender<Batch>,
        failed: &AtomicBool,
    ) -> Result<Report, ReplayError> {
        let mut trace = BufReader::with_capacity(BATCH_BYTES, trace);
        let (mut number, mut first, mut held, mut breaks_off) = (0, 1, Vec::with_capacity(BATCH_BYTES), false);
        loop {
            let from = held.len();
            let read = trace.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut held)?;
            if read == 0 {
                break;
            }
            number += 1;
            let invalid = |source| ReplayError::Line { line: number, source };
            if read > MAX_LINE_BYTES {
                return Err(invalid(InvalidLine::TooMany("bytes")));
            }
            let line = held.get(from..).unwrap_or_default();
            breaks_off = !line.ends_with(b"\n");
            match Kind::of(line) {
                Kind::Decision | Kind::Empty => {}
                Kind::Gap => {
                    let gap: Result<Gap, _> = serde_json::from_slice(line);
                    let gap = gap.map_err(|error| invalid(error.into()))?;
                    self.report.dropped = self.report.dropped.saturating_add(gap.dropped);
                    held.truncate(from);
                    // Keep an empty line, so that line numbers stay right.
                    held.push(b'\n');
                }
                Kind::Head => {
                    let head = Head::read(line).map_err(invalid)?;
                    held.truncate(from);
                    held.push(b'\n');
                    self.head(head).map_err(invalid)?;
                }
            }
            if held.len() >= BATCH_BYTES {
                let bytes = std::mem::replace(&mut held, Vec::with_capacity(BATCH_BYTES));
                let batch = Batch { first, bytes, heads: Arc::clone(&self.heads), breaks_off: false };
                first = number + 1;
                if failed.load(Ordering::Relaxed) || batches.send(batch).is_err() {
                    break;
                }
            }
        }
        // If no thread receives any more, the threads report the error.
        let _ = batches.send(Batch { first, bytes: held, heads: Arc::clone(&self.heads), breaks_off });
        Ok(self.report)
    }

    fn head(&mut self, head: Head) -> Result<(), InvalidLine> {
        self.report.recorded_by(&head);
        self.report.other_settings |= head.settings != self.settings;
        // A log repeats a head after each read of the recorder. A different head with the same generation is from another host or run.
        match self.heads.get(&head.generation) {
            Some(known) if known.head == head => return Ok(()),
            None if self.heads.len() >= MAX_HEADS => return Err(InvalidLine::TooMany("generations")),
            _ => {}
        }
        let beside = head.endpoints.iter().map(|own| self.places.beside(&head, own)).collect();
        let mut heads = Heads::clone(&self.heads);
        heads.insert(head.generation, Arc::new(Recorded { head, beside }));
        self.heads = Arc::new(heads);
        Ok(())
    }
}

fn work(queue: &Queue, policy: &Policy, places: &Places<'_>) -> Result<Report, ReplayError> {
    let mut report = Report::default();
    let mut failure = None;
    loop {
        let received = queue.batches.lock().recv();
        let Ok(batch) = received else { return failure.map_or(Ok(report), Err) };
        // Empty the queue, so that the reading thread does not block.
        if queue.failed.load(Ordering::Relaxed) {
            continue;
        }
        if let Err(error) = all(&batch, policy, places, &mut report) {
            queue.failed.store(true, Ordering::Relaxed);
            failure = Some(error);
        }
    }
}

fn all(batch: &Batch, policy: &Policy, places: &Places<'_>, report: &mut Report) -> Result<(), ReplayError> {
    let end = batch.bytes.as_ptr_range().end;
    let lines = batch.bytes.split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let number = batch.first + index as u64;
        match one(line, number, &batch.heads, policy, places, report) {
            Ok(()) => {}
            // The recording client was killed while it wrote.
            Err(_) if batch.breaks_off && line.as_ptr_range().end == end => report.cut_off = true,
            Err(source) => return Err(ReplayError::Line { line: number, source }),
        }
    }
    Ok(())
}

fn one(
    line: &[u8],
    number: u64,
    heads: &Heads,
    policy: &Policy,
    places: &Places<'_>,
    report: &mut Report,
) -> Result<(), InvalidLine> {
    let decision = Decision::read(line)?;
    let none = InvalidLine::Value("no earlier head has its generation and endpoint");
    let Some(recorded) = heads.get(&decision.generation) else { return Err(none) };
    let (Some(endpoint), Some(beside)) =
        (recorded.head.endpoints.get(decision.endpoint), recorded.beside.get(decision.endpoint))
    else {
        return Err(none);
    };
    let hand = Hand::of(&decision)?;
    report.decisions += 1;
    let method = decision.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok()).unwrap_or(unnamed());
    let mut lacks = |missing: Missing| *report.not_replayed.entry(missing).or_default() += 1;
    let now = match places.find(beside, &method, decision.path.as_deref()) {
        EndpointMatch::ByPath => {
            lacks(Missing::Path);
            return Ok(());
        }
        EndpointMatch::Nowhere => Err("no endpoint matches it".to_owned()),
        EndpointMatch::At(index) => {
            let Some(described) = policy.description().endpoints.get(index) else { return Err(none) };
            let settles = settles(described, &decision, &hand);
            if let Some(missing) = inputs::missing(&decision, &endpoint.interest, &described.interest, settles) {
                lacks(missing);
                return Ok(());
            }
            if settles {
                Ok(RecordedVerdict::SETTLED)
            } else {
                let attempt = hand.attempt(&decision, &method, index, described.effect);
                let decided = policy.decide(&attempt, &hand.outcome());
                let contents = decision.verdict.as_ref().is_some_and(|said| said.contents.is_some());
                decided.map(|verdict| RecordedVerdict::of(&verdict, contents)).map_err(|fault| fault.name().to_owned())
            }
        }
    };
    let settled = RecordedVerdict::SETTLED;
    let then = match (&decision.verdict, &decision.fault) {
        (Some(said), _) => Ok(said),
        (None, Some(fault)) => Err(fault.as_str()),
        (None, None) => Ok(&settled),
    };
    let (then, now) = match (then, now) {
        (Ok(then), Ok(now)) if now.agrees(then) => return Ok(()),
        (Ok(then), Ok(now)) => (then.summary(), now.against(then)),
        (Err(then), Err(now)) if then == now => return Ok(()),
        (Ok(then), Err(now)) => (then.summary(), now),
        (Err(then), Ok(now)) => (plain(then, 64), now.summary()),
        (Err(then), Err(now)) => (plain(then, 64), now),
    };
    let difference = || Difference { endpoint: plain(&endpoint.name, 64), outcome: outcome(&decision), then, now };
    report.differs(difference, number);
    Ok(())
}

/// Stands for a method that is not a standard one: only endpoints for all methods match it.
fn unnamed() -> Method {
    Method::from_bytes(b"X-UNNAMED").unwrap_or_default()
}

/// Whether the status settles the outcome, so that the host would not call the candidate.
fn settles(described: &contract::Endpoint, decision: &Decision<'_>, hand: &Hand) -> bool {
    let status = hand.status().map(|status| status.as_u16());
    decision.purpose == Purpose::Request
        && hand.effect(described.effect) != Effect::Unsafe
        && status.is_some_and(|status| described.settled.iter().any(|(first, last)| (*first..=*last).contains(&status)))
}

fn outcome(decision: &Decision<'_>) -> String {
    let what = match (decision.status, decision.failure) {
        (Some(status), _) => status.to_string(),
        (None, Some(failure)) if decision.sent => format!("{} (sent)", failure.name()),
        (None, Some(failure)) => failure.name().to_owned(),
        (None, None) => String::new(),
    };
    if decision.purpose == Purpose::Probe { format!("{what} (probe)") } else { what }
}
