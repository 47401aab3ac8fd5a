//! The server's own rate limit: fixed windows that open with the first request. Pure.

use super::call::Call;
use std::{collections::HashMap, net::IpAddr, time::Duration};
use tokio::time::Instant;

/// Client addresses remembered at once; windows that are over go first.
const MAX_CLIENTS: usize = 4_096;

/// How often each client made each call in the window that is open for it.
#[derive(Debug)]
pub struct Windows {
    length: Duration,
    open: HashMap<(Call, IpAddr), (Instant, u32)>,
}

impl Windows {
    /// Windows of this length; the server's are one minute.
    pub fn new(length: Duration) -> Self {
        Self { length, open: HashMap::new() }
    }

    /// Counts one call and says whether the limit admits it. Refused calls count too: a client that hammers gains nothing,
    /// and loses nothing, since the window's end is fixed.
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
