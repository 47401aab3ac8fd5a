//! Which server answers, and whether it has lost data: another process, a failover, an eviction, a flush.
//!
//! What is known lies on the server itself, so that hosts which start later know it too. A server that was emptied while no
//! host ran is not told from a new one.

use super::{
    client::Connection,
    connection::{Inner, LinkError},
    reply,
    script::Script,
};
use crate::clock::Timestamp;
use std::{fmt, time::Duration};

static SERVER_IDENTITY: Script = Script::new("server_identity", include_str!("server_identity.lua"));

/// Data that hosts had entrusted to the server may be gone since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// When it was lost at the latest, on this host's time line.
    pub at: Timestamp,
    /// How that is known.
    pub why: Loss,
}

/// How a loss of data shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// This host saw that the server is another process than before, or that keys were evicted or flushed.
    Seen,
    /// Another host, or one before, had seen it.
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

/// What one server says of itself.
#[derive(Debug, Default)]
struct About {
    run: String,
    loading: bool,
    replica: bool,
    /// The eviction policy, where memory is limited.
    evicts: Option<String>,
}

impl About {
    fn read(info: &str) -> Self {
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("", str::trim);
        let policy = field("maxmemory_policy");
        let limited = !matches!(field("maxmemory"), "" | "0");
        Self {
            // An eviction loses data as a restart does.
            run: format!("{}/{}", field("run_id"), field("evicted_keys")),
            loading: field("loading") == "1",
            replica: matches!(field("role"), "slave" | "replica"),
            evicts: (limited && policy != "noeviction").then(|| policy.to_owned()),
        }
    }
}

impl Inner {
    /// Asks the server who it is. A connection is used only after this.
    ///
    /// # Errors
    /// [`LinkError`] where it does not answer, is loading, or takes no writes.
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
            return Err(LinkError::NotServing("the server is a replica and takes no writes"));
        }
        self.alarm(masters.iter().find_map(|(_, about)| about.evicts.as_deref()));
        let known = self.known.lock().clone();
        let mut arguments = vec![format!("{:016x}", self.entropy.next()), known.clone().unwrap_or_default()];
        arguments.extend(masters.into_iter().flat_map(|(address, about)| [address.to_owned(), about.run]));
        let key = [self.keys.census()];
        let answer = match self.evaluate(connection, &SERVER_IDENTITY, &key, &arguments).await {
            // Full: what is there can still be read, and each step says for itself what it could not do.
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
            tracing::info!("an operator has said that shared state lost nothing that matters");
        }
        // Only now: who knows the era knows how it began.
        let is_new = self.known.lock().replace(id.clone()).as_ref() != Some(&id);
        if is_new {
            self.eras.send_modify(|eras| *eras += 1);
        }
        Ok(())
    }

    /// `in_new_era`: one loss begins one era, however soon it comes after another.
    fn note_loss(&self, ago: Duration, why: Loss, in_new_era: bool) {
        /// Two clocks and a round trip may differ so much about one and the same loss.
        const SAME: Duration = Duration::from_secs(2);
        let at = self.clock.now().before(ago);
        let news = self.lost.send_if_modified(|lost| {
            let known = lost.is_some_and(|lost| lost.at.after(SAME) >= at && (!in_new_era || lost.at >= at));
            if !known {
                *lost = Some(Lost { at, why });
            }
            !known
        });
        if news {
            tracing::warn!(
                ?ago,
                "shared state may have lost data: {why}; idempotency keys are looked up before they are sent anew"
            );
        }
    }

    /// Says once that data can be evicted, and once that it no longer can.
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
            None => tracing::info!("shared state evicts nothing any more"),
        }
        *alarmed = evicts.map(str::to_owned);
    }
}
