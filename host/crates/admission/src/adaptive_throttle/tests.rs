#![allow(clippy::unwrap_used)]
use super::*;
use crate::{config, rate_limit::adaptive::Settings};

const SECOND: Duration = Duration::from_secs(1);

/// A rate at its floor of one request a second.
fn slowed() -> Arc<Pace> {
    let clock = Clock::anchored(1_767_225_600_000);
    let settings = Settings { floor_per_minute: 60, rise_per_minute: 1 };
    let endpoint =
        config::settings::Endpoint { adaptive_rate: Some(settings), limits: Vec::new(), ..Default::default() };
    let pace = Pace::new("api/all", clock, Arc::new(Events::new(clock)), &endpoint.group_settings());
    let first = pace.ask(AttemptKind::First, Duration::ZERO, SECOND).unwrap();
    assert_eq!(first.answered(Class::Throttled), Some(60));
    pace
}

impl Pace {
    fn ask(self: &Arc<Self>, ask: AttemptKind, pause: Duration, max_wait: Duration) -> Result<Throttled, Refusal> {
        self.reserve(ask, || pause, max_wait).map(Option::unwrap)
    }

    /// The wait of the next attempt.
    fn next(self: &Arc<Self>, pause: Duration) -> Duration {
        self.ask(AttemptKind::First, pause, SECOND * 3600).unwrap().wait
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_waits_for_as_long_as_there_is_time() {
    let pace = slowed();
    let _line: Vec<_> = (0..8).map(|_| pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 30).unwrap()).collect();
    for (ask, waits) in [(AttemptKind::First, false), (AttemptKind::Retry, false), (AttemptKind::Probe, true)] {
        let wait = pace.ask(ask, Duration::ZERO, SECOND * 9).map(|paced| paced.wait);
        assert_eq!(wait.is_ok(), waits, "{ask:?}: {wait:?}");
    }
}

/// Only the gate knows of a pause that another host received. It delays reservations as this host's own pause does, once.
#[tokio::test(start_paused = true)]
async fn a_pause_that_others_heard_of_moves_the_line() {
    let (own, others) = (slowed(), slowed());
    for pace in [&own, &others] {
        for _ in 0..5 {
            pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 30).unwrap().is_sent = true;
        }
    }
    own.pause(SECOND * 20);
    for pace in [&own, &others] {
        assert_eq!([pace.next(SECOND * 20), pace.next(SECOND * 20)], [SECOND * 25; 2]);
    }
    tokio::time::advance(SECOND * 10).await;
    assert_eq!([own.next(SECOND * 10), others.next(SECOND * 10)], [SECOND * 15; 2], "it is the same pause");
    assert_eq!(others.next(SECOND * 12), SECOND * 17, "two more");
}

/// The gate reports no pause, so reservations move to where they would be without the rest of it.
#[tokio::test(start_paused = true)]
async fn a_lifted_pause_moves_the_line_back() {
    let pace = slowed();
    for _ in 0..5 {
        pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 30).unwrap().is_sent = true;
    }
    assert_eq!(pace.next(SECOND * 600), SECOND * 605);
    tokio::time::advance(SECOND * 10).await;
    assert_eq!([pace.next(Duration::ZERO), pace.next(Duration::ZERO)], [SECOND * 5; 2], "once");
}

/// A caller's own refusals (401, 404) and a failing upstream say nothing about the rate: one used-up window stays one decrease.
#[tokio::test(start_paused = true)]
async fn only_what_was_done_is_news() {
    let pace = slowed();
    let lowered = || pace.view().unwrap().decreases;
    let early = pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 30).unwrap();
    for (class, news) in [
        (Class::Rejected, false),
        (Class::NotApplied, false),
        (Class::Unknown, false),
        (Class::Applied, true),
        (Class::AlreadyApplied, true),
    ] {
        let before = lowered();
        let ask = || pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 3000).unwrap();
        ask().answered(class);
        ask().answered(Class::Throttled);
        assert_eq!(lowered() > before, news, "{class:?}");
    }
    let before = lowered();
    early.answered(Class::Applied);
    pace.ask(AttemptKind::First, Duration::ZERO, SECOND * 3000).unwrap().answered(Class::Throttled);
    assert_eq!(lowered(), before, "sent before the decrease");
}
