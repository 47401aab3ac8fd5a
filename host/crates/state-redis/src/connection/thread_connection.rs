//! The connection of one thread: made at first use, replaced when it fails.

use super::Inner;
use crate::{client::Connection, error::LinkError, error_chain::error_chain};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

/// Time-outs in a row after which a connection counts as dead: redis-rs would wait for its replies, which may never come.
const MAX_TIMEOUTS_IN_ROW: u32 = 3;
/// Time limit of one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two attempts to connect: the first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct ThreadConnection {
    state: Mutex<State>,
    changed: Notify,
    timeouts: AtomicU32,
}

#[derive(Default)]
enum State {
    /// Not used yet.
    #[default]
    Idle,
    /// Being made for the first time: callers wait for it.
    First,
    /// Ready. The number distinguishes a failure of an old connection from one of its successor.
    Up(Connection, u64),
    /// Being made again: calls fail at once.
    Down,
}

/// A connection, and its number among the thread's.
pub(super) struct Numbered {
    connection: Connection,
    number: u64,
}

impl std::ops::Deref for Numbered {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl std::ops::DerefMut for Numbered {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl ThreadConnection {
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.lock(), State::Up(..))
    }

    /// The connection, if it is ready, or becomes ready for the first time before the deadline.
    pub(super) async fn connection(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        deadline: Instant,
    ) -> Result<Numbered, LinkError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                match &*state {
                    State::Up(connection, number) => {
                        return Ok(Numbered { connection: connection.clone(), number: *number });
                    }
                    State::Down => return Err(LinkError::Down),
                    State::First => {}
                    State::Idle => {
                        *state = State::First;
                        drop(state);
                        self.build(inner, 0);
                        continue;
                    }
                }
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(LinkError::Down);
            }
        }
    }

    /// Updates the state by the result of a call over the connection.
    pub(super) fn record_result(self: &Arc<Self>, inner: &Arc<Inner>, over: &Numbered, error: Option<&LinkError>) {
        let dead = match error {
            Some(LinkError::TimedOut(_)) => self.timeouts.fetch_add(1, Relaxed) + 1 >= MAX_TIMEOUTS_IN_ROW,
            Some(LinkError::Broke(_) | LinkError::NotServing(_) | LinkError::Down) => true,
            Some(LinkError::Refused(_) | LinkError::Nonsense { .. }) | None => {
                self.timeouts.store(0, Relaxed);
                false
            }
        };
        if !dead {
            return;
        }
        {
            let mut state = self.state.lock();
            if !matches!(&*state, State::Up(_, number) if *number == over.number) {
                return;
            }
            *state = State::Down;
        }
        if let Some(error) = error {
            tracing::warn!(error = %error_chain(error), "shared state is not used until it answers again");
        }
        self.build(inner, over.number);
    }

    /// Makes a connection on this runtime, and retries without limit while the `RedisConnection` is open.
    fn build(self: &Arc<Self>, inner: &Arc<Inner>, last: u64) {
        let building = Building { slot: Arc::clone(self), last, done: false };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(build(building, Arc::downgrade(inner)));
    }

    fn put(&self, state: State) {
        *self.state.lock() = state;
        self.timeouts.store(0, Relaxed);
        self.changed.notify_waiters();
    }
}

/// A connection being made. If its runtime ends first, the next caller starts again.
struct Building {
    slot: Arc<ThreadConnection>,
    last: u64,
    done: bool,
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.done {
            self.slot.put(State::Idle);
        }
    }
}

async fn build(mut building: Building, inner: std::sync::Weak<Inner>) {
    let mut wait = FIRST_WAIT;
    loop {
        let Some(inner) = inner.upgrade().filter(|inner| !inner.closed.is_cancelled()) else { return };
        let attempt = async {
            let mut connection = inner.client.connect().await.map_err(LinkError::of)?;
            inner.census(&mut connection).await?;
            Ok::<_, LinkError>(connection)
        };
        let error = match timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(connection)) => {
                building.done = true;
                inner.unauthorized.store(false, Relaxed);
                building.slot.put(State::Up(connection, building.last + 1));
                if building.last > 0 {
                    tracing::info!("shared state answers again");
                }
                return;
            }
            Ok(Err(error)) => error,
            Err(_) => LinkError::TimedOut(CONNECT_TIMEOUT),
        };
        if error.is_unauthorized() && !inner.unauthorized.swap(true, Relaxed) {
            tracing::error!(
                error = %error_chain(&error),
                "shared state refuses this host's name or password: correct state.password_file, TRIAGE_STATE_PASSWORD or state.url"
            );
        }
        tracing::debug!(error = %error_chain(&error), "shared state cannot be reached");
        building.slot.put(State::Down);
        let jitter = inner.entropy.next() % 16;
        drop(inner);
        sleep(wait + wait / 16 * jitter as u32 / 2).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
