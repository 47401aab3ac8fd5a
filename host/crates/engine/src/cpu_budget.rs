//! Limits the time of a call: processor time of its thread, not wall-clock time.
//!
//! Epochs follow the wall clock. On a shared machine a thread may lose the processor for longer than a policy may run, which is not the
//! guest's fault. So at each epoch deadline the thread's processor time decides.

use crate::clock;
use std::time::Duration;

/// The most extensions of a deadline for a thread that gets no processor time. After that, a longer wait would help no request.
const MAX_EXTENSIONS: u32 = 32;

/// The processor time of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuBudget {
    cap: Duration,
    /// The thread's processor time at the first deadline of the call.
    noted: Option<Duration>,
    moves: u32,
}

/// The first deadline, in epochs. Nearly every call has returned by then, without reading a clock.
pub(super) const FIRST_EPOCHS: u64 = 1;

impl CpuBudget {
    pub(super) fn new(cap_ms: u64) -> Self {
        Self { cap: Duration::from_millis(cap_ms), noted: None, moves: 0 }
    }

    /// Decides at a deadline: continue for this many epochs, or (none) stop the call.
    pub(super) fn at_deadline(&mut self, thread_time: Duration) -> Option<u64> {
        let Some(noted) = self.noted else {
            self.noted = Some(thread_time);
            return Some(clock::millis(self.cap).max(1));
        };
        let left = self.cap.checked_sub(thread_time.saturating_sub(noted)).filter(|left| !left.is_zero())?;
        self.moves += 1;
        (self.moves <= MAX_EXTENSIONS).then(|| clock::millis(left).max(1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_call_that_computes_ends_at_its_cap() {
        let mut watch = CpuBudget::new(5);
        assert_eq!(watch.at_deadline(ms(100)), Some(5));
        assert_eq!(watch.at_deadline(ms(105)), None);
    }

    #[test]
    fn a_thread_off_the_processor_gets_what_it_did_not_have() {
        let mut watch = CpuBudget::new(5);
        watch.at_deadline(ms(100));
        assert_eq!(watch.at_deadline(ms(102)), Some(3));
        assert_eq!(watch.at_deadline(ms(105)), None);
    }

    #[test]
    fn deadlines_move_a_bounded_number_of_times() {
        let mut watch = CpuBudget::new(5);
        let moved = std::iter::from_fn(|| watch.at_deadline(ms(1))).take(1000).count();
        assert_eq!(moved, 33);
    }
}
