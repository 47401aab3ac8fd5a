//! This host's heartbeat: once a second it reports successes saved up, and reads the state of each group. In between it receives
//! messages of other hosts.

use super::{
    RedisGate, RedisGates, scripts,
    shared_breaker::{self, SharedBreakerState},
};
use crate::Pushed;
use futures_util::{StreamExt as _, stream};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{MissedTickBehavior, interval},
};

/// Between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Between a failed heartbeat and the next one.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Concurrent heartbeats.
const AT_ONCE: usize = 16;

/// Sends heartbeats and receives messages, as long as the gates exist.
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
            // Messages may have been missed: read the state again.
            None | Some(Ok(Pushed::Joined) | Err(RecvError::Lagged(_))) => {
                if !gates.beat().await {
                    beats.reset_after(RETRY_INTERVAL);
                }
            }
        }
    }
}

impl RedisGates {
    /// Sends the heartbeats of all groups. True: all succeeded.
    async fn beat(&self) -> bool {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        let beats = stream::iter(groups).map(|gate| async move { gate.beat().await });
        // No early return: a failed group must not keep the others from theirs.
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

    /// Reports the successes saved up, in the background.
    pub(super) fn hand_in(self: &Arc<Self>) {
        let saved_up = self.known.lock().take_saved_up();
        if saved_up.successes > 0 || saved_up.firsts > 0 {
            self.later(&scripts::REPORT, scripts::report(&saved_up, None, false));
        }
    }
}
