//! Connections that nobody uses now. The youngest is used first, so that the others grow old and go.

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

/// Between two looks at them: most upstreams close what is idle after five seconds or more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Idle connections, the oldest first.
#[derive(Debug)]
pub(super) struct Idle {
    most: usize,
    longest: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<(Wire, Instant)>,
    /// Whether a task sweeps.
    swept: bool,
}

impl Idle {
    /// At most so many, each for at most so long.
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { most, longest, inner: Mutex::default() }
    }

    /// One that stands, and was idle for less than `youngest`.
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
            // The upstream may have closed it since.
            if wire.is_usable(cx) {
                return Some(wire);
            }
        }
    }

    /// Keeps one that can be used again.
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

    /// Closes those that are too old, and those that the upstream has closed. Whether there are others.
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

/// Sweeps for as long as there is something to sweep. If its runtime ends first, whoever puts one next begins another.
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
