//! The server's own rate limit: fixed windows that begin with the first request. Pure.

use super::call::Call;
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

/// Maximum client addresses to remember. Expired windows are removed first.
const MAX_CLIENTS: usize = 4_096;

/// The number of each client's calls in its current window.
#[derive(Debug)]
pub struct Windows {
    length: Duration,
    open: HashMap<(Call, IpAddr), (Instant, u32)>,
}

impl Windows {
    /// Creates windows of this length; the server's are one minute.
    pub fn new(length: Duration) -> Self {
        Self { length, open: HashMap::new() }
    }

    /// Counts a call and returns whether the limit admits it. Refused calls count too, but that does not matter to the client, since the
    /// window's end is fixed.
    pub fn admit(&mut self, call: Call, client: IpAddr, now: Instant) -> bool {
        if self.open.len() >= MAX_CLIENTS {
            let length = self.length;
            self.open.retain(|_, (opened, _)| now.duration_since(*opened) < length);
        }
        let (opened, count) = self.open.entry((call, client)).or_insert((now, 0));
        if now.duration_since(*opened) >= self.length {
            (*opened, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= call.limit()
    }
}
