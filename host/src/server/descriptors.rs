//! File descriptors: each connection takes one, and most systems give a process 1,024 unless it asks for more.

use crate::config::settings::Settings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for other uses: listeners, files, connections to shared state, the engine.
const OTHER_DESCRIPTORS: u64 = 128;

/// Raises the limit to the hard limit. Returns the shortfall against the most that the settings allow; none if there are enough.
pub fn raise(settings: &Settings) -> Option<Missing> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // If the system refuses, the present limit counts.
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    missing(current, settings.server.max_connections, settings.server.max_requests)
}

/// A shortfall of file descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The process's limit.
    pub limit: u64,
    /// The descriptors that connections and requests may need at once.
    pub needed: u64,
}

/// `limit`: none means unlimited. A connection takes one descriptor, and a request takes one for its upstream connection.
fn missing(limit: Option<u64>, connections: usize, requests: usize) -> Option<Missing> {
    let needed = (connections as u64).saturating_add(requests as u64).saturating_add(OTHER_DESCRIPTORS);
    limit.filter(|limit| *limit < needed).map(|limit| Missing { limit, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_descriptors_are_computed_from_the_limit() {
        assert_eq!(missing(Some(1024), 10_000, 10_000), Some(Missing { limit: 1024, needed: 20_128 }));
        assert_eq!(missing(Some(20_128), 10_000, 10_000), None);
        assert_eq!(missing(None, 10_000, 10_000), None);
    }
}
