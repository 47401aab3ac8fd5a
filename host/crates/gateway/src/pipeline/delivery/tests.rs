#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    Host,
    clock::Clock,
    config,
    policy::contract::Failure,
    rng::Rng,
    upstream::{Inbound, Outbound, Transport},
};
use futures_util::future::BoxFuture;
use http::Request;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::sleep,
};

const PART_BYTES: usize = 64 << 10;
const LIMIT_BYTES: u64 = 64 << 20;
const TEXT: &str = "[server]\nmemory_limit = \"64MiB\"\n[upstreams.api]\nbase_url = \"http://api.invalid\"\n";

/// A response body whose parts are sent by the test.
struct Parts(Receiver<Bytes>);

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.get_mut().0.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

/// An upstream that responds once.
struct Once(Mutex<Option<Receiver<Bytes>>>);

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

impl Transport for Once {
    fn send(&self, _: Outbound) -> BoxFuture<'_, Result<Inbound, Failure>> {
        let parts = self.0.lock().take().unwrap();
        let body = Parts(parts).boxed();
        Box::pin(std::future::ready(Ok(Inbound { status: StatusCode::CREATED, headers: HeaderMap::new(), body })))
    }
}

fn post() -> Request<Bytes> {
    Request::post("/rows").body(Bytes::from_static(b"row")).unwrap()
}

/// Reading on without the caller takes as much of the host's memory as with one, and is given up first if memory is scarce.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_on_without_its_caller_counts_as_memory() {
    for (case, resident, counted, status) in [
        ("there is space", 0, 2 * PART_BYTES as u64, StatusCode::CREATED),
        ("memory is scarce", LIMIT_BYTES, 0, StatusCode::CONFLICT),
    ] {
        let settings = config::from_toml(TEXT).unwrap();
        let (parts, body) = channel(4);
        let once = Arc::new(Once(Mutex::new(Some(body))));
        let host = Host::with_transports(&settings, Clock::system(), Rng::seeded(1), vec![once]).unwrap();
        let memory = &host.shared.memory;
        drop(host.call(post()).await);
        memory.record_measurement(resident);
        for part in 0..2 {
            let is_read = parts.send(Bytes::from(vec![b'x'; PART_BYTES])).await.is_ok();
            assert_eq!(is_read, part == 0 || resident == 0, "{case}: part {part}");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(memory.view(), (Some(LIMIT_BYTES), counted), "{case}");
        drop(parts);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(memory.view().1, 0, "{case}: the record has it, or it is let go of");
        memory.record_measurement(0);
        let adopted = host.call(post()).await;
        assert_eq!(
            (adopted.status(), adopted.headers()["triage-adopted"].as_bytes()),
            (status, &b"true"[..]),
            "{case}"
        );
    }
}
