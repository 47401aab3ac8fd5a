//! Messages between hosts over pub/sub, on a connection of its own, which is pinged every second.

use super::Inner;
use crate::error::LinkError;
use futures_util::StreamExt as _;
use std::{sync::Arc, time::Duration};
use tokio::time::{interval, sleep, timeout};

/// Between two pings, and the time limit of one.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts to subscribe.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// An event of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// The subscription begins now. Earlier messages were missed, so the receiver must read the state again.
    Joined,
    /// A message as a host published it. Its first word is its kind.
    Message(Arc<str>),
}

/// Subscribes, and subscribes again when the connection is silent or ends.
pub(super) async fn listen(inner: &Inner) {
    loop {
        let error = receive(inner).await;
        tracing::debug!(%error, "the subscription to shared state ended");
        sleep(RETRY_INTERVAL).await;
    }
}

async fn receive(inner: &Inner) -> LinkError {
    let joining = async {
        let mut subscription = inner.client.subscribe().await?;
        subscription.subscribe(inner.keys.channel()).await?;
        Ok(subscription.split())
    };
    let (mut sink, mut messages) = match timeout(PING_INTERVAL, joining).await {
        Ok(Ok(split)) => split,
        Ok(Err(error)) => return LinkError::of(error),
        Err(_) => return LinkError::TimedOut(PING_INTERVAL),
    };
    inner.push(Pushed::Joined);
    let mut ticks = interval(PING_INTERVAL);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                // Triage publishes only UTF-8.
                Some(message) => if let Ok(text) = std::str::from_utf8(message.get_payload_bytes()) {
                    inner.push(Pushed::Message(text.into()));
                },
                None => return LinkError::Down,
            },
            _ = ticks.tick() => match timeout(PING_INTERVAL, sink.ping::<redis::Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return LinkError::of(error),
                Err(_) => return LinkError::TimedOut(PING_INTERVAL),
            },
        }
    }
}
