//! Unknown records: listed, taken for a verification, read and resolved.

use super::{
    Inner, nonsense,
    scripts::{self, PARTS, ScriptReply},
};
use crate::{
    Value,
    idempotency::{Intent, Postponed, RecordError, RecordId, Resolution, Resolved, Unsettled, record::RecordStatus},
    reply,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};

/// Records read concurrently when all unsettled ones are listed.
const MAX_CONCURRENT_READS: usize = 64;

/// Bytes of the names of upstream and endpoint together: the configuration allows 64 each, a policy's endpoint may be longer.
const MAX_NAME_BYTES: usize = 512;

/// Splits a record's name into upstream and endpoint.
pub(super) fn name_of(name: &str) -> Option<(String, String)> {
    let (upstream, endpoint) = name.split_once('/').filter(|_| name.len() <= MAX_NAME_BYTES)?;
    Some((upstream.to_owned(), endpoint.to_owned()))
}

impl Inner {
    pub(super) async fn take(&self, id: RecordId, lease: Duration) -> Result<Option<Arc<Intent>>, RecordError> {
        let value = self.run(&scripts::take(self.keys(), id, lease, self.lost_ago())).await?;
        let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("take"))?;
        match (answer.word, answer.bytes(), answer.text(1)) {
            ("later", ..) => Ok(None),
            ("taken", Some(sealed), Some(name)) => Ok(self.intent(id, name, sealed).map(Arc::new)),
            _ => Err(nonsense("take")),
        }
    }

    pub(super) async fn postpone(
        &self,
        id: RecordId,
        wait: Duration,
        longest_age: Duration,
    ) -> Result<Postponed, RecordError> {
        let value = self.run(&scripts::postpone(self.keys(), id, wait, longest_age, self.lost_ago())).await?;
        match ScriptReply::of(&value).map(|answer| answer.word) {
            Some("later") => Ok(Postponed::Later),
            Some("given-up") => Ok(Postponed::GivenUp),
            Some("not-unsettled") => Ok(Postponed::NotUnsettled),
            _ => Err(nonsense("postpone")),
        }
    }

    pub(super) async fn due(&self, limit: usize) -> Result<Vec<RecordId>, RecordError> {
        let lists = join_all((0..PARTS).map(|part| async move {
            let value = self.run(&scripts::due(self.keys(), part, limit)).await?;
            let items = reply::list(&value).ok_or_else(|| nonsense("due"))?;
            items.iter().map(record_id).collect::<Option<Vec<_>>>().ok_or_else(|| nonsense("due"))
        }));
        let lists: Vec<Vec<RecordId>> = lists.await.into_iter().collect::<Result<_, _>>()?;
        // The longest due of each part first, so that no part starves.
        let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
        let by_age = (0..longest).flat_map(|index| lists.iter().filter_map(move |list| list.get(index).copied()));
        Ok(by_age.take(limit).collect())
    }

    pub(super) async fn unsettled_one(&self, id: RecordId) -> Result<Option<Unsettled>, RecordError> {
        let value = self.run(&scripts::get(self.keys(), id, self.lost_ago())).await?;
        let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("get"))?;
        Ok(answer.duration().map(|sent_ago| Unsettled {
            id,
            sent_ago,
            endpoint: answer.text(1).and_then(name_of),
            verified_in: answer.duration_at(2),
        }))
    }

    pub(super) async fn unsettled(&self, limit: usize) -> Result<Vec<Unsettled>, RecordError> {
        let lists = join_all((0..PARTS).map(|part| async move {
            let value = self.run(&scripts::open(self.keys(), part, limit)).await?;
            ids(&value).ok_or_else(|| nonsense("open"))
        }));
        let mut open = Vec::new();
        for list in lists.await {
            open.extend(list?);
        }
        open.sort_unstable_by(|(left, id), (right, other)| left.total_cmp(right).then(id.cmp(other)));
        let mut found = Vec::new();
        for chunk in open.chunks(MAX_CONCURRENT_READS) {
            let reads = chunk.iter().map(|(_, id)| self.unsettled_one(*id));
            for read in join_all(reads).await {
                found.extend(read?);
            }
            if found.len() >= limit {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    pub(super) async fn status(&self, id: RecordId) -> Result<Option<RecordStatus>, RecordError> {
        let value = self.run(&scripts::status(self.keys(), id, self.lost_ago())).await?;
        let answer = ScriptReply::of(&value).ok_or_else(|| nonsense("status"))?;
        Ok(Some(match (answer.word, answer.duration()) {
            ("none", _) => return Ok(None),
            ("under-way", Some(for_now)) => RecordStatus::UnderWay { for_now, is_sent: answer.text(1) == Some("1") },
            ("unknown", Some(sent_ago)) => RecordStatus::Unknown { sent_ago },
            ("done", _) => {
                let sealed = answer.bytes().ok_or_else(|| nonsense("status"))?;
                RecordStatus::Done(Arc::new(self.kept(id, sealed)?))
            }
            _ => return Err(nonsense("status")),
        }))
    }

    pub(super) async fn resolve(&self, id: RecordId, resolution: Resolution) -> Result<Resolved, RecordError> {
        let sealed = match &resolution {
            Resolution::Applied(stored) => Some(self.seal(id, stored)?),
            Resolution::NotApplied => None,
        };
        let value = self.run(&scripts::resolve(self.keys(), id, sealed, self.lost_ago())).await?;
        match ScriptReply::of(&value).map(|answer| answer.word) {
            Some("done") => {
                self.ledger.forget(id);
                Ok(Resolved::Done)
            }
            Some("not-unsettled") => Ok(Resolved::NotUnsettled),
            _ => Err(nonsense("resolve")),
        }
    }
}

pub(super) fn record_id(value: &Value) -> Option<RecordId> {
    Some(RecordId::from_bytes(reply::bytes(value)?.try_into().ok()?))
}

/// Ids and scores of an index.
fn ids(value: &Value) -> Option<Vec<(f64, RecordId)>> {
    let items = reply::list(value)?;
    let pair = |pair: &[Value]| {
        let [id, expires] = pair else { return None };
        Some((reply::text(expires)?.parse().ok()?, record_id(id)?))
    };
    items.chunks(2).map(pair).collect()
}
