//! Connections that nobody uses now. The youngest is used first, so that the others grow old and go.

use super::Wire;
use parking_lot::Mutex;
use std::{collections::VecDeque, sync::Arc, task::Context, time::Duration};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

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
            let (idle, every) = (Arc::downgrade(self), self.longest);
            runtime.spawn(async move {
                loop {
                    sleep(every).await;
                    match idle.upgrade() {
                        Some(idle) if idle.sweep() => {}
                        _ => return,
                    }
                }
            });
        }
    }

    /// Closes those that are too old. Whether there are others.
    fn sweep(&self) -> bool {
        let mut inner = self.inner.lock();
        while inner.waiting.front().is_some_and(|(_, since)| since.elapsed() >= self.longest) {
            inner.waiting.pop_front();
        }
        inner.swept = !inner.waiting.is_empty();
        inner.swept
    }

    pub(super) fn clear(&self) {
        self.inner.lock().waiting.clear();
    }
}
