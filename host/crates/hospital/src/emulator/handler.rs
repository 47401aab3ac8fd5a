//! Performs the calls, with their delays.

use super::{
    Call, Emulator,
    directory::{Draft, Unactivatable},
    response,
    validate::Operation,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

impl Emulator {
    /// Performs a valid operation. None if the process was restarted meanwhile, which closes the connection.
    ///
    /// The order is the server's: take a handler from the pool, count the limit, do the work. With `commit_after`, a create is applied
    /// later, without a handler.
    pub(super) async fn perform(
        self: &Arc<Self>,
        call: Call,
        operation: Operation,
        client: IpAddr,
        commit_after: Option<Duration>,
    ) -> Option<Response<Bytes>> {
        let handler = self.handlers.acquire().await.ok()?;
        if !self.admit(call, client) {
            return Some(response::rate_limited(call.limit(), None));
        }
        if let Operation::Create(draft) = operation {
            return self.create(draft, commit_after).await;
        }
        let response = self.handle_at_once(operation);
        drop(handler);
        sleep(self.options.other_delay).await;
        Some(response)
    }

    fn admit(&self, call: Call, client: IpAddr) -> bool {
        self.state.lock().windows.as_mut().is_none_or(|windows| windows.admit(call, client, Instant::now()))
    }

    async fn create(self: &Arc<Self>, draft: Draft, commit_after: Option<Duration>) -> Option<Response<Bytes>> {
        let process = {
            let state = self.state.lock();
            if !state.directory.has_room(draft.batch) {
                return Some(response::batch_full());
            }
            state.process
        };
        if let Some(wait) = commit_after {
            let emulator = Arc::clone(self);
            tokio::spawn(async move {
                sleep(wait).await;
                emulator.commit(draft, process)
            });
            return None;
        }
        sleep(self.options.create_delay).await;
        self.commit(draft, process)
    }

    fn commit(&self, draft: Draft, process: u64) -> Option<Response<Bytes>> {
        let mut state = self.state.lock();
        if state.process != process {
            return None;
        }
        let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let created_at = self.options.unix_ms.saturating_mul(1_000).saturating_add(elapsed);
        Some(response::json(StatusCode::OK, &state.directory.create(draft, created_at)))
    }

    fn handle_at_once(&self, operation: Operation) -> Response<Bytes> {
        let directory = &mut self.state.lock().directory;
        let empty_batch = || response::detail(StatusCode::NOT_FOUND, response::EMPTY_BATCH);
        let no_hospital = || response::detail(StatusCode::NOT_FOUND, response::NO_HOSPITAL);
        match operation {
            Operation::Health | Operation::Create(_) => {
                response::json(StatusCode::OK, &serde_json::json!({ "status": "OK" }))
            }
            Operation::List => response::json(StatusCode::OK, &directory.all()),
            Operation::Get(id) => {
                directory.get(id).map_or_else(no_hospital, |hospital| response::json(StatusCode::OK, hospital))
            }
            Operation::Update(id, patch) => directory
                .update(id, patch)
                .map_or_else(no_hospital, |hospital| response::json(StatusCode::OK, hospital)),
            Operation::Delete(id) if directory.delete(id) => response::empty(StatusCode::NO_CONTENT),
            Operation::Delete(_) => no_hospital(),
            Operation::ListBatch(batch) => {
                directory.batch(batch).map_or_else(empty_batch, |hospitals| response::json(StatusCode::OK, &hospitals))
            }
            Operation::Activate(batch) => match directory.activate(batch) {
                Ok(count) => response::activated(count, batch),
                Err(Unactivatable::Empty) => empty_batch(),
                Err(Unactivatable::AlreadyActive) => {
                    response::detail(StatusCode::BAD_REQUEST, response::ALREADY_ACTIVE)
                }
            },
            Operation::DeleteBatch(batch) => match directory.delete_batch(batch) {
                0 => empty_batch(),
                count => response::deleted(count, batch),
            },
        }
    }
}
