//! The WASI of a guest: all functions exist, but they give access to nothing.
//!
//! A guest gets no files, sockets, host names, environment or arguments. Its clock stands still and its random numbers are always the same,
//! because decisions must be replayable: `attempt.now-unix-ms` and `attempt.random` hold the real values. Its output goes to the log, at a
//! limited rate.

use super::{convert, store_data::StoreData};
use crate::clock::{Clock, Timestamp};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::SeedableRng as _;
use std::{sync::Arc, time::Duration};
use tokio::io::AsyncWrite;
use wasmtime::{
    Engine, Result,
    component::{Linker, ResourceTable},
};
use wasmtime_wasi::{
    HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

/// The burst that one component may print to the log, in bytes.
const LOG_BURST_BYTES: u64 = 16 << 10;
/// The rate at which a component may print beyond the burst.
const LOG_BYTES_PER_SECOND: u64 = 1 << 10;
/// The maximum length of a log line; the rest is cut.
const MAX_LINE_BYTES: usize = 1 << 10;

/// The maximum number of handles that an instance may have open.
const MAX_HANDLES: usize = 256;
/// The most random bytes that a guest may request in one call; a call for more traps. The host cannot stop a call into WASI at the guest's
/// time limit, so one call must be short.
const MAX_RANDOM_BYTES: u64 = 4 << 10;
/// The most bytes that a guest may write in one call.
const MAX_WRITE_BYTES: usize = 4 << 10;

/// The WASI state of one instance.
pub(super) struct Wasi {
    context: WasiCtx,
    table: ResourceTable,
}

impl Wasi {
    /// Builds a WASI state that gives access to the log only.
    pub(super) fn empty(log: &Arc<LogBudget>) -> Self {
        let mut builder = WasiCtxBuilder::new();
        builder
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .wall_clock(Still)
            .monotonic_clock(Still)
            .secure_random(rand::rngs::SmallRng::seed_from_u64(0))
            .insecure_random(rand::rngs::SmallRng::seed_from_u64(0))
            .insecure_random_seed(0)
            .max_random_size(MAX_RANDOM_BYTES)
            .stdout(Log::new(log))
            .stderr(Log::new(log));
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        Self { context: builder.build(), table }
    }
}

impl WasiView for StoreData<Wasi> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

/// The linker of `Tier::Wasi`.
pub(super) fn linker(engine: &Engine) -> Result<Linker<StoreData<Wasi>>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// A clock that stands still.
struct Still;

impl HostWallClock for Still {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Still {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}

/// The remaining log budget of a component, shared by its instances.
#[derive(Debug)]
pub(super) struct LogBudget {
    policy: String,
    clock: Clock,
    left: Mutex<Left>,
}

#[derive(Debug, Clone, Copy)]
struct Left {
    bytes: u64,
    dropped: u64,
    at: Timestamp,
}

impl Left {
    /// Takes `bytes` from the budget. Returns the number of bytes dropped since the last success. None: the budget is too small, and
    /// `bytes` are dropped.
    fn take(&mut self, bytes: u64, now: Timestamp) -> Option<u64> {
        let earned = now.since(self.at).as_secs().saturating_mul(LOG_BYTES_PER_SECOND);
        if earned > 0 {
            self.bytes = self.bytes.saturating_add(earned).min(LOG_BURST_BYTES);
            self.at = now;
        }
        match self.bytes.checked_sub(bytes) {
            Some(left) => {
                self.bytes = left;
                Some(std::mem::take(&mut self.dropped))
            }
            None => {
                self.dropped = self.dropped.saturating_add(bytes);
                None
            }
        }
    }
}

impl LogBudget {
    /// A full budget for the component of the digest `policy`.
    pub(super) fn new(policy: String) -> Self {
        let clock = Clock::system();
        let left = Left { bytes: LOG_BURST_BYTES, dropped: 0, at: clock.now() };
        Self { policy, clock, left: Mutex::new(left) }
    }

    fn print(&self, line: &[u8]) {
        let line = convert::short(String::from_utf8_lossy(line).trim_end(), MAX_LINE_BYTES);
        if line.is_empty() {
            return;
        }
        let taken = self.left.lock().take(line.len() as u64, self.clock.now());
        match taken {
            Some(0) => tracing::info!(target: "triage::guest", policy = %self.policy, "{line}"),
            Some(dropped) => {
                tracing::info!(target: "triage::guest", policy = %self.policy, dropped_bytes = dropped, "{line}");
            }
            None => {}
        }
    }
}

/// An output stream of an instance. It logs each line at its end, and an unfinished line when the instance is dropped.
struct Log(Arc<Mutex<LogLine>>);

struct LogLine {
    budget: Arc<LogBudget>,
    bytes: Vec<u8>,
}

impl Log {
    fn new(budget: &Arc<LogBudget>) -> Self {
        Self(Arc::new(Mutex::new(LogLine { budget: Arc::clone(budget), bytes: Vec::new() })))
    }
}

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Only WASI 0.3 calls this function, and it is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

impl OutputStream for Log {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE_BYTES)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Log {
    async fn ready(&mut self) {}
}

impl LogLine {
    fn write(&mut self, written: &[u8]) {
        for part in written.split_inclusive(|byte| *byte == b'\n') {
            let remaining = MAX_LINE_BYTES.saturating_sub(self.bytes.len());
            self.bytes.extend_from_slice(part.get(..remaining).unwrap_or(part));
            if part.ends_with(b"\n") {
                self.budget.print(&std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        self.budget.print(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{self, Write};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log's content after these writes.
    fn logged(writes: &[&[u8]]) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let log =
            tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            let mut stream = Log::new(&Arc::new(LogBudget::new("abc".to_owned()))).p2_stream();
            for written in writes {
                stream.write(Bytes::copy_from_slice(written)).unwrap();
            }
        });
        let text = captured.0.lock().clone();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_output_of_a_guest_is_logged_by_lines() {
        let line = |text: &str| format!(" INFO triage::guest: {text} policy=abc\n");
        assert_eq!(logged(&[b"one\ntw", b"o\n\nthree"]), [line("one"), line("two"), line("three")].concat());
        assert_eq!(logged(&[b"\x1b[2J\xff\r\n"]), line(" [2J\u{fffd}"), "no control characters, no broken text");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_is_worth_reading() {
        let long = vec![b'x'; 100_000];
        let logged = logged(&[&long, b"\n", &b"more\n".repeat(100_000)]);
        assert!((16_000..400_000).contains(&logged.len()), "{}", logged.len());
        assert_eq!(logged.matches('x').count(), MAX_LINE_BYTES, "a long line is cut");
    }

    #[test]
    fn the_budget_comes_back_with_time_and_tells_what_was_dropped() {
        let at = |seconds: u64| Timestamp(seconds * 1_000_000);
        let mut left = Left { bytes: LOG_BURST_BYTES, dropped: 0, at: at(0) };
        assert_eq!(left.take(LOG_BURST_BYTES, at(0)), Some(0));
        assert_eq!(left.take(10, at(0)), None);
        assert_eq!(left.take(10, at(0)), None);
        assert_eq!(left.take(LOG_BYTES_PER_SECOND, at(1)), Some(20), "a second later, with what was dropped");
        assert_eq!(left.take(1, at(1)), None);
        assert_eq!(left.take(LOG_BURST_BYTES + 1, at(1_000_000)), None, "it never exceeds itself");
    }
}
