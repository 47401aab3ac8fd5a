//! Idle connections. The youngest is used first, so that the others expire.
//!
//! The client of `hyper-util` runs a task for each connection and has one idle limit for all requests. This pool is our own because a
//! request drives its connection itself (see [`super`]), and an unsafe request takes only a connection that was idle for less than 4 s.

use super::Wire;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    task::{Context, Waker},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

/// Interval of the sweeps. Most upstreams close idle connections after 5 s or more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Idle connections, oldest first.
#[derive(Debug)]
pub(super) struct Idle {
    most: usize,
    longest: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<(Wire, Instant)>,
    /// Whether a sweeper task runs.
    swept: bool,
}

impl Idle {
    /// Creates a pool with this maximum number of connections and this maximum idle time.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { most, longest, inner: Mutex::default() }
    }

    /// Takes an open connection that was idle for less than `youngest`.
    pub(super) fn take(&self, youngest: Duration, cx: &mut Context<'_>) -> Option<Wire> {
        loop {
            let mut wire = {
                let mut inner = self.inner.lock();
                let (_, since) = inner.waiting.back()?;
                if since.elapsed() >= youngest {
                    return None;
                }
                inner.waiting.pop_back()?.0
            };
            // The upstream may have closed it in the meantime.
            if wire.is_usable(cx) {
                return Some(wire);
            }
        }
    }

    /// Returns a reusable connection to the pool.
    pub(super) fn put(self: &Arc<Self>, wire: Wire) {
        if self.most == 0 {
            return;
        }
        let mut inner = self.inner.lock();
        if inner.waiting.len() >= self.most {
            inner.waiting.pop_front();
        }
        inner.waiting.push_back((wire, Instant::now()));
        if !inner.swept
            && let Ok(runtime) = Handle::try_current()
        {
            inner.swept = true;
            runtime.spawn(Sweeper(Arc::downgrade(self)).run(self.longest.min(SWEEP_INTERVAL)));
        }
    }

    /// Closes expired connections, and those that the upstream has closed. Returns whether any are left.
    fn sweep(&self) -> bool {
        let mut inner = self.inner.lock();
        let mut context = Context::from_waker(Waker::noop());
        inner.waiting.retain_mut(|(wire, since)| since.elapsed() < self.longest && wire.is_usable(&mut context));
        inner.swept = !inner.waiting.is_empty();
        inner.swept
    }

    pub(super) fn clear(&self) {
        self.inner.lock().waiting.clear();
    }
}

/// Sweeps while there are connections. If its runtime ends first, the next [`Idle::put`] starts another one.
struct Sweeper(Weak<Idle>);

impl Sweeper {
    async fn run(self, every: Duration) {
        loop {
            sleep(every).await;
            match self.0.upgrade() {
                Some(idle) if idle.sweep() => {}
                _ => return,
            }
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(idle) = self.0.upgrade() {
            idle.inner.lock().swept = false;
        }
    }
}
