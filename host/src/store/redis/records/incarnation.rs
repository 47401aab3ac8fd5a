//! Whether the records are still those that hosts know of.
//!
//! What is known of the server lies in the census, which each host reads once a second: its *era* ends with each loss that somebody
//! notices. That would leave a second in which a key that was lost passes for new. So each part of the records has a mark beside it, in
//! its own Cluster slot: era, process and evictions. A record is begun only where the mark is what this host expects and the very
//! process that runs the step has; else the host looks again, and marks the parts anew:
//!
//! ```text
//! mark gone, never set in this era      a part that was never used: nothing lost
//! mark gone, set in this era            it was flushed, or evicted: the era ends
//! mark of another era or process        the loss that changed it stands in the census
//! ```

use super::{
    Inner, nonsense,
    scripts::{self, Era, PARTS, ScriptReply},
    unavailable,
};
use crate::idempotency::RecordError;
use futures_util::future::join_all;

impl Inner {
    /// Finds out why a part's mark is not this server's in this era, and marks every part. What was lost is known then.
    pub(super) async fn recognise(&self) -> Result<(), RecordError> {
        let era = self.link.recognise(self.patience()).await.map_err(unavailable)?;
        let marked = join_all((0..PARTS).map(|part| self.mark(part, &era))).await;
        if !marked.into_iter().collect::<Result<Vec<_>, _>>()?.contains(&false) {
            return Ok(());
        }
        let next = format!("{:016x}", self.entropy.next());
        self.run(&scripts::era(self.keys(), 0, &era, Era::Lose(&next))).await?;
        self.link.recognise(self.patience()).await.map(drop).map_err(unavailable)
    }

    /// Marks a part. False: it was marked in this era, and is no longer.
    async fn mark(&self, part: u8, era: &str) -> Result<bool, RecordError> {
        let of_era = async |what| {
            let value = self.run(&scripts::era(self.keys(), part, era, what)).await?;
            ScriptReply::of(&value).map(|answer| answer.word.to_owned()).ok_or_else(|| nonsense("era"))
        };
        let marked = match of_era(Era::Ask).await?.as_str() {
            "marked" => true,
            "unmarked" => false,
            // Another era began meanwhile: whoever asks next finds out.
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
