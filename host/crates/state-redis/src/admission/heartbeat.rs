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
const MAX_CONCURRENT_HEARTBEATS: usize = 16;

/// Sends heartbeats and receives messages, as long as the gates exist.
pub(super) async fn listen(gates: Weak<RedisGates>, mut pushed: Receiver<Pushed>) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let received = tokio::select! {
            _ = ticks.tick() => None,
            received = pushed.recv() => Some(received),
        };
        let Some(gates) = gates.upgrade() else { return };
        match received {
            Some(Ok(Pushed::Message(message))) => gates.receive(&message),
            Some(Err(RecvError::Closed)) => return,
            // Messages may have been missed: read the state again.
            None | Some(Ok(Pushed::Joined) | Err(RecvError::Lagged(_))) => {
                if !gates.send_heartbeat().await {
                    ticks.reset_after(RETRY_INTERVAL);
                }
            }
        }
    }
}

impl RedisGates {
    /// Sends the heartbeats of all groups. True: all succeeded.
    async fn send_heartbeat(&self) -> bool {
        let groups: Vec<_> = self.groups.lock().values().cloned().collect();
        let ticks = stream::iter(groups).map(|gate| async move { gate.send_heartbeat().await });
        // No early return: a failed group must not keep the others from theirs.
        ticks.buffer_unordered(MAX_CONCURRENT_HEARTBEATS).fold(true, |all, arrived| async move { all && arrived }).await
    }

    fn receive(&self, message: &str) {
        let find = |name: &str| self.groups.lock().get(name).cloned();
        if let Some((name, shared)) = SharedBreakerState::parse(message) {
            if let Some(gate) = find(name) {
                gate.observe(shared, false);
            }
        } else if let Some((name, pause)) = shared_breaker::parse_pause(message)
            && let Some(gate) = find(name)
        {
            gate.alone.pause(pause);
        } else if let Some((name, mark)) = shared_breaker::parse_lift(message)
            && let Some(gate) = find(name)
        {
            gate.note_lift(mark);
        }
    }
}

impl RedisGate {
    async fn send_heartbeat(&self) -> bool {
        let (keys, arguments) = {
            let mut known = self.known.lock();
            let saved_up = known.take_saved_up();
            self.arguments(&known, self.clock.now(), scripts::heartbeat(&saved_up))
        };
        let Ok(answer) = self.link.run(&scripts::HEARTBEAT, &keys, &arguments).await else { return false };
        let Some((_, heartbeat)) = self.read(&scripts::HEARTBEAT, &answer, scripts::heartbeat_reply) else {
            return false;
        };
        let mut known = self.known.lock();
        let (ends, counts) = known.read_lift(heartbeat.lifted);
        if ends {
            self.alone.lift();
        }
        if counts && !heartbeat.pause.is_zero() {
            self.alone.pause(heartbeat.pause);
        }
        known.heartbeat = Some((heartbeat, self.clock.now()));
        let share = known.share();
        drop(known);
        self.alone.adopt(share);
        true
    }

    /// Reports the successes saved up, in the background.
    pub(super) fn report_saved_up(self: &Arc<Self>) {
        let saved_up = self.known.lock().take_saved_up();
        if saved_up.successes > 0 || saved_up.firsts > 0 {
            self.later(&scripts::REPORT, scripts::report(&saved_up, None, false));
        }
    }
}
