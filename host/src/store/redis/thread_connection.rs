//! One thread's connection, and what becomes of it.

use super::{
    client::Connection,
    connection::{Inner, LinkError},
};
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

/// Time-outs in a row after which a connection counts as dead: its replies may never come, and redis-rs would wait for them.
const TIMEOUTS: u32 = 3;
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Between two attempts: the first wait, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// One thread's connection.
#[derive(Default)]
pub(super) struct ThreadConnection {
    state: Mutex<State>,
    changed: Notify,
    timeouts: AtomicU32,
}

#[derive(Default)]
enum State {
    /// Nobody has asked yet.
    #[default]
    Idle,
    /// It is being made for the first time, which is worth waiting for.
    First,
    /// It stands; counted, so that an old one's end is not the new one's.
    Up(Connection, u64),
    /// It is being made again, which nobody waits for.
    Down,
}

/// A connection, and which one of the slot's it was.
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

    /// The connection, if it stands or comes to stand for the first time before the deadline.
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

    /// Takes note of how a step over the connection ended.
    pub(super) fn heard(self: &Arc<Self>, inner: &Arc<Inner>, over: &Numbered, error: Option<&LinkError>) {
        let dead = match error {
            Some(LinkError::TimedOut(_)) => self.timeouts.fetch_add(1, Relaxed) + 1 >= TIMEOUTS,
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
            tracing::warn!(error = %DisplayChain(error), "shared state is not used until it answers again");
        }
        self.build(inner, over.number);
    }

    /// Makes a connection on this runtime, however long that takes, as long as the link is open.
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

/// A connection in the making. Where its runtime ends first, the next caller begins anew.
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
        let error = match timeout(CONNECT, attempt).await {
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
            Err(_) => LinkError::TimedOut(CONNECT),
        };
        if error.is_unauthorized() && !inner.unauthorized.swap(true, Relaxed) {
            tracing::error!(
                error = %DisplayChain(&error),
                "shared state refuses this host's name or password: correct state.password_file, TRIAGE_STATE_PASSWORD or state.url"
            );
        }
        tracing::debug!(error = %DisplayChain(&error), "shared state cannot be reached");
        building.slot.put(State::Down);
        let jitter = inner.entropy.next() % 16;
        drop(inner);
        sleep(wait + wait / 16 * jitter as u32 / 2).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// An error with its causes.
struct DisplayChain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for DisplayChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
