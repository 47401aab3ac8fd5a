//! Detects a loss of records before a record is begun.
//!
//! An *era* is the time between two detected losses. The server's identity holds its id, and each host reads that once a second. In
//! between, a host would take a lost key for a new one. So each part of the records has a marker in its own Cluster hash slot: era,
//! process and evictions. `begin.lua` requires that the marker is what this host expects and what the running process has. Otherwise
//! it returns `strange`; the host then checks the server's identity, and writes the markers again:
//!
//! ```text
//! no marker, never set in this era      a part that was never used: nothing lost
//! no marker, set in this era            flushed or evicted: the era ends
//! marker of another era or process      the server's identity has recorded the loss
//! ```

use super::{
    Inner, nonsense,
    scripts::{self, Era, PARTS, ScriptReply},
    unavailable,
};
use crate::idempotency::RecordError;
use futures_util::future::join_all;

impl Inner {
    /// Finds out why a part's marker is not the expected one, and writes every part's marker. Losses are known afterwards.
    pub(super) async fn recognise(&self) -> Result<(), RecordError> {
        let era = self.link.recognise(self.call_timeout()).await.map_err(unavailable)?;
        let marked = join_all((0..PARTS).map(|part| self.mark(part, &era))).await;
        if !marked.into_iter().collect::<Result<Vec<_>, _>>()?.contains(&false) {
            return Ok(());
        }
        let next = format!("{:016x}", self.entropy.next());
        self.run(&scripts::era(self.keys(), 0, &era, Era::Lose(&next))).await?;
        self.link.recognise(self.call_timeout()).await.map(drop).map_err(unavailable)
    }

    /// Writes a part's marker. False: the part had a marker in this era, and has lost it.
    async fn mark(&self, part: u8, era: &str) -> Result<bool, RecordError> {
        let of_era = async |what| {
            let value = self.run(&scripts::era(self.keys(), part, era, what)).await?;
            ScriptReply::of(&value).map(|answer| answer.word.to_owned()).ok_or_else(|| nonsense("era"))
        };
        let marked = match of_era(Era::Ask).await?.as_str() {
            "marked" => true,
            "unmarked" => false,
            // Another era began meanwhile: the next script call detects it.
            _ => return Ok(true),
        };
        let value = self.run(&scripts::mark(self.keys(), part, era, marked)).await?;
        match ScriptReply::of(&value).map(|answer| answer.word) {
            Some("same") if marked => Ok(true),
            Some("same" | "marked") => of_era(Era::Note).await.map(|_| true),
            Some("lost") => Ok(false),
            _ => Err(nonsense("mark")),
        }
    }
}
