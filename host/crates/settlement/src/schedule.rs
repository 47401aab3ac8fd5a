//! When to verify an unknown write again. Pure: `(age, whether the upstream was asked) -> wait`.

use std::time::Duration;

/// The longest wait between two verifications of one write, unless `settlement.interval` is longer. It bounds how late the end of an outage
/// is noticed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Absence is a proof after `commit-within`, not at its last instant.
const AFTER_COMMIT: Duration = Duration::from_millis(1);

/// How far after `commit-within` a write is verified at the latest. One response then settles all writes that were sent within this time,
/// instead of one response for each.
const COMMIT_SPREAD: Duration = Duration::from_secs(2);

/// The times of one write's verifications.
///
/// Before `commit-within`, each wait is as long as the write is old: a late commit is rare, and each verification uses up limits of the
/// endpoint that other writes may need. One verification is due shortly after `commit-within`, when absence becomes a proof. Later, a write
/// stays unknown only if the upstream cannot be asked: waits grow again from the shortest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How late the upstream may still apply the write.
    pub commit_within: Duration,
    /// How long verifications go on after `commit_within`.
    pub margin: Duration,
    /// The shortest wait.
    pub interval: Duration,
}

impl Schedule {
    /// The wait after a verification that settled nothing; none: the write stays unknown. `sent_ago`: the write's age. `asked`: whether the
    /// upstream was asked; if a limit was full, the wait does not grow.
    pub fn next(&self, sent_ago: Duration, asked: bool) -> Option<Duration> {
        let left =
            self.commit_within.saturating_add(self.margin).checked_sub(sent_ago).filter(|left| !left.is_zero())?;
        let interval = self.interval.max(AFTER_COMMIT);
        let before = self.commit_within.saturating_sub(sent_ago);
        let age = if before.is_zero() { sent_ago.saturating_sub(self.commit_within) / 4 } else { sent_ago };
        let wait = if asked { age.clamp(interval, MAX_WAIT.max(interval)) } else { interval };
        let wait = if before.is_zero() { wait } else { wait.min(before.saturating_add(interval.min(COMMIT_SPREAD))) };
        // The last verification is due just after the margin, so that no write is given up without one at its end.
        Some(wait.min(left.saturating_add(AFTER_COMMIT)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const USUAL: Schedule = Schedule { commit_within: seconds(75), margin: seconds(3600), interval: seconds(2) };

    #[test]
    fn waits_grow_with_the_age_until_absence_counts() {
        for (age, wait) in
            [(0, 2_000), (5, 5_000), (30, 30_000), (60, 17_000), (75, 2_000), (115, 10_000), (2_000, 60_000)]
        {
            assert_eq!(USUAL.next(seconds(age), true), Some(Duration::from_millis(wait)), "after {age} s");
        }
        assert_eq!(USUAL.next(seconds(40), false), Some(seconds(2)), "a full limit");
        assert_eq!(USUAL.next(seconds(3675), true), None);
    }

    proptest! {
        #[test]
        fn every_write_is_verified_when_absence_counts_and_given_up_once(
            commit_ms in 0..200_000_u64, margin_ms in 0..10_000_000_u64, interval_ms in 1..100_000_u64,
            first_ms in 0..400_000_u64, asked in prop::collection::vec(any::<bool>(), 1..8),
        ) {
            let ms = Duration::from_millis;
            let own = Schedule { commit_within: ms(commit_ms), margin: ms(margin_ms), interval: ms(interval_ms) };
            let (mut age, mut count, mut proofs) = (ms(first_ms), 0_usize, Vec::new());
            loop {
                if age >= own.commit_within {
                    proofs.push(age);
                }
                let Some(wait) = own.next(age, asked[count % asked.len()]) else { break };
                prop_assert!(wait >= AFTER_COMMIT, "a busy loop: {wait:?} at {age:?}");
                prop_assert!(wait <= MAX_WAIT.max(own.interval), "{wait:?} at {age:?}");
                age += wait;
                count += 1;
                prop_assert!(count < 20_000_000, "it never ends");
            }
            let first = *proofs.first().unwrap();
            prop_assert!(first <= own.commit_within.max(ms(first_ms)) + COMMIT_SPREAD, "{first:?}");
            prop_assert!(age >= own.commit_within + own.margin, "given up early: {age:?}");
            let end = (own.commit_within + own.margin).max(ms(first_ms)) + 2 * AFTER_COMMIT;
            prop_assert!(age <= end, "{age:?} after {end:?}");
        }
    }
}
