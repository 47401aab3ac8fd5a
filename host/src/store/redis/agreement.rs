//! What a fleet agrees on for an upstream's policy, in shared state: one script, whose transitions are those of
//! [`crate::rollout::fleet`].

use super::{Link, LinkError, Script, Value, reply};
use crate::{
    policy::Digest,
    rollout::fleet::{
        Aborted, Chosen, Host, Outcome, Proposed, Speaker, Standing, View, Why, Word, agreement::QUARANTINED,
    },
};
use std::time::Duration;

static AGREEMENT: Script = Script::new("agreement", include_str!("agreement/agreement.lua"));

/// How long a step may take unless `state.timeout` is longer: no request waits for it.
const PATIENCE: Duration = Duration::from_millis(500);

/// What came of a word, and how things stand then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// What came of it.
    pub outcome: Outcome,
    /// Whether something else than ours was found there, and thrown away.
    pub flawed: bool,
    /// How things stand.
    pub view: View,
}

/// The agreement of an upstream.
#[derive(Debug, Clone)]
pub struct RedisAgreement {
    link: Link,
    upstream: String,
}

impl RedisAgreement {
    /// Of the upstream of this name.
    pub fn new(link: Link, upstream: &str) -> Self {
        Self { link, upstream: upstream.to_owned() }
    }

    /// The way to it.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// What is published when it changes: a reason to look, and nothing more.
    pub fn message(&self) -> String {
        format!("policy {}", self.upstream)
    }

    /// Says something. `known` is how the fleet stands as far as this host knows: it is written back where it was lost.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn say(&self, speaker: &Speaker, known: &Standing, word: &Word) -> Result<Heard, LinkError> {
        self.say_within(PATIENCE.max(self.link.timeout()), speaker, known, word).await
    }

    /// The same within another time.
    ///
    /// # Errors
    /// [`LinkError`]
    pub async fn say_within(
        &self,
        longest: Duration,
        speaker: &Speaker,
        known: &Standing,
        word: &Word,
    ) -> Result<Heard, LinkError> {
        let (keys, arguments) = (self.keys(), self.arguments(speaker, known, word));
        let answer = self.link.run_within(longest, &AGREEMENT, &keys, &arguments).await?;
        read(&answer).ok_or(LinkError::Nonsense { script: AGREEMENT.name() })
    }

    fn keys(&self) -> [String; 2] {
        let tag = format!("policy-{}", self.upstream);
        [self.link.keys().tagged(&tag, "agreement"), self.link.keys().tagged(&tag, "hosts")]
    }

    fn arguments(&self, speaker: &Speaker, known: &Standing, word: &Word) -> Vec<String> {
        arguments(None, &self.link.keys().channel(), &self.upstream, speaker, known, word)
    }
}

/// `now`: only tests say when it is.
fn arguments(
    now: Option<u64>,
    channel: &str,
    upstream: &str,
    speaker: &Speaker,
    known: &Standing,
    word: &Word,
) -> Vec<String> {
    let Speaker { host, generation, staged } = speaker;
    let quarantined: Vec<String> = known.quarantined.iter().map(ToString::to_string).collect();
    let mut all = vec![
        now.map_or_else(String::new, |now| now.to_string()),
        channel.to_owned(),
        upstream.to_owned(),
        host.clone(),
        generation.to_string(),
        staged.map_or_else(String::new, id),
        known.generation.to_string(),
        chosen(known.chosen),
        known.before.map_or_else(|| "-".to_owned(), chosen),
        why(known.why).to_owned(),
        known.by.clone(),
        quarantined.join(" "),
    ];
    match word {
        Word::Beat => all.push("beat".to_owned()),
        Word::Announce { id: own, digest, promoted } => {
            all.extend(["announce".to_owned(), id(*own), digest.to_string(), u8::from(*promoted).to_string()]);
        }
        Word::Refuse { id: own, step, reason } => {
            let reason = reason.chars().take(REASON_CHARS).collect();
            all.extend(["refuse".to_owned(), id(*own), (*step).to_owned(), reason]);
        }
        Word::RollBack { generation, why: own } => {
            all.extend(["back".to_owned(), generation.to_string(), why(*own).to_owned()]);
        }
    }
    all
}

/// The length of a reason that is passed on: a component has a part in its wording.
const REASON_CHARS: usize = 500;

fn id(id: u64) -> String {
    format!("{id:016x}")
}

fn chosen(chosen: Chosen) -> String {
    match chosen {
        Chosen::Configured => String::new(),
        Chosen::Artifact(digest) => digest.to_string(),
    }
}

fn why(why: Why) -> &'static str {
    match why {
        Why::Nothing => "",
        Why::Announced => "a",
        Why::Promoted => "p",
        Why::Operator => "o",
        Why::Fault => "f",
    }
}

/// An answer in full; none where it is none of ours.
fn read(answer: &Value) -> Option<Heard> {
    let (fixed, hosts) = reply::list(answer)?.split_at_checked(18)?;
    let word = |index: usize| fixed.get(index).and_then(reply::text);
    let outcome = match word(0)? {
        "done" => Outcome::Done,
        "serving" => Outcome::Serving,
        "quarantined" => Outcome::Quarantined,
        "busy" => Outcome::Busy,
        "no-other" => Outcome::NoOther,
        "stale" => Outcome::Stale,
        _ => return None,
    };
    let quarantined = word(7)?.split_whitespace().take(QUARANTINED).map(|digest| digest.parse().ok());
    let standing = Standing {
        generation: word(2)?.parse().ok()?,
        chosen: read_chosen(word(3)?)?,
        before: if word(4)? == "-" { None } else { Some(read_chosen(word(4)?)?) },
        why: match word(5)? {
            "" => Why::Nothing,
            "a" => Why::Announced,
            "p" => Why::Promoted,
            "o" => Why::Operator,
            "f" => Why::Fault,
            _ => return None,
        },
        by: word(6)?.to_owned(),
        quarantined: quarantined.collect::<Option<Vec<Digest>>>()?,
    };
    let proposed = match word(8)? {
        "" => None,
        own => Some(Proposed {
            id: read_id(own)?,
            digest: word(9)?.parse().ok()?,
            by: word(10)?.to_owned(),
            promoted: word(11)? == "1",
            left: Duration::from_micros(word(12)?.parse().ok()?),
        }),
    };
    let aborted = match word(13)? {
        "" => None,
        own => Some(Aborted {
            id: read_id(own)?,
            digest: word(14)?.parse().ok()?,
            by: word(15)?.to_owned(),
            step: word(16)?.to_owned(),
            // Another host's words, and its component's: a line for logs and terminals.
            reason: word(17)?.replace(char::is_control, " "),
        }),
    };
    let hosts = hosts.chunks(4).map(|own| match own {
        [name, silent, generation, staged] => Some(Host {
            name: reply::text(name)?.to_owned(),
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
    let view = View { standing, proposed, aborted, hosts };
    Some(Heard { outcome, flawed: word(1)? == "1", view })
}

fn read_id(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

fn read_chosen(word: &str) -> Option<Chosen> {
    if word.is_empty() { Some(Chosen::Configured) } else { word.parse().ok().map(Chosen::Artifact) }
}

#[cfg(test)]
mod tests;
