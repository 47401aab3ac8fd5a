//! Once a second: this host says that it lives, hands in what it has saved up, and reads how each group stands. In between it
//! listens to the others.

use super::{
    RedisGate, RedisGates, scripts,
    shared_breaker::{self, SharedBreakerState},
};
use crate::store::redis::Pushed;
use futures_util::{StreamExt as _, stream};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{MissedTickBehavior, interval},
};

/// Between two beats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// To the next one after one that did not arrive.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Groups whose beats are under way at once.
const AT_ONCE: usize = 16;

/// Beats and listens until the gates are gone.
pub(super) async fn listen(gates: Weak<RedisGates>, mut pushed: Receiver<Pushed>) {
    let mut beats = interval(HEARTBEAT_INTERVAL);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let heard = tokio::select! {
            _ = beats.tick() => None,
            heard = pushed.recv() => Some(heard),
        };
        let Some(gates) = gates.upgrade() else { return };
        match heard {
            Some(Ok(Pushed::Message(message))) => gates.hear(&message),
            Some(Err(RecvError::Closed)) => return,
            // What was said meanwhile was not heard.
            None | Some(Ok(Pushed::Joined) | Err(RecvError::Lagged(_))) => {
                if !gates.beat().await {
                    beats.reset_after(RETRY_INTERVAL);
                }
            }
        }
    }
}

impl RedisGates {
    /// Whether every group's arrived.
    async fn beat(&self) -> bool {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        let beats = stream::iter(groups).map(|gate| async move { gate.beat().await });
        // To the end: one group's trouble is not the others'.
        beats.buffer_unordered(AT_ONCE).fold(true, |all, arrived| async move { all && arrived }).await
    }

    fn hear(&self, message: &str) {
        let find = |name: &str| self.groups.lock().get(name).cloned();
        if let Some((name, standing)) = SharedBreakerState::heard(message) {
            if let Some(gate) = find(name) {
                gate.observe(standing, false);
            }
        } else if let Some((name, pause)) = shared_breaker::pause_heard(message)
            && let Some(gate) = find(name)
        {
            gate.alone.pause(pause);
        } else if let Some((name, mark)) = shared_breaker::lift_heard(message)
            && let Some(gate) = find(name)
        {
            gate.told_of_lift(mark);
        }
    }
}

impl RedisGate {
    async fn beat(&self) -> bool {
        let (keys, arguments) = {
            let mut known = self.known.lock();
            let saved_up = known.take_saved_up();
            self.arguments(&known, self.clock.now(), scripts::beat(&saved_up))
        };
        let Ok(answer) = self.link.run(&scripts::HEARTBEAT, &keys, &arguments).await else { return false };
        let Some((_, beaten)) = self.read(&scripts::HEARTBEAT, &answer, scripts::beaten) else { return false };
        let mut known = self.known.lock();
        let (ends, counts) = known.read_lift(beaten.lifted);
        if ends {
            self.alone.lift();
        }
        if counts && !beaten.pause.is_zero() {
            self.alone.pause(beaten.pause);
        }
        known.beaten = Some((beaten, self.clock.now()));
        let share = known.share();
        drop(known);
        self.alone.adopt(share);
        true
    }

    /// Hands in what is saved up, without waiting.
    pub(super) fn hand_in(self: &Arc<Self>) {
        let saved_up = self.known.lock().take_saved_up();
        if saved_up.successes > 0 || saved_up.firsts > 0 {
            self.later(&scripts::REPORT, scripts::report(&saved_up, None, false));
        }
    }
}
