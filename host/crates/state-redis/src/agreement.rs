//! The agreement of a fleet on the policy of an upstream, in Redis: one script, which implements the transitions of
//! [`crate::rollout`].

use super::{LinkError, RedisConnection, Script, Value, reply};
use crate::rollout::{
    Aborted, FleetState, FleetStatus, Host, HostStatus, Message, MessageOutcome, MessageReply, Proposed, is_name,
};
use std::time::Duration;

static AGREEMENT: Script = Script::new("agreement", include_str!("agreement/agreement.lua"));

/// Longest wait for a reply, unless `state.timeout` is longer. No request waits for it.
const REPLY_TIMEOUT: Duration = Duration::from_millis(500);

/// The agreement on the policy of one upstream.
#[derive(Debug, Clone)]
pub struct RedisAgreement {
    link: RedisConnection,
    upstream: String,
}

impl RedisAgreement {
    /// The agreement for the upstream of this name.
    pub fn new(link: RedisConnection, upstream: &str) -> Self {
        Self { link, upstream: upstream.to_owned() }
    }

    /// The connection to Redis.
    pub fn link(&self) -> &RedisConnection {
        &self.link
    }

    /// The pub/sub message after a change. It carries no state: the receiver reads the agreement.
    pub fn message(&self) -> String {
        format!("policy {}", self.upstream)
    }

    /// Sends a message to the agreement. `known`: the fleet's state as this host knows it, written back where Redis has lost it.
    ///
    /// # Errors
    /// [`LinkError`] where Redis cannot be reached or replies with something else.
    pub async fn send(
        &self,
        host_status: &HostStatus,
        known: &FleetState,
        message: &Message,
    ) -> Result<MessageReply, LinkError> {
        self.send_within(REPLY_TIMEOUT.max(self.link.timeout()), host_status, known, message).await
    }

    /// As [`RedisAgreement::send`], with another time limit.
    ///
    /// # Errors
    /// [`LinkError`] where Redis cannot be reached or replies with something else.
    pub async fn send_within(
        &self,
        longest: Duration,
        host_status: &HostStatus,
        known: &FleetState,
        message: &Message,
    ) -> Result<MessageReply, LinkError> {
        let (keys, arguments) = (self.keys(), self.arguments(host_status, known, message));
        let answer = self.link.run_within(longest, &AGREEMENT, &keys, &arguments).await?;
        read(&answer).ok_or(LinkError::Nonsense { script: AGREEMENT.name() })
    }

    fn keys(&self) -> [String; 2] {
        let tag = format!("policy-{}", self.upstream);
        [self.link.keys().tagged(&tag, "agreement"), self.link.keys().tagged(&tag, "hosts")]
    }

    fn arguments(&self, host_status: &HostStatus, known: &FleetState, message: &Message) -> Vec<String> {
        arguments(None, &self.link.keys().channel(), &self.upstream, host_status, known, message)
    }
}

/// `now`: set in tests only; otherwise the script reads the server's clock.
fn arguments(
    now: Option<u64>,
    channel: &str,
    upstream: &str,
    host_status: &HostStatus,
    known: &FleetState,
    message: &Message,
) -> Vec<String> {
    let HostStatus { host, generation, staged } = host_status;
    let mut all = vec![
        now.map_or_else(String::new, |now| now.to_string()),
        channel.to_owned(),
        upstream.to_owned(),
        host.clone(),
        generation.to_string(),
        staged.map_or_else(String::new, id),
    ];
    all.extend(known.words());
    match message {
        Message::Heartbeat => all.push("beat".to_owned()),
        Message::Announce { id: own, digest, promoted, from, others } => {
            let promoted = u8::from(*promoted).to_string();
            all.extend(["announce".to_owned(), id(*own), digest.to_string(), promoted, from.to_string()]);
            all.push(others.join(" "));
        }
        Message::Refuse { id: own, step, reason } => {
            let reason = reason.chars().take(MAX_REASON_CHARS).collect();
            all.extend(["refuse".to_owned(), id(*own), (*step).to_owned(), reason]);
        }
        Message::RollBack { generation, chosen, why: own } => {
            all.extend(["back".to_owned(), generation.to_string(), chosen.word(), own.word().to_owned()]);
        }
    }
    all
}

/// Bounds a reason that is passed on, because a component influences its wording.
const MAX_REASON_CHARS: usize = 500;

fn id(id: u64) -> String {
    format!("{id:016x}")
}

/// Parses a reply; `None` if another program wrote it.
fn read(answer: &Value) -> Option<MessageReply> {
    let (fixed, hosts) = reply::list(answer)?.split_at_checked(19)?;
    let word = |index: usize| fixed.get(index).and_then(reply::text);
    // Text of another host. Invalid UTF-8 in it must not make the whole reply unreadable.
    let text = |index: usize, most: usize| {
        let bytes = fixed.get(index).and_then(reply::bytes)?;
        Some(line(&String::from_utf8_lossy(bytes), most))
    };
    let outcome = match word(0)? {
        "done" => MessageOutcome::Done,
        "serving" => MessageOutcome::Serving,
        "quarantined" => MessageOutcome::Quarantined,
        "busy" => MessageOutcome::Busy,
        "gathering" => MessageOutcome::Gathering,
        "aborted" => MessageOutcome::Aborted,
        "no-other" => MessageOutcome::NoOther,
        "stale" => MessageOutcome::Stale,
        _ => return None,
    };
    let words: Vec<&str> = (2..9).map(word).collect::<Option<_>>()?;
    let state = FleetState::read(&words)?;
    let proposed = match word(9)? {
        "" => None,
        own => Some(Proposed {
            id: read_id(own)?,
            digest: word(10)?.parse().ok()?,
            by: name(word(11)?)?,
            promoted: word(12)? == "1",
            left: Duration::from_micros(word(13)?.parse().ok()?),
        }),
    };
    let aborted = match word(14)? {
        "" => None,
        own => Some(Aborted {
            id: read_id(own)?,
            digest: word(15)?.parse().ok()?,
            by: name(word(16)?)?,
            step: text(17, 20)?,
            reason: text(18, MAX_REASON_CHARS)?,
        }),
    };
    let hosts = hosts.chunks(4).map(|own| match own {
        [name, silent, generation, staged] => Some(Host {
            name: self::name(reply::text(name)?)?,
            silent: Duration::from_micros(reply::count(silent)?),
            generation: reply::count(generation)?,
            staged: match reply::text(staged)? {
                "" => None,
                own => Some(read_id(own)?),
            },
        }),
        _ => None,
    });
    let hosts = hosts.collect::<Option<_>>()?;
    let view = FleetStatus { state, proposed, aborted, hosts };
    Some(MessageReply { outcome, flawed: word(1)? == "1", view })
}

fn read_id(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

fn name(word: &str) -> Option<String> {
    is_name(word).then(|| word.to_owned())
}

/// Makes another host's text one line that is safe in logs and terminals: no control characters.
fn line(words: &str, most: usize) -> String {
    words.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
