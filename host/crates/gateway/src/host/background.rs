//! The work that a server does beside its requests. Each loop belongs on one worker; a program that uses the host as a library runs it on a
//! task of its own.

use super::Host;
use std::time::Duration;

/// How often expired records and recordings are purged. Records are kept for a day, so this is often enough.
const PURGE_INTERVAL: Duration = Duration::from_mins(5);

/// How often the process's memory is measured. In between, the host adds the bytes of bodies to the last measurement.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

impl Host {
    /// Measures the process's memory periodically, for [`settings::Server::memory_limit`](crate::config::settings::Server). Never ends.
    pub async fn watch_memory(&self) {
        loop {
            self.shared.memory.measure();
            tokio::time::sleep(MEMORY_INTERVAL).await;
        }
    }

    /// Purges expired records and recordings every few minutes, so that memory stays bounded without traffic. Never ends.
    pub async fn purge_expired(&self) {
        loop {
            tokio::time::sleep(PURGE_INTERVAL).await;
            self.shared.records.purge_expired();
            for upstream in &self.shared.rollout.upstreams {
                upstream.recorder.purge_expired(self.shared.clock.now());
            }
        }
    }

    /// Sends traces to the collector. Never ends if a collector is configured, else returns at once.
    pub async fn export_traces(&self) {
        if let Some(exporter) = &self.shared.exporter {
            exporter.run().await;
        }
    }

    /// Sends the traces that are still buffered.
    pub async fn export_rest(&self) {
        if let Some(exporter) = &self.shared.exporter {
            exporter.finish().await;
        }
    }

    /// Waits for requests that still run without their callers. Start no more requests: the tracker is closed.
    pub async fn drained(&self) {
        self.shared.detached.close();
        self.shared.detached.wait().await;
        // Releases by these requests may still be on their way to the store.
        self.shared.records.flushed().await;
        self.shared.rollout.parts.gates.flushed().await;
    }
}
