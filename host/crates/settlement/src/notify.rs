//! Sends a notice of every settled write to an operator's own service, by HTTP.
//!
//! ```text
//! POST <settlement.notify>
//! triage-signature: t=1767225600,v1=<HMAC-SHA256 of "1767225600." and the body, in hexadecimal>
//! {"type":"write-settled","record":"5f0c...","upstream":"hospital","endpoint":"create-hospital","class":"already-applied","settled_unix_ms":1767225600000}
//! ```
//!
//! Settling never waits for the receiver: notices wait in a queue, and those beyond its length are dropped and counted. A refused notice
//! waits for its retry separately, so that it delays no other.

use crate::{
    bounded_file,
    clock::Clock,
    contract::{Class, Failure},
    idempotency::RecordId,
    secret::{Secret, TokenSource},
    upstream::{self, HttpClient, Inbound, Outbound, OutboundBody, Transport, TransportError},
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::CONTENT_TYPE};
use ring::hmac;
use std::{
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    time::{error::Elapsed, sleep, timeout},
};

/// The header with the time and the signature of a notice.
pub const SIGNATURE: HeaderName = HeaderName::from_static("triage-signature");

/// The most queued notices.
const MAX_WAITING: usize = 1024;
/// The most sends at once: a hanging receiver delays eight notices, not all, and a recovered one is not flooded.
const MAX_SENDS: usize = 8;
/// The time limit for one send.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The waits before each retry. After the last one, the notice is dropped.
const RETRY_WAITS: [Duration; 6] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(8),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
];
/// The shortest signing key: half of SHA-256's width still suffices, the full width is better.
const MIN_KEY_BYTES: usize = 16;

/// The receiver of notices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The receiver's URL.
    pub url: Uri,
    /// The signing key; without one, the configuration check fails.
    pub key: Option<TokenSource>,
}

/// Why notices cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The key's file could not be read.
    #[error("settlement.notify_key_file {} cannot be read; give the path of a file with the key", path.display())]
    File {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The key is missing or too short.
    #[error(
        "settlement.notify needs a key of at least {MIN_KEY_BYTES} characters in settlement.notify_key_file or \
         TRIAGE_SETTLEMENT_KEY, such as the output of `openssl rand -hex 32`"
    )]
    Key,
    /// The client for the URL could not be built.
    #[error("settlement.notify cannot be called")]
    Transport(#[from] TransportError),
}

/// A notice of a settled write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub record: RecordId,
    pub upstream: String,
    pub endpoint: String,
    /// The effect of the write; `unknown`: no host verifies it any more.
    pub class: Class,
    pub settled_unix_ms: u64,
}

/// Counts of notices by their result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accepted by the receiver.
    pub delivered: u64,
    /// Dropped after all retries, or refused by the receiver.
    pub failed: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
}

/// Queues and sends notices.
pub struct Notifier {
    clock: Clock,
    client: Box<dyn Transport>,
    path_and_query: String,
    key: hmac::Key,
    sender: mpsc::Sender<Notice>,
    waiting: Mutex<mpsc::Receiver<Notice>>,
    sends: Semaphore,
    delivered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Notifier {
    /// Builds a notifier. It sends nothing before [`Notifier::run`].
    ///
    /// # Errors
    /// [`NotifyError`] if the key or the URL cannot be used.
    pub fn new(target: &Target, clock: Clock) -> Result<Self, NotifyError> {
        let key = key(target.key.as_ref())?;
        // The client's base URL is the authority alone, and each request carries the path, so that the path is sent unchanged.
        let path_and_query = target.url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let client = Box::new(HttpClient::new(&upstream::Settings::new(authority(&target.url)))?);
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        Ok(Self {
            clock,
            client,
            path_and_query,
            key,
            sender,
            waiting: Mutex::new(waiting),
            sends: Semaphore::new(MAX_SENDS),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        })
    }

    /// Queues a notice; a full queue drops it.
    pub fn queue(&self, notice: Notice) {
        if self.sender.try_send(notice).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        MAX_WAITING - self.sender.capacity()
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Counts { delivered: read(&self.delivered), failed: read(&self.failed), dropped: read(&self.dropped) }
    }

    /// Sends queued notices. Never ends.
    pub async fn run(&self) {
        let mut waiting = self.waiting.lock().await;
        // Notices under way or waiting for a retry: at most as many as the queue holds.
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                notice = waiting.recv(), if under_way.len() < MAX_WAITING => match notice {
                    Some(notice) => under_way.push(self.deliver(notice)),
                    None => break,
                },
                Some(()) = under_way.next() => {}
            }
        }
    }

    async fn send(&self, body: &Bytes) -> Result<Result<Inbound, Failure>, Elapsed> {
        // The semaphore is never closed; without a permit, the notice would still be sent.
        let _place = self.sends.acquire().await.ok();
        timeout(ANSWER_TIMEOUT, self.client.send(self.request(body))).await
    }

    async fn deliver(&self, notice: Notice) {
        let mut undelivered = Undelivered { notifier: self, notice: Some(notice) };
        let Some(notice) = &undelivered.notice else { return };
        let body = Bytes::from(body(notice));
        let mut waits = RETRY_WAITS.iter();
        loop {
            let why = match self.send(&body).await {
                Ok(Ok(answer)) if answer.status.is_success() => {
                    self.delivered.fetch_add(1, Relaxed);
                    break;
                }
                // A client error will not change with a retry.
                Ok(Ok(answer)) if answer.status.is_client_error() && !matches!(answer.status.as_u16(), 408 | 429) => {
                    self.give_up(notice, &format!("it answered {}", answer.status.as_u16()));
                    break;
                }
                Ok(Ok(answer)) => format!("it answered {}", answer.status.as_u16()),
                Ok(Err(failure)) => failure.kind.name().to_owned(),
                Err(_) => "it took too long".to_owned(),
            };
            match waits.next() {
                Some(wait) => sleep(*wait).await,
                None => {
                    self.give_up(notice, &why);
                    break;
                }
            }
        }
        undelivered.notice = None;
    }

    fn give_up(&self, notice: &Notice, why: &str) {
        self.failed.fetch_add(1, Relaxed);
        tracing::warn!(record = %notice.record, %why, "the receiver did not accept a notice of a settled write \
                                                       (settlement.notify)");
    }

    /// Each send is signed for its own time, because a receiver may refuse old signatures.
    fn request(&self, body: &Bytes) -> Outbound {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        if let Ok(value) = HeaderValue::try_from(signature(&self.key, self.clock.unix_ms() / 1000, body)) {
            headers.insert(SIGNATURE, value);
        }
        Outbound {
            method: Method::POST,
            path_and_query: self.path_and_query.clone(),
            headers,
            body: OutboundBody::Bytes(body.clone()),
            guarded: true,
        }
    }
}

/// A notice under way. If the run is dropped, the notice returns to the queue.
struct Undelivered<'a> {
    notifier: &'a Notifier,
    notice: Option<Notice>,
}

impl Drop for Undelivered<'_> {
    fn drop(&mut self) {
        if let Some(notice) = self.notice.take() {
            self.notifier.queue(notice);
        }
    }
}

/// Checks that the key of a target can be used.
///
/// # Errors
/// [`NotifyError`].
pub fn check(target: &Target) -> Result<(), NotifyError> {
    key(target.key.as_ref()).map(drop)
}

fn key(source: Option<&TokenSource>) -> Result<hmac::Key, NotifyError> {
    let secret = match source {
        None => return Err(NotifyError::Key),
        Some(TokenSource::Environment(secret)) => secret.clone(),
        Some(TokenSource::File(path)) => {
            let read = bounded_file::read_secret(path);
            Secret::new(read.map_err(|source| NotifyError::File { path: path.clone(), source })?)
        }
    };
    let secret = secret.reveal().trim();
    if secret.len() < MIN_KEY_BYTES {
        return Err(NotifyError::Key);
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()))
}

fn authority(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    Uri::from_parts(parts).unwrap_or_else(|_| url.clone())
}

fn body(notice: &Notice) -> String {
    let kind = if notice.class == Class::Unknown { "write-unsettled" } else { "write-settled" };
    serde_json::json!({
        "type": kind,
        "record": notice.record.to_string(),
        "upstream": notice.upstream,
        "endpoint": notice.endpoint,
        "class": notice.class.name(),
        "settled_unix_ms": notice.settled_unix_ms,
    })
    .to_string()
}

/// The value of `triage-signature`: time and signature.
fn signature(key: &hmac::Key, unix_seconds: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(unix_seconds.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    format!("t={unix_seconds},v1={}", HEXLOWER.encode(context.sign().as_ref()))
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts() {
        let key = Some(TokenSource::Environment(Secret::new("0123456789abcdef")));
        let target = Target { url: Uri::from_static("http://ops.example/hook"), key };
        let notifier = Notifier::new(&target, Clock::anchored(5)).expect("the target is fine");
        for _ in 0..MAX_WAITING + 3 {
            notifier.queue(notice("create"));
        }
        assert_eq!(notifier.counts(), Counts { dropped: 3, ..Counts::default() });
    }

    /// By `printf '1767225600.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef`.
    #[test]
    fn a_signature_is_what_openssl_makes_of_it() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        assert_eq!(
            signature(&key, 1_767_225_600, b"{\"a\":1}"),
            "t=1767225600,v1=539b0e21b535c5201ef7d1453c0a0de4ad132293226de9018be0cfbf0092faa6"
        );
    }

    #[test]
    fn a_key_that_is_short_or_missing_is_refused() {
        for source in [None, Some(TokenSource::Environment(Secret::new("0123456789abcde")))] {
            assert!(matches!(key(source.as_ref()), Err(NotifyError::Key)), "{source:?}");
        }
        assert!(key(Some(&TokenSource::Environment(Secret::new("0123456789abcdef")))).is_ok());
        let missing = TokenSource::File("/there/is/no/such/key".into());
        assert!(matches!(key(Some(&missing)), Err(NotifyError::File { .. })));
    }

    /// Opening a pipe without a writer would block the start for ever.
    #[test]
    fn a_key_file_that_is_a_pipe_is_refused_at_once() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("key");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        for path in [pipe, "/dev/zero".into()] {
            let refused = key(Some(&TokenSource::File(path)));
            assert!(
                matches!(&refused, Err(NotifyError::File { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput),
                "{refused:?}"
            );
        }
    }

    /// A receiver that fails for some records and hangs for others.
    #[derive(Debug, Clone, Default)]
    struct Receiver {
        taken: std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
    }

    impl Transport for Receiver {
        fn send(&self, request: Outbound) -> futures_util::future::BoxFuture<'_, Result<Inbound, Failure>> {
            Box::pin(async move {
                let OutboundBody::Bytes(body) = request.body else { panic!("a body of one piece") };
                let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                let endpoint = body["endpoint"].as_str().expect("an endpoint").to_owned();
                let status = match endpoint.as_str() {
                    "refused" => http::StatusCode::INTERNAL_SERVER_ERROR,
                    "hangs" => std::future::pending().await,
                    _ => http::StatusCode::OK,
                };
                self.taken.lock().push(endpoint);
                Ok(Inbound { status, headers: HeaderMap::new(), body: upstream::full(Bytes::new()) })
            })
        }
    }

    fn receiver_and_notifier() -> (Receiver, Notifier) {
        let key = Some(TokenSource::Environment(Secret::new("0123456789abcdef")));
        let target = Target { url: Uri::from_static("http://ops.example/hook"), key };
        let receiver = Receiver::default();
        let mut notifier = Notifier::new(&target, Clock::anchored(5)).expect("the target is fine");
        notifier.client = Box::new(receiver.clone());
        (receiver, notifier)
    }

    fn notice(endpoint: &str) -> Notice {
        Notice {
            record: RecordId::from_bytes([7; 32]),
            upstream: "up".to_owned(),
            endpoint: endpoint.to_owned(),
            class: Class::AlreadyApplied,
            settled_unix_ms: 5,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_notice_that_is_not_taken_delays_no_other_notice() {
        let (_, notifier) = receiver_and_notifier();
        for endpoint in [["refused"; 200].as_slice(), &["hangs"; 7], &["taken"; 3]].concat() {
            notifier.queue(notice(endpoint));
        }
        let run = timeout(Duration::from_secs(4), notifier.run()).await;
        assert!(run.is_err());
        assert_eq!(notifier.counts(), Counts { delivered: 3, ..Counts::default() });
        let _ = timeout(Duration::from_secs(600), notifier.run()).await;
        let all = Counts { delivered: 3, failed: 207, dropped: 0 };
        assert_eq!(notifier.counts(), all, "a run that is dropped leaves what it was sending to the next one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_given_up_after_its_last_wait() {
        let (receiver, notifier) = receiver_and_notifier();
        for _ in 0..20 {
            notifier.queue(notice("refused"));
        }
        let _ = timeout(Duration::from_secs(300), notifier.run()).await;
        assert_eq!(
            notifier.counts(),
            Counts { failed: 20, ..Counts::default() },
            "all at once, not one after the other"
        );
        assert_eq!(receiver.taken.lock().len(), 20 * (1 + RETRY_WAITS.len()));
    }

    #[test]
    fn the_authority_is_called_with_the_path_as_it_is_written() {
        let url: Uri = "https://ops.example:8443/hooks/triage".parse().unwrap_or_default();
        assert_eq!(authority(&url).to_string(), "https://ops.example:8443/");
    }
}
