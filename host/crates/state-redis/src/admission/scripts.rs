//! The scripts of admission: their arguments and replies.

use super::shared_breaker::SharedBreakerState;
use crate::{
    breaker::{CHANCE_SHIFT, Counts, Force},
    clock::micros,
    group::{AttemptKind, Pybreaker, Report, Settings},
    rate_limit::Quota,
    {Keys, Script, Value, reply},
};
use std::{ops::RangeInclusive, time::Duration};

macro_rules! step {
    ($name:literal $(, $first:literal)?) => {
        Script::new(
            $name,
            concat!(
                $(include_str!($first),)?
                include_str!("prelude.lua"),
                include_str!("pybreaker.lua"),
                include_str!(concat!($name, ".lua"))
            ),
        )
    };
}

pub(super) static ACQUIRE: Script = step!("acquire", "fast_path.lua");
pub(super) static RECHECK: Script = step!("recheck");
pub(super) static REPORT: Script = step!("report");
pub(super) static REFUND: Script = step!("refund");
pub(super) static PAUSE: Script = step!("pause");
pub(super) static LIFT_PAUSE: Script = step!("lift_pause");
pub(super) static FORCE: Script = step!("force");
pub(super) static HEARTBEAT: Script = step!("heartbeat");

/// Cap of durations: more than any wait, and exact in Lua's numbers.
const MAX_DURATION: Duration = Duration::from_secs(400 * 24 * 3600);
/// Lifetime of a group's state without heartbeats.
const STATE_TTL: Duration = Duration::from_hours(24);

/// Keys and arguments that all scripts of a group share; built once per settings.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) keys: Vec<String>,
    channel: String,
    group: String,
    host: String,
    quorum: u32,
    settings: Vec<String>,
}

/// Counts that this host reports with its next script: successes of an epoch, and first attempts made with prefetched permits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SavedUp {
    pub(super) epoch: Epoch,
    pub(super) successes: u32,
    pub(super) firsts: u32,
}

/// An epoch of the shared breaker: it changes with each state, so that results of an earlier state do not count. `random` changes
/// when the server has lost the breaker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Epoch {
    pub(super) random: String,
    pub(super) counter: u64,
}

/// The shared breaker's ticket for one attempt; `lease` only for a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeTicket {
    pub(super) epoch: Epoch,
    pub(super) lease: Option<u64>,
}

/// The reservation of one attempt in all limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LimitDebit {
    pub(super) due: String,
    pub(super) moved: String,
    /// Of each limit its arrival time before and after.
    reservations: Vec<String>,
}

/// The decision of [`ACQUIRE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acquired {
    Go(Go),
    Limited { which: Option<usize>, wait: Duration },
    Open { wait: Duration },
    Budget { wait: Duration },
}

/// An admission: now or after `wait`, and `leased` prefetched permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Go {
    pub(super) wait: Duration,
    pub(super) taken: LimitDebit,
    pub(super) lease: Option<u64>,
    pub(super) leased: u32,
}

/// The decision of [`RECHECK`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RecheckDecision {
    Send { lease: Option<u64> },
    Wait(Duration),
    Open { wait: Duration },
}

/// The reply of [`HEARTBEAT`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HeartbeatReply {
    pub(super) live: u32,
    pub(super) failures_in_row: u32,
    pub(super) counts: Counts,
    pub(super) probes: usize,
    pub(super) open_since: Duration,
    pub(super) budget: u64,
    pub(super) pause: Duration,
    /// Increases with each lifted pause.
    pub(super) lifted: u64,
    /// How far each limit's arrival time is ahead.
    pub(super) ahead: Vec<Duration>,
}

/// This host's copy of an open breaker, for a server that has lost it.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    pub(super) left: Duration,
    /// Cause, and random number of the epoch.
    pub(super) of: String,
    /// The epoch of the breaker, open or not.
    pub(super) epoch: Option<Epoch>,
}

fn us(duration: Duration) -> String {
    micros(duration.min(MAX_DURATION)).to_string()
}

fn of_percent(percent: Option<u32>) -> String {
    percent.map_or_else(|| "-1".to_owned(), |percent| percent.to_string())
}

fn words(settings: &Settings) -> Vec<String> {
    let mut words = match &settings.breaker {
        None => vec!["0".to_owned(); 11],
        Some(own) => vec![
            "1".to_owned(),
            of_percent(own.consecutive_failures),
            of_percent(own.failure_rate_percent),
            of_percent(own.slow_call_after.map(|_| own.slow_rate_percent)),
            us(own.window),
            own.minimum_calls.to_string(),
            us(own.open_for),
            us(own.open_for_max),
            own.jitter_percent.to_string(),
            own.probes.to_string(),
            us(own.probe_lease),
        ],
    };
    let budget = &settings.budget;
    words.extend([budget.percent, budget.floor_per_second, budget.capacity].map(|number| number.to_string()));
    words.push(settings.limits.len().to_string());
    for quota in &settings.limits {
        words.extend([us(quota.interval()), us(tolerance(quota))]);
    }
    words
}

fn tolerance(quota: &Quota) -> Duration {
    quota.interval().saturating_mul(quota.burst.get() - 1)
}

impl Frame {
    pub(super) fn new(keys: &Keys, group: &str, host: &str, quorum: u32, settings: &Settings) -> Self {
        // Braces in a name would begin another hash tag.
        let own = group.replace('{', "%7B").replace('}', "%7D");
        let python = settings.breaker.as_ref().and(settings.pybreaker.as_ref());
        let parts = ["gate", "reporters", "instances"];
        let mut all: Vec<String> = match python.and_then(Pybreaker::hash_tag) {
            // A script may touch one hash slot only, and pybreaker determines the slot of its keys.
            Some(tag) => parts.map(|what| keys.tagged(tag, format_args!("{own}:{what}"))).into(),
            None => parts.map(|what| keys.tagged(&own, what)).into(),
        };
        all.extend(python.map(Pybreaker::keys).into_iter().flatten());
        Self {
            keys: all,
            channel: keys.channel(),
            group: group.to_owned(),
            host: host.to_owned(),
            quorum,
            settings: words(settings),
        }
    }

    /// All arguments of a script. `now_us`: set in tests only; otherwise the script reads the server's clock.
    pub(super) fn arguments(&self, now_us: Option<u64>, chance: u64, memory: &Memory, own: &[String]) -> Vec<String> {
        let mut all = Vec::with_capacity(8 + self.settings.len() + own.len());
        all.push(now_us.map_or_else(String::new, |now| now.to_string()));
        all.extend([&self.channel, &self.group, &self.host].map(String::clone));
        all.push((chance >> CHANCE_SHIFT).to_string());
        all.extend([us(memory.left), memory.of.clone(), self.quorum.to_string()]);
        all.extend_from_slice(&self.settings);
        all.extend_from_slice(own);
        all.extend(memory.epoch.as_ref().map_or_else(Default::default, Epoch::words));
        all
    }
}

impl LimitDebit {
    /// Whether there are no limits.
    pub(super) fn is_empty(&self) -> bool {
        self.reservations.is_empty()
    }

    /// The debit of a range among the permits that one call took; the call's own permit is number 0. `interval_us`: the interval of each
    /// limit.
    pub(super) fn range(&self, numbers: RangeInclusive<u32>, interval_us: &[u64]) -> Self {
        let behind = |(reservation, interval): (&[String], &u64)| {
            let made = reservation.get(1).and_then(|made| made.parse::<u64>().ok()).unwrap_or(0);
            let after = |number: u32| made.saturating_add(interval.saturating_mul(number.into())).to_string();
            let before = match numbers.start().checked_sub(1) {
                Some(number) => after(number),
                None => reservation.first().cloned().unwrap_or_default(),
            };
            [before, after(*numbers.end())]
        };
        if numbers == (0..=0) {
            return self.clone();
        }
        Self { reservations: self.reservations.chunks(2).zip(interval_us).flat_map(behind).collect(), ..self.clone() }
    }
}

impl SavedUp {
    fn words(&self) -> [String; 4] {
        let [random, counter] = self.epoch.words();
        [random, counter, self.successes.to_string(), self.firsts.to_string()]
    }
}

impl Epoch {
    fn words(&self) -> [String; 2] {
        [self.random.clone(), self.counter.to_string()]
    }
}

fn ticket(ticket: Option<&ProbeTicket>) -> [String; 3] {
    let Some(ticket) = ticket else { return ["", "", "-1"].map(str::to_owned) };
    let [random, counter] = ticket.epoch.words();
    [random, counter, ticket.lease.map_or_else(|| "-1".to_owned(), |lease| lease.to_string())]
}

pub(super) fn acquire(
    ask: AttemptKind,
    wait: &RangeInclusive<Duration>,
    saved_up: &SavedUp,
    permits: u32,
) -> Vec<String> {
    let mut words = vec![ask.name().to_owned(), us(*wait.end())];
    words.extend(saved_up.words());
    words.extend([permits.to_string(), us(*wait.start())]);
    words
}

pub(super) fn recheck(taken: &LimitDebit, own: Option<&ProbeTicket>) -> Vec<String> {
    let mut words = vec![taken.due.clone(), taken.moved.clone()];
    words.extend(ticket(own));
    words
}

pub(super) fn report(saved_up: &SavedUp, own: Option<(&ProbeTicket, &Report)>, slow: bool) -> Vec<String> {
    let mut words = saved_up.words().to_vec();
    words.extend(ticket(own.map(|(ticket, _)| ticket)));
    let signal = own.map_or("none", |(_, report)| report.signal.name());
    let asked = own.and_then(|(_, report)| report.lengthens()).unwrap_or_default();
    words.extend([signal.to_owned(), u8::from(slow).to_string(), us(asked)]);
    words
}

pub(super) fn give_back(own: Option<&ProbeTicket>, sent: bool, ask: AttemptKind, taken: &LimitDebit) -> Vec<String> {
    let mut words = ticket(own).to_vec();
    words.extend([u8::from(sent).to_string(), ask.name().to_owned(), taken.moved.clone()]);
    words.extend_from_slice(&taken.reservations);
    words
}

pub(super) fn pause(pause: Duration) -> Vec<String> {
    vec![us(pause)]
}

pub(super) fn force(force: Force) -> Vec<String> {
    let (what, time) = match force {
        Force::Open(time) => ("open", time),
        Force::Close(time) => ("close", time),
        Force::Reset => ("reset", Duration::ZERO),
        Force::Clear => ("undo", Duration::ZERO),
    };
    vec![what.to_owned(), us(time)]
}

pub(super) fn heartbeat(saved_up: &SavedUp) -> Vec<String> {
    let mut words = saved_up.words().to_vec();
    words.push(crate::clock::millis(STATE_TTL).to_string());
    words
}

fn time(value: &Value) -> Option<Duration> {
    reply::count(value).map(Duration::from_micros)
}

/// A negative number: no lease is needed.
fn lease(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

/// Splits a reply into the breaker's state, which every script returns first, and the script's own values.
pub(super) fn split_reply(answer: &Value) -> Option<(SharedBreakerState, &[Value])> {
    let (head, own) = reply::list(answer)?.split_at_checked(5)?;
    let [random, counter, state, left, why] = head else { return None };
    let epoch = Epoch { random: reply::text(random)?.to_owned(), counter: reply::count(counter)? };
    Some((SharedBreakerState::read(epoch, reply::text(state)?, time(left)?, reply::text(why)?)?, own))
}

pub(super) fn acquired(own: &[Value]) -> Option<Acquired> {
    match (reply::text(own.first()?)?, own.get(1..)?) {
        ("go", [wait, due, moved, of_probe, leased, reservations @ ..]) => Some(Acquired::Go(Go {
            wait: time(wait)?,
            taken: taken(due, moved, reservations)?,
            lease: lease(reply::whole(of_probe)?),
            leased: u32::try_from(reply::count(leased)?).ok()?,
        })),
        ("limited", [which, wait]) => {
            Some(Acquired::Limited { which: usize::try_from(reply::whole(which)?).ok(), wait: time(wait)? })
        }
        ("open", [wait]) => Some(Acquired::Open { wait: time(wait)? }),
        ("budget", [wait]) => Some(Acquired::Budget { wait: time(wait)? }),
        _ => None,
    }
}

/// The decision, and the new reservation if a pause was lifted.
pub(super) fn recheck_reply(own: &[Value]) -> Option<(RecheckDecision, Option<LimitDebit>)> {
    let [decision, value, again @ ..] = own else { return None };
    let decision = match reply::text(decision)? {
        "send" => RecheckDecision::Send { lease: lease(reply::whole(value)?) },
        "wait" => RecheckDecision::Wait(time(value)?),
        "open" => RecheckDecision::Open { wait: time(value)? },
        _ => return None,
    };
    let again = match again {
        [] => None,
        [due, moved, reservations @ ..] => Some(taken(due, moved, reservations)?),
        [_] => return None,
    };
    Some((decision, again))
}

fn taken(due: &Value, moved: &Value, reservations: &[Value]) -> Option<LimitDebit> {
    let text = |value| reply::text(value).map(str::to_owned);
    Some(LimitDebit {
        due: text(due)?,
        moved: text(moved)?,
        reservations: reservations.iter().map(text).collect::<Option<_>>()?,
    })
}

/// Whether there was a pause to lift, and the number that increases with each lifted pause.
pub(super) fn lifted(own: &[Value]) -> Option<(bool, u64)> {
    let [had_pause, mark] = own else { return None };
    Some((reply::count(had_pause)? == 1, reply::count(mark)?))
}

pub(super) fn heartbeat_reply(own: &[Value]) -> Option<HeartbeatReply> {
    let [live, row, calls, failures, slow, probes, since, budget, pause, lifted, ahead @ ..] = own else { return None };
    Some(HeartbeatReply {
        live: u32::try_from(reply::count(live)?).ok()?,
        failures_in_row: u32::try_from(reply::count(row)?).ok()?,
        counts: Counts {
            calls_milli: reply::count(calls)?,
            failures_milli: reply::count(failures)?,
            slow_milli: reply::count(slow)?,
        },
        probes: usize::try_from(reply::count(probes)?).ok()?,
        open_since: time(since)?,
        budget: reply::count(budget)?,
        pause: time(pause)?,
        lifted: reply::count(lifted)?,
        ahead: ahead.iter().map(time).collect::<Option<_>>()?,
    })
}
