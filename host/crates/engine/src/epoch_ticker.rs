//! The thread that advances epochs: it ticks each millisecond while guests run, and sleeps otherwise.
//!
//! Most requests of most hosts need no guest. On such a host a thread that wakes a thousand times a second took 5 % of the processor time.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

/// The time between two epochs.
const TICK_INTERVAL: Duration = Duration::from_millis(1);
/// The thread sleeps after this many ticks without a call. A guest that is called more often never needs to wake it.
const IDLE_TICKS: u32 = 100;
/// A sleeping thread checks this often whether its engines have ended.
const ASLEEP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Counts the calls into guests. Its thread ends with the last clone of its `Arc`.
#[derive(Debug, Default)]
pub(super) struct Ticker {
    begun: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call into a guest. Epochs pass until it is dropped.
#[derive(Debug)]
pub(super) struct Running<'a>(&'a Ticker);

impl Ticker {
    /// Starts the thread, which calls `tick` each millisecond while there are calls.
    pub(super) fn start(tick: impl Fn() + Send + 'static) -> io::Result<Arc<Self>> {
        let ticker = Arc::new(Self::default());
        let weak = Arc::downgrade(&ticker);
        let spawned = thread::Builder::new().name("triage-epochs".to_owned()).spawn(move || {
            let (mut seen, mut idle) = (0, 0);
            while let Some(ticker) = weak.upgrade() {
                let begun = ticker.begun.load(SeqCst);
                let is_idle = begun == seen && begun == ticker.ended.load(SeqCst);
                (seen, idle) = (begun, if is_idle { idle + 1 } else { 0 });
                if idle < IDLE_TICKS {
                    drop(ticker);
                    thread::sleep(TICK_INTERVAL);
                    tick();
                    continue;
                }
                // Set `asleep` before `begun` is read again: then either a call that begins sees `asleep`, or this thread sees the call.
                ticker.asleep.store(true, SeqCst);
                if ticker.begun.load(SeqCst) == seen {
                    drop(ticker);
                    thread::park_timeout(ASLEEP_CHECK_INTERVAL);
                }
                if let Some(ticker) = weak.upgrade() {
                    ticker.asleep.store(false, SeqCst);
                }
            }
        })?;
        let _ = ticker.thread.set(spawned.thread().clone());
        Ok(ticker)
    }

    /// Counts a call as running, and wakes the thread if it sleeps.
    pub(super) fn runs(&self) -> Running<'_> {
        self.begun.fetch_add(1, SeqCst);
        if self.asleep.load(SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Running(self)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            if is_so() {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("not in ten seconds: {what}");
    }

    #[test]
    fn epochs_pass_while_guests_run_and_only_then() {
        let ticks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&ticks);
        let ticker = Ticker::start(move || {
            counted.fetch_add(1, SeqCst);
        })
        .unwrap();
        for round in 0..3 {
            until("it sleeps", || ticker.asleep.load(SeqCst));
            let before = ticks.load(SeqCst);
            let running = ticker.runs();
            // Far more ticks than the thread waits before it sleeps.
            until("epochs pass", || ticks.load(SeqCst) > before + u64::from(IDLE_TICKS) * 2);
            assert!(!ticker.asleep.load(SeqCst), "asleep beside a call, in round {round}");
            drop(running);
        }
        until("it sleeps", || ticker.asleep.load(SeqCst));
        let before = ticks.load(SeqCst);
        thread::sleep(Duration::from_millis(20));
        assert_eq!(ticks.load(SeqCst), before, "asleep");
    }

    #[test]
    fn the_thread_ends_with_its_engines() {
        let held = Arc::new(());
        let seen = Arc::clone(&held);
        let ticker = Ticker::start(move || drop(Arc::clone(&seen))).unwrap();
        drop(ticker.runs());
        drop(ticker);
        until("the thread ends", || Arc::strong_count(&held) == 1);
    }
}
