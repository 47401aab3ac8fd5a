//! File descriptors: each connection takes one, and most systems give a process 1,024 unless it asks for more.

use crate::config::settings::Settings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a host needs beside connections: listeners, files, the state's connections, the engine's.
const OTHER_DESCRIPTORS: u64 = 128;

/// Asks for as many as the process may have, and tells how many are missing at the most that the settings admit; none: none are.
pub fn raise(settings: &Settings) -> Option<Missing> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // Where it is refused, what there is counts.
    let current = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    missing(current, settings.server.max_connections, settings.server.max_requests)
}

/// Fewer descriptors than the settings may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// The descriptors that there are.
    pub limit: u64,
    /// Those that connections and requests may need at once.
    pub needed: u64,
}

/// `limit`: none is no limit. A connection takes a descriptor, and so does a request at its upstream.
fn missing(limit: Option<u64>, connections: usize, requests: usize) -> Option<Missing> {
    let needed = (connections as u64).saturating_add(requests as u64).saturating_add(OTHER_DESCRIPTORS);
    limit.filter(|limit| *limit < needed).map(|limit| Missing { limit, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        assert_eq!(missing(Some(1024), 10_000, 10_000), Some(Missing { limit: 1024, needed: 20_128 }));
        assert_eq!(missing(Some(20_128), 10_000, 10_000), None);
        assert_eq!(missing(None, 10_000, 10_000), None);
    }
}
