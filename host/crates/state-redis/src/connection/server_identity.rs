//! Detects another server, and lost data: another process, a failover, an eviction, a flush.
//!
//! The server itself stores its last known identity, so that hosts that start later know it too. A server that was emptied while
//! no host ran cannot be distinguished from a new one.

use super::Inner;
use crate::clock::Timestamp;
use crate::{client::Connection, error::LinkError, reply, script::Script};
use std::{fmt, time::Duration};

static SERVER_IDENTITY: Script = Script::new("server_identity", include_str!("server_identity.lua"));

/// A loss of data: anything that hosts wrote to the server before it may be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The latest time of the loss, by this host's clock.
    pub at: Timestamp,
    /// How this host learned of the loss.
    pub why: Loss,
}

/// How a host learned of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// This host detected it: another process than before, or keys evicted or flushed.
    Seen,
    /// Another host, or an earlier process, had detected it.
    Told,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seen => "the server was restarted, replaced, flushed, or evicted keys",
            Self::Told => "a host saw that the server was restarted, replaced, flushed, or evicted keys",
        })
    }
}

/// The fields of a server's INFO that matter here.
#[derive(Debug, Default)]
struct About {
    run: String,
    loading: bool,
    replica: bool,
    /// The eviction policy, if memory is limited and the policy is not `noeviction`.
    evicts: Option<String>,
}

impl About {
    fn read(info: &str) -> Self {
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim);
        let policy = field("maxmemory_policy");
        let limited = !matches!(field("maxmemory"), "" | "0");
        Self {
            // Part of the identity, because an eviction loses data like a restart.
            run: format!("{}/{}", field("run_id"), field("evicted_keys")),
            loading: field("loading") == "1",
            replica: matches!(field("role"), "slave" | "replica"),
            evicts: (limited && policy != "noeviction").then(|| policy.to_owned()),
        }
    }
}

impl Inner {
    /// Checks the server's identity. A connection is used only after this check.
    ///
    /// # Errors
    /// [`LinkError`] where the server does not reply, is loading, or is a replica.
    pub(super) async fn census(&self, connection: &mut Connection) -> Result<(), LinkError> {
        let answers = connection.ask_masters(redis::cmd("INFO")).await.map_err(LinkError::of)?;
        let mut masters = Vec::with_capacity(answers.len());
        for (address, answer) in &answers {
            masters.push((address.as_str(), About::read(reply::text(answer).unwrap_or_default())));
        }
        if masters.iter().any(|(_, about)| about.loading) {
            return Err(LinkError::NotServing("the server is loading its data"));
        }
        if masters.iter().any(|(_, about)| about.replica) {
            return Err(LinkError::NotServing("the server is a replica and accepts no writes"));
        }
        self.alarm(masters.iter().find_map(|(_, about)| about.evicts.as_deref()));
        let known = self.known.lock().clone();
        let mut arguments = vec![format!("{:016x}", self.entropy.next()), known.clone().unwrap_or_default()];
        arguments.extend(masters.into_iter().flat_map(|(address, about)| [address.to_owned(), about.run]));
        let key = [self.keys.census()];
        let answer = match self.evaluate(connection, &SERVER_IDENTITY, &key, &arguments).await {
            // Memory is full. Reads still work, and each script call reports its own failure.
            Err(LinkError::Refused(error)) if error.code() == Some("OOM") => return Ok(()),
            answer => answer?,
        };
        let read = |answer| {
            Some((reply::text(reply::list(answer)?.first()?)?.to_owned(), reply::whole(reply::list(answer)?.get(1)?)?))
        };
        let (id, lost_ms_ago) = read(&answer).ok_or(LinkError::Nonsense { script: SERVER_IDENTITY.name() })?;
        if let Ok(ago) = u64::try_from(lost_ms_ago) {
            let in_new_era = known.as_ref().is_some_and(|known| *known != id);
            self.note_loss(
                Duration::from_millis(ago),
                if known.is_some() { Loss::Seen } else { Loss::Told },
                in_new_era,
            );
        } else if self.lost.send_if_modified(|lost| lost.take().is_some()) {
            tracing::info!("an operator stated that shared state lost no relevant data");
        }
        // After `note_loss`: a reader that sees the new era must also see the loss that began it.
        let is_new = self.known.lock().replace(id.clone()).as_ref() != Some(&id);
        if is_new {
            self.eras.send_modify(|eras| *eras += 1);
        }
        Ok(())
    }

    /// `in_new_era`: each new era is a loss of its own, however soon after the last one.
    fn note_loss(&self, ago: Duration, why: Loss, in_new_era: bool) {
        /// Reports of the same loss may differ by two clocks and a round trip.
        const SAME_LOSS_WINDOW: Duration = Duration::from_secs(2);
        let at = self.clock.now().before(ago);
        let news = self.lost.send_if_modified(|lost| {
            let known =
                lost.is_some_and(|lost| lost.at.after(SAME_LOSS_WINDOW) >= at && (!in_new_era || lost.at >= at));
            if !known {
                *lost = Some(Lost { at, why });
            }
            !known
        });
        if news {
            tracing::warn!(
                ?ago,
                "shared state may have lost data: {why}; idempotency keys are verified before they are sent again"
            );
        }
    }

    /// Logs once that data may be evicted, and once that this is over.
    fn alarm(&self, evicts: Option<&str>) {
        let mut alarmed = self.alarmed.lock();
        if alarmed.as_deref() == evicts {
            return;
        }
        match evicts {
            Some(policy) => tracing::error!(
                policy,
                "shared state may evict idempotency records and open breakers when its memory is full; set maxmemory-policy to noeviction"
            ),
            None => tracing::info!("shared state no longer evicts data"),
        }
        *alarmed = evicts.map(str::to_owned);
    }
}
