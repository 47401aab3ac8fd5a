//! The scripts of records: their keys and arguments, and the meaning of their replies.
//!
//! Records are spread over sixteen parts by their ids. The keys of a part share a Cluster hash slot, so that one script can change a
//! record, its part's indexes and its part's share of the cap.

use super::super::{Keys, Script, Value, reply};
use crate::{
    clock::{Timestamp, micros},
    idempotency::{
        Arriving, BeginRequest, ClaimName, ClaimOwner, EntryTerm, FencingToken, Fingerprint, KeyTag, KeyedSends,
        Leaving, RecordId, Ticket,
        record::{HOST_LEASE, HostId, Record, StateFields},
        unanswered::MAX_EQUAL,
    },
};
use data_encoding::HEXLOWER;
use std::time::Duration;

/// Number of parts: few enough to query each of them, and more than a Cluster usually has masters.
pub const PARTS: u8 = 16;

/// Lease of a member in the queue of a fingerprint lock, renewed at a third: the longest that a waiting request is delayed by a host
/// that died.
pub const FINGERPRINT_LOCK_LEASE: Duration = Duration::from_secs(15);

/// Lease of an entry in the list of unanswered requests, renewed at a third. Half of [`FINGERPRINT_LOCK_LEASE`], so that a request that
/// gets the lock of a host that died finds that host's entries as orphans: an entry that was renewed last ends before a lock that was
/// renewed up to 5 s earlier.
pub const ENTRY_LEASE: Duration = Duration::from_millis(7500);

/// Requests of unknown writes that a part keeps for verification; further records keep only the names of upstream and endpoint. All
/// parts together: 16,384, more than a fleet verifies in the hour that it tries; at 64 KiB each, 1 GiB of the server's memory.
#[cfg(test)]
pub const MAX_KEPT_REQUESTS: usize = 1024;

macro_rules! script {
    ($name:literal $(, $part:literal)*) => {
        Script::new($name, concat!(include_str!("clock.lua"), $(include_str!($part), )* include_str!(concat!($name, ".lua"))))
    };
}

static BEGIN: Script = script!("begin", "server.lua", "host_leases.lua", "record.lua", "capacity.lua", "enqueue.lua");
static HEARTBEAT: Script = script!("heartbeat", "host_leases.lua");
static ARRIVE: Script = script!("arrive", "server.lua", "record.lua", "capacity.lua", "enqueue.lua", "unanswered.lua");
static RECHECK: Script = script!("recheck", "record.lua", "unanswered.lua");
static KEEP_ALIVE: Script = script!("keep_alive", "record.lua", "unanswered.lua");
static ABANDON_REQUEST: Script = script!("abandon_request", "record.lua", "unanswered.lua");
static ANSWERED: Script = script!("answered", "record.lua", "unanswered.lua");
static TOUCH_MARKER: Script = script!("touch_marker", "server.lua");
static INCARNATION: Script = script!("incarnation");
static SENT: Script = script!("sent", "host_leases.lua", "record.lua");
static FINISH: Script = script!("finish", "record.lua");
static RELEASE: Script = script!("release", "record.lua");
static ABANDON_RECORD: Script = script!("abandon_record", "record.lua");
static BEGIN_UNKNOWN: Script = script!("begin_unknown", "record.lua", "capacity.lua");
static RESOLVE: Script = script!("resolve", "record.lua");
static STATUS: Script = script!("status", "record.lua");
static GET: Script = script!("get", "record.lua");
static LIST_UNSETTLED: Script = script!("list_unsettled");
static LIST_DUE: Script = script!("list_due");
static TAKE_DUE: Script = script!("take_due", "record.lua");
static POSTPONE: Script = script!("postpone", "record.lua");
static PURGE_EXPIRED: Script = script!("purge_expired");
static CLAIM: Script = script!("claim", "server.lua");
static TAKE_LOCK: Script = script!("take_lock", "server.lua", "enqueue.lua");
static RESTORE: Script = script!("restore", "server.lua", "host_leases.lua", "record.lua");
static RENEW_LOCK: Script = script!("renew_lock", "enqueue.lua");
static PASS_LOCK: Script = script!("pass_lock");

/// A script with its keys and arguments, ready to run.
#[derive(Debug, Clone)]
pub struct ScriptCall {
    pub script: &'static Script,
    pub keys: Vec<String>,
    pub args: Vec<Vec<u8>>,
}

/// Arguments of [`begin`] and [`arrive`] beside the request's own.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// Maximum of records in a part.
    pub cap: usize,
    /// Time since records were last lost.
    pub lost_ago: Option<Duration>,
    /// The era in which `lost_ago` was read.
    pub era: String,
    /// This host.
    pub host: HostId,
    /// Whether one script may touch the record and the queue of its fingerprint lock: not on a Cluster.
    pub one_node: bool,
}

pub fn begin(keys: &Keys, id: RecordId, opening: &BeginRequest, about: &Circumstances) -> ScriptCall {
    let mut step = of_record(&BEGIN, keys, id);
    step.keys.push(of_part(keys, part_of(id), "server"));
    if opening.fingerprint_lock && about.one_node {
        step.keys.extend(queue(keys, opening.fingerprint));
    }
    step.args.extend([
        fence(opening.fence),
        opening.fingerprint.as_bytes().to_vec(),
        vec![if opening.maybe_sent { b'1' } else { b'0' }],
        duration(opening.lock),
        duration(opening.keep),
        about.cap.to_string().into_bytes(),
        about.lost_ago.map(duration).unwrap_or_default(),
        duration(FINGERPRINT_LOCK_LEASE),
        about.era.clone().into_bytes(),
        opening.upstream_key.map(|key| key.as_bytes().to_vec()).unwrap_or_default(),
        about.host.to_string().into_bytes(),
        duration(HOST_LEASE),
        answer_kept(opening),
    ]);
    step
}

/// Renews a host's heartbeat in a part.
pub fn heartbeat(keys: &Keys, part: u8, host: HostId) -> ScriptCall {
    let args = vec![host.to_string().into_bytes(), duration(HOST_LEASE)];
    ScriptCall { script: &HEARTBEAT, keys: vec![of_part(keys, part, "hosts")], args }
}

/// The lifetime of a record with a response; empty if it equals that of one without.
fn answer_kept(opening: &BeginRequest) -> Vec<u8> {
    if opening.keep_answer == opening.keep { Vec::new() } else { duration(opening.keep_answer) }
}

pub fn arrive(keys: &Keys, arriving: &Arriving, asked: Option<Asked>, about: &Circumstances) -> ScriptCall {
    let Arriving { ticket, opening, fingerprint_lock, max, .. } = arriving;
    let mut step = of_record(&ARRIVE, keys, ticket.id);
    step.keys.push(of_part(keys, part_of(ticket.id), "server"));
    step.keys.extend(lists(keys, ticket));
    if let Some(fingerprint) = fingerprint_lock.filter(|_| about.one_node) {
        step.keys.extend(queue(keys, fingerprint));
    }
    step.args.extend([
        fence(ticket.owner),
        opening.fingerprint.as_bytes().to_vec(),
        duration(ticket.terms.lease),
        duration(ticket.terms.kept),
        duration(opening.lock),
        duration(opening.keep),
        duration(opening.keep_answer),
        about.cap.to_string().into_bytes(),
        max.div_ceil(PARTS.into()).to_string().into_bytes(),
        MAX_EQUAL.to_string().into_bytes(),
        about.lost_ago.map(duration).unwrap_or_default(),
        duration(FINGERPRINT_LOCK_LEASE),
        about.era.clone().into_bytes(),
    ]);
    let key = opening.upstream_key.map(|key| key.as_bytes().to_vec()).unwrap_or_default();
    step.asking(asked).with(key)
}

pub fn recheck_orphan(keys: &Keys, ticket: &Ticket) -> ScriptCall {
    of_entry(&RECHECK, keys, ticket).with(duration(ticket.terms.lease)).with(duration(ticket.terms.kept))
}

/// `lists_again`: add the entry again if it is missing, because the server has lost it and the caller is still connected.
pub fn keep_alive(keys: &Keys, ticket: &Ticket, lock: Duration, term: EntryTerm, lists_again: bool) -> ScriptCall {
    let step = of_entry(&KEEP_ALIVE, keys, ticket).with(duration(ticket.terms.lease)).with(duration(ticket.terms.kept));
    let most = if lists_again { MAX_EQUAL.to_string().into_bytes() } else { Vec::new() };
    step.with(duration(lock)).with(flag(term != EntryTerm::GivenUp)).with(most)
}

pub fn abandon(keys: &Keys, ticket: &Ticket) -> ScriptCall {
    of_entry(&ABANDON_REQUEST, keys, ticket).with(duration(ticket.terms.kept))
}

pub fn answered(keys: &Keys, ticket: &Ticket, forget: bool) -> ScriptCall {
    of_entry(&ANSWERED, keys, ticket).with(duration(ticket.terms.kept)).with(flag(forget))
}

fn flag(is: bool) -> Vec<u8> {
    vec![if is { b'1' } else { b'0' }]
}

fn of_entry(script: &'static Script, keys: &Keys, ticket: &Ticket) -> ScriptCall {
    let mut step = of_record(script, keys, ticket.id).with(fence(ticket.owner));
    step.keys.extend(lists(keys, ticket));
    step
}

/// The list of equal requests, and the index of all entries of its part. The digest determines the part, of the records too.
fn lists(keys: &Keys, ticket: &Ticket) -> [String; 2] {
    let part = part_of(ticket.id);
    [
        of_part(keys, part, &format!("unanswered-{}", HEXLOWER.encode(ticket.digest.as_bytes()))),
        of_part(keys, part, "unanswered"),
    ]
}

/// `marked`: the part had its marker in this era before.
pub fn mark(keys: &Keys, part: u8, era: &str, marked: bool) -> ScriptCall {
    let args = vec![era.into(), vec![if marked { b'1' } else { b'0' }]];
    ScriptCall { script: &TOUCH_MARKER, keys: vec![of_part(keys, part, "server")], args }
}

/// An operation on the era and a part's marker.
#[derive(Debug, Clone, Copy)]
pub enum Era<'a> {
    /// Ask whether the part had its marker in this era.
    Ask,
    /// Note that the part has it.
    Note,
    /// End the era, because the part's marker is gone. The value is the id of the next era.
    Lose(&'a str),
}

pub fn era(keys: &Keys, part: u8, era: &str, what: Era<'_>) -> ScriptCall {
    let (word, next) = match what {
        Era::Ask => ("ask", ""),
        Era::Note => ("note", ""),
        Era::Lose(next) => ("lose", next),
    };
    let args = [era, &format!("{part:x}"), word, next].map(|word| word.as_bytes().to_vec()).to_vec();
    ScriptCall { script: &INCARNATION, keys: vec![keys.census()], args }
}

/// A write's request, as it is stored in Redis.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `upstream/endpoint`, by their configured names.
    pub name: String,
    /// The encrypted request; `None` if it is not kept.
    pub request: Option<Vec<u8>>,
}

/// `host`: the same script renews its heartbeat.
pub fn sent(keys: &Keys, id: RecordId, own: FencingToken, asked: Option<Asked>, host: HostId) -> ScriptCall {
    let step = of_record(&SENT, keys, id).with(fence(own)).asking(asked);
    step.with(host.to_string().into_bytes()).with(duration(HOST_LEASE))
}

pub fn finish(keys: &Keys, id: RecordId, own: FencingToken, sealed: Vec<u8>) -> ScriptCall {
    of_record(&FINISH, keys, id).with(fence(own)).with(sealed)
}

pub fn release(keys: &Keys, id: RecordId, own: FencingToken) -> ScriptCall {
    of_record(&RELEASE, keys, id).with(fence(own))
}

pub fn leave(keys: &Keys, id: RecordId, own: FencingToken, leaving: &Leaving, asked: Option<Asked>) -> ScriptCall {
    let optional = |time: Option<Duration>| time.map(duration).unwrap_or_default();
    let step = of_record(&ABANDON_RECORD, keys, id).with(fence(own));
    step.with(optional(leaving.sent_ago)).with(optional(leaving.verify_in)).asking(asked)
}

/// `cap`: maximum of records in a part.
pub fn unknown(
    keys: &Keys,
    id: RecordId,
    opening: &BeginRequest,
    leaving: &Leaving,
    asked: Option<Asked>,
    cap: usize,
) -> ScriptCall {
    let step =
        of_record(&BEGIN_UNKNOWN, keys, id).with(opening.fingerprint.as_bytes().to_vec()).with(duration(opening.keep));
    let step = step.with(duration(leaving.sent_ago.unwrap_or_default()));
    let step = step.with(leaving.verify_in.map(duration).unwrap_or_default()).asking(asked);
    step.with(cap.to_string().into_bytes()).with(answer_kept(opening))
}

/// `sealed`: the encrypted response from now on; `None` if the write was not applied.
pub fn resolve(keys: &Keys, id: RecordId, sealed: Option<Vec<u8>>, lost_ago: Option<Duration>) -> ScriptCall {
    of_record(&RESOLVE, keys, id).with(sealed.unwrap_or_default()).with_lease(lost_ago)
}

pub fn status(keys: &Keys, id: RecordId, lost_ago: Option<Duration>) -> ScriptCall {
    of_record(&STATUS, keys, id).with_lease(lost_ago)
}

pub fn get(keys: &Keys, id: RecordId, lost_ago: Option<Duration>) -> ScriptCall {
    of_record(&GET, keys, id).with_lease(lost_ago)
}

/// The ids of a part's records that may be unsettled, by expiry.
pub fn open(keys: &Keys, part: u8, limit: usize) -> ScriptCall {
    ScriptCall {
        script: &LIST_UNSETTLED,
        keys: vec![of_part(keys, part, "open")],
        args: vec![limit.to_string().into_bytes()],
    }
}

/// The ids of a part's records whose verification is due, the longest due first.
pub fn due(keys: &Keys, part: u8, limit: usize) -> ScriptCall {
    let keys = vec![of_part(keys, part, "due"), of_part(keys, part, "all")];
    ScriptCall { script: &LIST_DUE, keys, args: vec![limit.to_string().into_bytes()] }
}

pub fn take(keys: &Keys, id: RecordId, lease: Duration, lost_ago: Option<Duration>) -> ScriptCall {
    of_record(&TAKE_DUE, keys, id).with(duration(lease)).with_lease(lost_ago)
}

pub fn postpone(
    keys: &Keys,
    id: RecordId,
    wait: Duration,
    longest_age: Duration,
    lost_ago: Option<Duration>,
) -> ScriptCall {
    of_record(&POSTPONE, keys, id).with(duration(wait)).with(duration(longest_age)).with_lease(lost_ago)
}

pub fn sweep(keys: &Keys, part: u8) -> ScriptCall {
    let keys = ["all", "open", "due", "unanswered"].map(|what| of_part(keys, part, what));
    ScriptCall { script: &PURGE_EXPIRED, keys: keys.into(), args: Vec::new() }
}

/// The era that a part's marker must have. `None` on a Cluster, where a script may not touch another key and a marker too.
#[derive(Debug, Clone, Copy)]
pub struct InEra<'a>(pub Option<&'a str>);

impl InEra<'_> {
    /// Adds the marker of the part of this hash to the keys.
    fn guard(self, mut step: ScriptCall, keys: &Keys, hash: &[u8; 32]) -> ScriptCall {
        step.keys.extend(self.0.map(|_| of_part(keys, hash[31] % PARTS, "server")));
        step.with(self.0.unwrap_or_default().into())
    }
}

/// `keep`: `None` to only read the owner.
pub fn claim(keys: &Keys, name: ClaimName, owner: ClaimOwner, keep: Option<Duration>, era: InEra<'_>) -> ScriptCall {
    let owner = match owner {
        ClaimOwner::Record(id) => format!("record:{id}"),
        ClaimOwner::Request(FencingToken(fence)) => format!("request:{fence:032x}"),
    };
    let keep_ms = keep.map(|keep| duration_ms(keep).to_string()).unwrap_or_default();
    let step = ScriptCall {
        script: &CLAIM,
        keys: vec![keys.single("claim", HEXLOWER.encode(name.as_bytes()))],
        args: vec![owner.into_bytes(), keep_ms.into_bytes()],
    };
    era.guard(step, keys, name.as_bytes())
}

pub fn take_lock(keys: &Keys, fingerprint: Fingerprint, own: FencingToken, era: InEra<'_>) -> ScriptCall {
    era.guard(of_queue(&TAKE_LOCK, keys, fingerprint, own), keys, fingerprint.as_bytes())
}

pub fn renew(keys: &Keys, fingerprint: Fingerprint, own: FencingToken) -> ScriptCall {
    of_queue(&RENEW_LOCK, keys, fingerprint, own)
}

pub fn pass(keys: &Keys, fingerprint: Fingerprint, own: FencingToken) -> ScriptCall {
    of_queue(&PASS_LOCK, keys, fingerprint, own)
}

fn of_queue(script: &'static Script, keys: &Keys, fingerprint: Fingerprint, own: FencingToken) -> ScriptCall {
    ScriptCall {
        script,
        keys: queue(keys, fingerprint).into(),
        args: vec![fence(own), duration(FINGERPRINT_LOCK_LEASE)],
    }
}

/// Arguments of [`restore`] beside the record.
#[derive(Debug, Clone)]
pub struct Restoring<'a> {
    pub era: &'a str,
    /// The encrypted response of a record that is done; else empty.
    pub sealed: Vec<u8>,
    pub asked: Option<Asked>,
    pub host: HostId,
    pub lost_ago: Option<Duration>,
    pub now: Timestamp,
}

/// Restores a record: see [`Record::restore`].
pub fn restore(keys: &Keys, id: RecordId, record: &Record, with: Restoring<'_>) -> ScriptCall {
    let Restoring { era, sealed, asked, host, lost_ago, now } = with;
    let fields = record.fields();
    let ago = |at: Timestamp| duration(now.since(at));
    let optional = |at: Option<Timestamp>| at.map(ago).unwrap_or_default();
    let (state, own, since, until, sent, prior) = match fields.state {
        StateFields::Held { fence: own, since, until, sent, prior } => ("h", fence(own), since, until, sent, prior),
        StateFields::Unknown { sent, since } => ("u", Vec::new(), since, now, Some(sent), None),
        StateFields::Done { since, .. } => ("d", Vec::new(), since, now, None, None),
        StateFields::Cleared { since } => ("c", Vec::new(), since, now, None, None),
    };
    let mut step = of_record(&RESTORE, keys, id);
    step.keys.push(of_part(keys, part_of(id), "server"));
    let step = step.with(era.into()).with(fields.fingerprint.as_bytes().to_vec()).with(duration(fields.keep));
    let step = step.with(state.into()).with(own).with(ago(since)).with(duration(until.since(now)));
    let step = step.with(optional(sent)).with(optional(prior)).with(sealed).asking(asked);
    let due = fields.due.map(|due| duration(due.since(now))).unwrap_or_default();
    // The record of a request without a key is kept alive by its entry, not by its host's heartbeat.
    let host = record.host().map(|_| host.to_string().into_bytes()).unwrap_or_default();
    let step = step.with(due).with(host).with_lease(lost_ago);
    let step = step.with(fields.upstream_key.map(|key| key.as_bytes().to_vec()).unwrap_or_default());
    let may_have_sent = sent.is_some() || prior.is_some();
    let step = match fields.sends {
        Some((key, first)) => step.with(key.as_bytes().to_vec()).with(ago(first)),
        None => step.with(if may_have_sent { b"-".to_vec() } else { Vec::new() }).with(Vec::new()),
    };
    step.with(duration(fields.keep_answer))
}

impl ScriptCall {
    fn with(mut self, argument: Vec<u8>) -> Self {
        self.args.push(argument);
        self
    }

    /// Adds the arguments by which a script decides whether a holder's host is alive.
    fn with_lease(self, lost_ago: Option<Duration>) -> Self {
        self.with(lost_ago.map(duration).unwrap_or_default()).with(duration(HOST_LEASE))
    }

    fn asking(self, asked: Option<Asked>) -> Self {
        let (name, request) = asked
            .map(|asked| {
                let mark = if asked.request.is_some() { '+' } else { '-' };
                (format!("{mark}{}", asked.name), asked.request.unwrap_or_default())
            })
            .unwrap_or_default();
        self.with(name.into_bytes()).with(request)
    }
}

fn of_record(script: &'static Script, keys: &Keys, id: RecordId) -> ScriptCall {
    let part = part_of(id);
    let name = id.to_string();
    let keys = [name.as_str(), "all", "open", "due", "hosts"].map(|what| of_part(keys, part, what));
    ScriptCall { script, keys: keys.into(), args: vec![id.as_bytes().to_vec()] }
}

/// The part of a record.
pub fn part_of(id: RecordId) -> u8 {
    let [.., last] = id.as_bytes();
    last % PARTS
}

fn of_part(keys: &Keys, part: u8, what: &str) -> String {
    keys.tagged(format_args!("idem-{part:x}"), what)
}

fn queue(keys: &Keys, fingerprint: Fingerprint) -> [String; 2] {
    let queue_tag = format!("twin-{}", HEXLOWER.encode(fingerprint.as_bytes()));
    [keys.tagged(&queue_tag, "queue"), keys.tagged(&queue_tag, "alive")]
}

fn fence(FencingToken(fence): FencingToken) -> Vec<u8> {
    fence.to_be_bytes().to_vec()
}

/// Lua's numbers are exact up to 2^53 us, and the present is at a fifth of that. So durations are capped at fifty years.
fn duration(duration: Duration) -> Vec<u8> {
    micros(duration.min(FIFTY_YEARS)).to_string().into_bytes()
}

fn duration_ms(duration: Duration) -> u64 {
    crate::clock::millis(duration.min(FIFTY_YEARS)).max(1)
}

const FIFTY_YEARS: Duration = Duration::from_hours(24 * 365 * 50);

/// The reply of a script: a word, then values that depend on it.
#[derive(Debug, Clone, Copy)]
pub struct ScriptReply<'a> {
    pub word: &'a str,
    rest: &'a [Value],
}

impl<'a> ScriptReply<'a> {
    /// `None`: another program wrote the reply.
    pub fn of(value: &'a Value) -> Option<Self> {
        let (word, rest) = reply::list(value)?.split_first()?;
        Some(Self { word: reply::text(word)?, rest })
    }

    pub fn bytes(&self) -> Option<&'a [u8]> {
        self.rest.first().and_then(reply::bytes)
    }

    /// The text at an index after the word, from 0.
    pub fn text(&self, index: usize) -> Option<&'a str> {
        self.rest.get(index).and_then(reply::text)
    }

    /// The duration at an index after the word, from 0.
    pub fn duration_at(&self, index: usize) -> Option<Duration> {
        self.rest.get(index).and_then(reply::count).map(Duration::from_micros)
    }

    pub fn duration(&self) -> Option<Duration> {
        self.duration_at(0)
    }

    /// The upstream's idempotency key of the earlier sends, if all carried the same one.
    pub fn keyed_sends(&self) -> Option<KeyedSends> {
        let key = KeyTag::from_bytes(reply::bytes(self.rest.get(2)?)?.try_into().ok()?);
        let first_ago = Duration::from_micros(self.rest.get(3).and_then(reply::count)?);
        Some(KeyedSends { key, first_ago })
    }

    /// Whether a loss of data is the only reason why the request may have been sent.
    pub fn doubtful(&self) -> bool {
        self.text(4) == Some("1")
    }

    /// Whether the script also took the fingerprint lock.
    pub fn has_lock(&self) -> bool {
        self.flag(1)
    }

    /// Whether equal requests with live owners are listed.
    pub fn others(&self) -> bool {
        self.flag(2)
    }

    /// Whether the owner holds the record of its entry.
    pub fn is_held(&self) -> bool {
        self.flag(0)
    }

    fn flag(&self, at: usize) -> bool {
        self.rest.get(at).and_then(reply::text) == Some("1")
    }

    /// Whether the record keeps only the names, because its part has no space for another request.
    pub fn names_only(&self) -> bool {
        self.text(0) == Some("names-only")
    }

    pub fn id(&self) -> Option<RecordId> {
        Some(RecordId::from_bytes(self.bytes()?.try_into().ok()?))
    }
}
