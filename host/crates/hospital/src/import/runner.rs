//! Performs the import: write to the journal, send, interpret the response, decide, write again.

use super::{
    Activation, Context, ImportError, Options, Report, RequestOutcome, Row, RowReport, Subject, Summary, Table,
    file::JournalFile,
    journal::{Entry, Head, JournalError, Past, Recorded, Start, VERSION},
    response,
    retry_state::{Next, RetryState},
    rows,
};
use crate::{
    contract::{Failure, FailureKind},
    rng::Rng,
    upstream::{Body, Outbound, OutboundBody},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use serde::Serialize;
use std::{collections::VecDeque, io::Read as _, path::Path, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PRIORITY: HeaderName = HeaderName::from_static("triage-priority");
const MAYBE_SENT: HeaderName = HeaderName::from_static("triage-maybe-sent");
/// Longer than the host's own deadline for a create (120 s), so that the host gives up first.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(150);
const MAX_RESPONSE_BYTES: usize = 1 << 20;
const MAX_CSV_BYTES: u64 = 32 << 20;

/// An import that is ready to run: file checked, journal locked, keys loaded.
pub(super) struct Work {
    context: Context,
    to: String,
    rows: Vec<Row>,
    batch_size: usize,
    batches: Vec<Uuid>,
    activate: bool,
    concurrency: usize,
    past: Past,
    journal: JournalFile,
    /// Journal lines that must be written before anything is sent.
    preamble: Vec<Entry>,
}

/// A request to send until it is settled.
struct Job {
    what: Subject,
    key: Uuid,
    maybe_sent: bool,
    method: Method,
    path: String,
    body: Bytes,
    /// The response field that holds the result.
    number: &'static str,
}

struct Waiting {
    what: Subject,
    after: Duration,
    why: String,
}

/// The body of a create. Its bytes must stay equal between runs, because the host compares them with the first body of the key.
#[derive(Serialize)]
struct Create<'a> {
    name: &'a str,
    address: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<&'a str>,
    creation_batch_id: Uuid,
}

impl Work {
    /// Reads the file and opens the journal.
    pub(super) fn prepare(context: Context, options: &Options) -> Result<Self, ImportError> {
        let table = rows::parse(&read_csv(&options.file)?)?;
        let path = options.journal_path();
        let (journal, past) = JournalFile::open(&path)?;
        let to = options.to.to_string();
        let batch_size = check_head(&past, &table, &to, options, &path)?;
        let mut preamble = Vec::new();
        if past.head.is_none() {
            preamble.push(Entry::Import(Head {
                version: VERSION,
                csv_sha256: table.digest,
                to: to.clone(),
                batch_size,
            }));
        }
        let batch_size = usize::from(batch_size);
        let batches = (0..table.rows.len().div_ceil(batch_size) as u32)
            .map(|number| {
                past.batches.get(&number).copied().unwrap_or_else(|| {
                    let id = uuid(&context.entropy);
                    preamble.push(Entry::Batch { number, id });
                    id
                })
            })
            .collect();
        Ok(Self {
            context,
            to,
            rows: table.rows,
            batch_size,
            batches,
            activate: options.activate,
            concurrency: usize::from(options.concurrency).max(1),
            past,
            journal,
            preamble,
        })
    }

    /// Sends all unsettled rows, as many at once as allowed.
    pub(super) async fn run(self, report: &mut impl Report) -> Result<Summary, ImportError> {
        let begun = Instant::now();
        let mut status = RunStatus::new(self.rows.len(), self.batches.len());
        let mut queue = VecDeque::new();
        for (at, row) in self.rows.iter().enumerate() {
            match self.past.start(Subject::Line(row.line)) {
                Start::Settled(recorded) => status.rows[at] = Some(earlier(recorded)),
                start => queue.push_back(self.create(at, row, start)),
            }
        }
        report.begin(self.rows.len(), self.batches.len(), self.rows.len() - queue.len());
        for batch in 0..self.batches.len() {
            queue.extend(self.activation(batch, &mut status));
        }
        if !queue.is_empty() {
            self.find_host().await?;
            self.journal.append(&self.preamble).await?;
        }
        let (waiting, mut waits) = mpsc::unbounded_channel();
        let mut under_way: FuturesUnordered<BoxFuture<'_, _>> = FuturesUnordered::new();
        loop {
            while under_way.len() < self.concurrency
                && let Some(job) = queue.pop_front()
            {
                under_way.push(Box::pin(self.settle(job, waiting.clone())));
            }
            tokio::select! {
                Some(Waiting { what, after, why }) = waits.recv(), if !under_way.is_empty() => {
                    report.waiting(what, after, &why);
                }
                Some(settled) = under_way.next() => {
                    let (what, outcome) = settled?;
                    queue.extend(self.settled(what, outcome, &mut status, report));
                }
                else => break,
            }
        }
        drop(under_way);
        Ok(self.summary(status, begun.elapsed()))
    }

    /// Stores and reports an outcome. Returns the activation that it makes possible.
    fn settled(
        &self,
        what: Subject,
        outcome: RequestOutcome,
        status: &mut RunStatus,
        report: &mut impl Report,
    ) -> Option<Job> {
        match what {
            Subject::Line(line) => {
                report.row(line, &outcome);
                let at = self.rows.binary_search_by_key(&line, |row| row.line).ok()?;
                status.rows[at] = Some(outcome);
                self.activation(at / self.batch_size, status)
            }
            Subject::Activation(number) => {
                let activation = Activation::from(outcome);
                report.batch(number, &activation);
                status.batches[number as usize] = Some(activation);
                None
            }
        }
    }

    /// Checks that the server is a Triage host. Any other server would create a repeated row twice.
    async fn find_host(&self) -> Result<(), ImportError> {
        let health = self.exchange(Method::GET, "/", HeaderMap::new(), Bytes::new(), false).await;
        match health {
            Ok((_, headers, _)) if response::from_triage(&headers) => Ok(()),
            Ok(_) => Err(ImportError::NotTriage(self.to.clone())),
            Err(failure) => Err(ImportError::NoHost(self.to.clone(), failure.kind.name())),
        }
    }

    /// Sends until the job is settled. Writes the request to the journal before the first byte is sent, and the outcome afterwards.
    async fn settle(
        &self,
        job: Job,
        waiting: mpsc::UnboundedSender<Waiting>,
    ) -> Result<(Subject, RequestOutcome), ImportError> {
        let what = job.what;
        self.journal.append(&[Entry::Sending { what, key: job.key }]).await?;
        let mut asking = RetryState::new(self.context.retry_limits, job.maybe_sent);
        let outcome = loop {
            let headers = headers(job.key, asking.maybe_sent());
            let response = match self.exchange(job.method.clone(), &job.path, headers, job.body.clone(), true).await {
                Ok((status, headers, body)) => {
                    response::read(job.number, status, &headers, &body, self.context.clock.unix_ms())
                }
                Err(failure) => response::failed(failure),
            };
            match asking.decide(response, self.context.entropy.next()) {
                Next::Settled(outcome) => break outcome,
                Next::Again { after, why } => {
                    let _ = waiting.send(Waiting { what, after, why });
                    sleep(after).await;
                }
            }
        };
        self.journal.append(&[Entry::Result { what, is: record(&outcome) }]).await?;
        Ok((what, outcome))
    }

    /// Sends one request and reads the whole response.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
        guarded: bool,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Failure> {
        let body = OutboundBody::Bytes(body);
        let request = Outbound { method, path_and_query: path.to_owned(), headers, body, guarded };
        let exchange = async {
            let answer = self.context.transport.send(request).await?;
            let body = whole(answer.body).await.ok_or(Failure::new(FailureKind::Body, true))?;
            Ok((answer.status, answer.headers, body))
        };
        timeout(RESPONSE_TIMEOUT, exchange).await.unwrap_or(Err(Failure::new(FailureKind::Timeout, true)))
    }

    fn create(&self, at: usize, row: &Row, start: Start) -> Job {
        let body = Create {
            name: &row.name,
            address: &row.address,
            phone: row.phone.as_deref(),
            creation_batch_id: self.batches[at / self.batch_size],
        };
        // Text and ids always have a JSON form.
        let body = serde_json::to_vec(&body).unwrap_or_default().into();
        self.job(Subject::Line(row.line), start, Method::POST, "/hospitals/".to_owned(), body, "id")
    }

    /// The activation of a batch, if it is requested, possible and not settled. Otherwise `status` gets the reason.
    fn activation(&self, batch: usize, status: &mut RunStatus) -> Option<Job> {
        let of_batch = status.rows.chunks(self.batch_size).nth(batch).unwrap_or_default();
        if !self.activate || status.batches[batch].is_some() || of_batch.iter().any(Option::is_none) {
            return None;
        }
        let open = of_batch
            .iter()
            .flatten()
            .filter(|is| matches!(is, RequestOutcome::NotSent(_) | RequestOutcome::Unknown(_)))
            .count();
        let made = of_batch.iter().flatten().any(|is| matches!(is, RequestOutcome::Applied(_)));
        let what = Subject::Activation(batch as u32);
        status.batches[batch] = match self.past.start(what) {
            Start::Settled(recorded) => Some(Activation::from(earlier(recorded))),
            _ if open > 0 => Some(Activation::Withheld(open)),
            _ if !made => Some(Activation::Empty),
            start => {
                let path = format!("/hospitals/batch/{}/activate", self.batches[batch]);
                return Some(self.job(what, start, Method::PATCH, path, Bytes::new(), "activated_count"));
            }
        };
        None
    }

    fn job(&self, what: Subject, start: Start, method: Method, path: String, body: Bytes, number: &'static str) -> Job {
        let (key, maybe_sent) = match start {
            Start::Again { key, maybe_sent } => (key, maybe_sent),
            Start::Fresh | Start::Settled(_) => (uuid(&self.context.entropy), false),
        };
        Job { what, key, maybe_sent, method, path, body, number }
    }

    fn summary(self, status: RunStatus, elapsed: Duration) -> Summary {
        let rows = self.rows.iter().zip(status.rows).map(|(row, outcome)| RowReport {
            line: row.line,
            outcome: outcome.unwrap_or_else(|| RequestOutcome::NotSent("not reached".to_owned())),
        });
        let activations = if self.activate { status.batches.into_iter().flatten().collect() } else { Vec::new() };
        Summary { rows: rows.collect(), batches: self.batches.len(), activations, elapsed }
    }
}

/// The outcomes so far; none for unsettled rows and batches.
struct RunStatus {
    rows: Vec<Option<RequestOutcome>>,
    batches: Vec<Option<Activation>>,
}

impl RunStatus {
    fn new(rows: usize, batches: usize) -> Self {
        Self { rows: vec![None; rows], batches: vec![None; batches] }
    }
}

/// Checks that the journal belongs to this import. Returns the batch size.
pub(super) fn check_head(
    past: &Past,
    table: &Table,
    to: &str,
    options: &Options,
    path: &Path,
) -> Result<u8, ImportError> {
    let Some(head) = &past.head else { return Ok(options.batch_size.unwrap_or(20).clamp(1, 20)) };
    let path = path.to_owned();
    if head.csv_sha256 != table.digest {
        return Err(ImportError::OtherFile(path));
    }
    if head.version < 2 && table.has_lone_cr {
        return Err(ImportError::BadJournal { path, source: JournalError::LineCount });
    }
    if head.to != to {
        return Err(ImportError::OtherHost { path, was: head.to.clone(), is: to.to_owned() });
    }
    match options.batch_size {
        Some(is) if is != head.batch_size => Err(ImportError::OtherBatchSize { path, was: head.batch_size, is }),
        _ => Ok(head.batch_size.clamp(1, 20)),
    }
}

/// Reads the CSV file up to the size limit.
pub(super) fn read_csv(path: &Path) -> Result<Vec<u8>, ImportError> {
    let failed = |source| ImportError::Csv { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_CSV_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_CSV_BYTES {
        return Err(failed(std::io::Error::other(format!("the file has more than {MAX_CSV_BYTES} bytes; split it"))));
    }
    Ok(bytes)
}

fn headers(key: Uuid, maybe_sent: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // An import can wait; interactive requests cannot.
    headers.insert(PRIORITY, HeaderValue::from_static("low"));
    // The header is a quoted string by its specification. Hexadecimal digits and hyphens need no escapes.
    if let Ok(value) = HeaderValue::from_str(&format!("\"{key}\"")) {
        headers.insert(KEY, value);
    }
    if maybe_sent {
        headers.insert(MAYBE_SENT, HeaderValue::from_static("true"));
    }
    headers
}

/// Generates a random UUID (version 4).
fn uuid(entropy: &Rng) -> Uuid {
    let bits = u128::from(entropy.next()) << 64 | u128::from(entropy.next());
    uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
}

async fn whole(mut body: Body) -> Option<Bytes> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > MAX_RESPONSE_BYTES {
            return None;
        }
    }
    Some(bytes.into())
}

fn record(outcome: &RequestOutcome) -> Recorded {
    match outcome {
        RequestOutcome::Applied(number) => Recorded::Applied(*number),
        RequestOutcome::Rejected(_) => Recorded::Rejected,
        RequestOutcome::NotSent(_) => Recorded::NotSent,
        RequestOutcome::Unknown(_) => Recorded::Unknown,
    }
}

fn earlier(recorded: Recorded) -> RequestOutcome {
    let why = "in an earlier run".to_owned();
    match recorded {
        Recorded::Applied(number) => RequestOutcome::Applied(number),
        Recorded::Rejected => RequestOutcome::Rejected(why),
        Recorded::NotSent => RequestOutcome::NotSent(why),
        Recorded::Unknown => RequestOutcome::Unknown(why),
    }
}
