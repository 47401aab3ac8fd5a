//! A fleet around one breaker, explored state by state: hosts that ask, wait, recheck, send and report; that crash, are stopped
//! and go on; messages that are late or lost; clocks that run slow. The store's steps and the hosts' last check are the very functions
//! that run in service.
//!
//! Nothing bounds the length of a run: states that go on alike are one, whenever they are reached. See [`Fleet::essence`].
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::breaker::lease_covers;
use stateright::{Checker, Model, Property};
use std::hash::{Hash, Hasher};

/// A clock's step.
const STEP: Duration = Duration::from_secs(1);
/// The hosts' attempt timeout.
const ATTEMPT: Duration = STEP;

/// What is explored.
#[derive(Debug, Clone)]
struct Protocol {
    hosts: usize,
    settings: Settings,
    /// Messages at most that are under way to the store without anybody waiting for their answer; further ones are lost.
    adrift: usize,
    /// Hosts at most that are stopped at the same time.
    stopped: usize,
    /// Whether hosts check their own clock before they send a probe. In service they do.
    careful: bool,
    /// Whether the store compares epochs. In service it does.
    epochs: bool,
}

/// What a host is at.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Idle,
    /// It has asked for a permit and been given one: that is under way, or waits for its moment.
    Admitted(Ticket),
    /// It has sent a recheck, this long ago by its own clock.
    Rechecks(Ticket, Own),
    /// The answer to that is under way, or has come.
    Rechecked(Ticket, Own),
    /// It sends, since so long by its own clock.
    Sends(Ticket, Own),
}

/// Time on a host's own clock, which may have fallen behind by one step since the recheck.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Own {
    elapsed: Duration,
    slow: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Host {
    phase: Phase,
    /// Stopped, as by SIGSTOP: its clock goes on.
    stopped: bool,
}

/// A message to the store that nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Message {
    /// From one that gave up or crashed.
    Recheck(Ticket),
    Report(Ticket, BreakerSignal),
    GiveBack(Ticket),
}

#[derive(Debug, Clone)]
struct Fleet {
    now: Timestamp,
    breaker: Breaker,
    hosts: Vec<Host>,
    adrift: Vec<Message>,
    /// A result of an older epoch changed the breaker.
    stale_result_counted: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Action {
    /// A second passes; for this host's clock it does not.
    Tick(Option<usize>),
    /// A host's next step, or the store's for it.
    Step(usize),
    /// What it sent was answered, or timed out.
    Ends(usize, BreakerSignal),
    /// The host no longer waits, and gives back what it has.
    GivesUp(usize),
    /// The host crashes, and a new one replaces it. The old messages are still under way.
    Crashes(usize),
    Stops(usize),
    GoesOn(usize),
    /// From a host that has crashed since, or gave up.
    IsAskedInVain,
    /// A message arrives.
    Arrives(usize),
    /// It never does.
    IsLost(usize),
}

impl Protocol {
    fn new(hosts: usize, probes: u32, adrift: usize) -> Self {
        let settings = Settings {
            consecutive_failures: Some(1),
            failure_rate_percent: None,
            open_for: STEP,
            open_for_max: STEP,
            jitter_percent: 0,
            probes,
            probe_lease: 3 * STEP,
            ..Settings::default()
        };
        Self { hosts, settings, adrift, stopped: 1, careful: true, epochs: true }
    }

    fn admitted(&self, fleet: &mut Fleet) -> Option<Ticket> {
        match fleet.breaker.admit(fleet.now, &self.settings) {
            Admission::Pass(ticket) => Some(ticket),
            Admission::Refused { .. } => None,
        }
    }

    /// The store's part of the recheck before the send: the same ticket, or one of the epoch that has begun meanwhile.
    fn rechecked(&self, fleet: &mut Fleet, ticket: Ticket) -> Option<Ticket> {
        let now = fleet.now;
        if fleet.breaker.recheck(&ticket, now, &self.settings) { Some(ticket) } else { self.admitted(fleet) }
    }

    fn recorded(&self, fleet: &mut Fleet, ticket: Ticket, signal: BreakerSignal) {
        let stale = ticket.epoch != fleet.breaker.epoch;
        let before = fleet.breaker.clone();
        let ticket = if self.epochs { ticket } else { Ticket { epoch: fleet.breaker.epoch, ..ticket } };
        fleet.breaker.record(&ticket, signal, Duration::ZERO, fleet.now, 0, &self.settings);
        fleet.stale_result_counted |= stale && fleet.breaker != before;
    }

    fn send(&self, fleet: &mut Fleet, message: Message) {
        if fleet.adrift.len() < self.adrift {
            fleet.adrift.push(message);
        }
    }

    fn step(&self, fleet: &mut Fleet, host: usize) {
        fleet.hosts[host].phase = match fleet.hosts[host].phase.clone() {
            Phase::Idle => self.admitted(fleet).map_or(Phase::Idle, Phase::Admitted),
            Phase::Admitted(ticket) => Phase::Rechecks(ticket, Own::default()),
            Phase::Rechecks(ticket, own) => {
                self.rechecked(fleet, ticket).map_or(Phase::Idle, |ticket| Phase::Rechecked(ticket, own))
            }
            Phase::Rechecked(ticket, own) => {
                let covered = !ticket.is_probe() || lease_covers(own.elapsed, ATTEMPT, &self.settings);
                if covered || !self.careful {
                    Phase::Sends(ticket, Own { elapsed: Duration::ZERO, ..own })
                } else {
                    self.send(fleet, Message::GiveBack(ticket));
                    Phase::Idle
                }
            }
            sends @ Phase::Sends(..) => sends,
        };
    }

    fn leave(&self, fleet: &mut Fleet, host: usize, orderly: bool) {
        match std::mem::replace(&mut fleet.hosts[host].phase, Phase::Idle) {
            Phase::Rechecks(ticket, _) => {
                self.send(fleet, Message::Recheck(ticket));
                if orderly {
                    self.send(fleet, Message::GiveBack(ticket));
                }
            }
            Phase::Admitted(ticket) | Phase::Rechecked(ticket, _) if orderly => {
                self.send(fleet, Message::GiveBack(ticket));
            }
            _ => {}
        }
    }
}

impl Model for Protocol {
    type State = Fleet;
    type Action = Action;

    fn init_states(&self) -> Vec<Fleet> {
        let host = Host { phase: Phase::Idle, stopped: false };
        vec![Fleet {
            now: Timestamp(1_000_000_000),
            breaker: Breaker::new(1),
            hosts: vec![host; self.hosts],
            adrift: Vec::new(),
            stale_result_counted: false,
        }]
    }

    fn actions(&self, fleet: &Fleet, actions: &mut Vec<Action>) {
        // A host that runs ends its attempt in time, by its own clock.
        let due = |host: &Host| {
            !host.stopped
                && fleet.clock(host).is_some_and(|own| matches!(host.phase, Phase::Sends(..)) && own.elapsed >= ATTEMPT)
        };
        let time_passes = !fleet.hosts.iter().any(due);
        if time_passes {
            actions.push(Action::Tick(None));
        }
        // A question whose answer nobody gets.
        actions.push(Action::IsAskedInVain);
        let stopped = fleet.hosts.iter().filter(|host| host.stopped).count();
        for (index, host) in fleet.hosts.iter().enumerate() {
            if time_passes && fleet.clock(host).is_some_and(|own| !own.slow) {
                actions.push(Action::Tick(Some(index)));
            }
            if host.stopped {
                actions.push(Action::GoesOn(index));
                // What is the store's to do goes on.
                if matches!(host.phase, Phase::Rechecks(..)) {
                    actions.push(Action::Step(index));
                }
                continue;
            }
            match host.phase {
                Phase::Sends(..) => actions
                    .extend([BreakerSignal::Success, BreakerSignal::Failure].map(|signal| Action::Ends(index, signal))),
                _ => actions.push(Action::Step(index)),
            }
            if host.phase != Phase::Idle {
                actions.extend([Action::GivesUp(index), Action::Crashes(index)]);
                if stopped < self.stopped {
                    actions.push(Action::Stops(index));
                }
            }
        }
        for index in 0..fleet.adrift.len() {
            actions.extend([Action::Arrives(index), Action::IsLost(index)]);
        }
    }

    fn next_state(&self, last: &Fleet, action: Action) -> Option<Fleet> {
        let mut fleet = last.clone();
        match action {
            Action::Tick(behind) => {
                fleet.now = fleet.now.after(STEP);
                for index in 0..fleet.hosts.len() {
                    let Some(mut own) = fleet.clock(&fleet.hosts[index]) else { continue };
                    if behind == Some(index) {
                        own.slow = true;
                    } else {
                        // What is too long is as good as longer.
                        own.elapsed = (own.elapsed + STEP).min(2 * STEP);
                    }
                    if let Phase::Rechecks(_, of) | Phase::Rechecked(_, of) | Phase::Sends(_, of) =
                        &mut fleet.hosts[index].phase
                    {
                        *of = own;
                    }
                }
            }
            Action::Step(host) => self.step(&mut fleet, host),
            Action::Ends(host, signal) => {
                if let Phase::Sends(ticket, _) = std::mem::replace(&mut fleet.hosts[host].phase, Phase::Idle) {
                    self.send(&mut fleet, Message::Report(ticket, signal));
                }
            }
            Action::GivesUp(host) => self.leave(&mut fleet, host, true),
            Action::Crashes(host) => self.leave(&mut fleet, host, false),
            Action::Stops(host) => fleet.hosts[host].stopped = true,
            Action::GoesOn(host) => fleet.hosts[host].stopped = false,
            Action::Arrives(index) => match fleet.adrift.remove(index) {
                Message::Recheck(ticket) => drop(self.rechecked(&mut fleet, ticket)),
                Message::Report(ticket, signal) => self.recorded(&mut fleet, ticket, signal),
                Message::GiveBack(ticket) => fleet.breaker.give_back(&ticket),
            },
            Action::IsAskedInVain => drop(self.admitted(&mut fleet)),
            Action::IsLost(index) => drop(fleet.adrift.remove(index)),
        }
        Some(fleet)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("unexpired probe leases are at most K", |protocol: &Self, fleet: &Fleet| {
                fleet.breaker.leases(fleet.now) <= protocol.settings.probes as usize
            }),
            Property::always(
                "a host that probes holds an unexpired lease, or the epoch is over",
                |_: &Self, fleet: &Fleet| {
                    fleet.running_probes().all(|ticket| fleet.is_over(ticket) || fleet.position(ticket).is_some())
                },
            ),
            Property::always("a result of an older epoch changes nothing", |_: &Self, fleet: &Fleet| {
                !fleet.stale_result_counted
            }),
            Property::always("who is refused and comes back in time passes", |protocol: &Self, fleet: &Fleet| {
                protocol.passes_after_waiting(fleet)
            }),
            Property::always(
                "a closed breaker opens, an open one becomes half-open, and one probe closes it",
                |p: &Self, fleet: &Fleet| p.recovers(fleet),
            ),
            // What the run must have come by, so that the others mean something.
            Property::sometimes("open", |_: &Self, fleet: &Fleet| fleet.breaker.state() == BreakerState::Open),
            Property::sometimes("all leases are taken", |protocol: &Self, fleet: &Fleet| {
                fleet.breaker.leases(fleet.now) == protocol.settings.probes as usize
            }),
            Property::sometimes("a prober is gone and its lease is not", |_: &Self, fleet: &Fleet| {
                fleet.breaker.leases(fleet.now)
                    > fleet.tickets().filter(|ticket| fleet.position(ticket).is_some()).count()
            }),
            Property::sometimes("a stopped prober has lost its lease", |_: &Self, fleet: &Fleet| {
                let lost = |host: &Host| match &host.phase {
                    Phase::Sends(ticket, _) => {
                        ticket.is_probe() && !fleet.is_over(ticket) && fleet.position(ticket).is_none()
                    }
                    _ => false,
                };
                fleet.hosts.iter().any(|host| host.stopped && lost(host))
            }),
            Property::sometimes("a result of an older epoch is under way", |_: &Self, fleet: &Fleet| {
                fleet
                    .adrift
                    .iter()
                    .any(|message| matches!(message, Message::Report(ticket, _) if fleet.is_over(ticket)))
            }),
            Property::sometimes("a probe comes too late to be sent", |protocol: &Self, fleet: &Fleet| {
                let late = |own: &Own| !lease_covers(own.elapsed, ATTEMPT, &protocol.settings);
                fleet
                    .hosts
                    .iter()
                    .any(|host| matches!(&host.phase, Phase::Rechecked(ticket, own) if ticket.is_probe() && late(own)))
            }),
        ]
    }
}

impl Protocol {
    fn passes_after_waiting(&self, fleet: &Fleet) -> bool {
        let mut breaker = fleet.breaker.clone();
        match breaker.admit(fleet.now, &self.settings) {
            Admission::Pass(_) => true,
            Admission::Refused { retry_after, .. } => {
                !retry_after.is_zero()
                    && retry_after <= self.settings.probe_lease.max(self.settings.open_for_max)
                    && matches!(breaker.admit(fleet.now.after(retry_after), &self.settings), Admission::Pass(_))
            }
        }
    }

    /// Left alone by everybody else, K good probes in a row close it.
    fn recovers(&self, fleet: &Fleet) -> bool {
        let (mut breaker, now) = (fleet.breaker.clone(), fleet.now.after(self.settings.probe_lease));
        for _ in 0..self.settings.probes {
            let Admission::Pass(ticket) = breaker.admit(now, &self.settings) else { return false };
            breaker.record(&ticket, BreakerSignal::Success, Duration::ZERO, now, 0, &self.settings);
        }
        breaker.state() == BreakerState::Closed
    }
}

/// What is left of a ticket that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Worth {
    /// Of an older epoch.
    Nothing,
    Plain,
    /// Its lease has run out or was given back.
    LostLease,
    /// The lease with this position in the order of their ends.
    Lease(usize),
}

impl Fleet {
    fn is_over(&self, ticket: &Ticket) -> bool {
        ticket.epoch != self.breaker.epoch
    }

    /// The unexpired leases in the order of their ends.
    fn leases(&self) -> Vec<(Timestamp, u64)> {
        let State::HalfOpen { leases, .. } = &self.breaker.state else { return Vec::new() };
        let mut leases: Vec<_> =
            leases.iter().filter(|(_, ends)| *ends > self.now).map(|(number, ends)| (*ends, *number)).collect();
        leases.sort_unstable();
        leases
    }

    fn position(&self, ticket: &Ticket) -> Option<usize> {
        let lease = ticket.lease?;
        if self.is_over(ticket) { None } else { self.leases().iter().position(|(_, number)| *number == lease) }
    }

    fn worth(&self, ticket: &Ticket) -> Worth {
        match self.position(ticket) {
            _ if self.is_over(ticket) => Worth::Nothing,
            Some(position) => Worth::Lease(position),
            None if ticket.is_probe() => Worth::LostLease,
            None => Worth::Plain,
        }
    }

    /// The host's own clock, where it counts: for a probe that is not over.
    fn clock(&self, host: &Host) -> Option<Own> {
        match &host.phase {
            Phase::Rechecks(_, own) => Some(*own),
            Phase::Rechecked(ticket, own) if ticket.is_probe() => Some(*own),
            Phase::Sends(ticket, own) if ticket.is_probe() && !self.is_over(ticket) => Some(*own),
            _ => None,
        }
    }

    /// Probes that hosts are sending. One that was stopped for longer than its attempt ends it as soon as it goes on.
    fn running_probes(&self) -> impl Iterator<Item = &Ticket> {
        self.hosts.iter().filter(|host| !host.stopped).filter_map(|host| match &host.phase {
            Phase::Sends(ticket, own) if ticket.is_probe() && own.elapsed <= ATTEMPT => Some(ticket),
            _ => None,
        })
    }

    /// Every ticket that a host holds or a message carries.
    fn tickets(&self) -> impl Iterator<Item = &Ticket> {
        let held = self.hosts.iter().filter_map(|host| match &host.phase {
            Phase::Admitted(ticket)
            | Phase::Rechecks(ticket, _)
            | Phase::Rechecked(ticket, _)
            | Phase::Sends(ticket, _) => Some(ticket),
            Phase::Idle => None,
        });
        held.chain(self.adrift.iter().map(|message| match message {
            Message::Recheck(ticket) | Message::Report(ticket, _) | Message::GiveBack(ticket) => ticket,
        }))
    }

    /// All that the future depends on: times as distances from now, numbers as ranks, hosts and messages in any order.
    fn essence(&self) -> impl Hash + PartialEq + use<> {
        let left = |at: &Timestamp| at.since(self.now);
        let breaker = match &self.breaker.state {
            State::Closed { failures_in_row, .. } => (0, *failures_in_row, Vec::new()),
            State::Open { until, .. } => (1, 0, vec![left(until)]),
            State::HalfOpen { successes, .. } => {
                (2, *successes, self.leases().iter().map(|(ends, _)| left(ends)).collect())
            }
            State::ForcedClosed { .. } => (3, 0, Vec::new()),
        };
        let of = |host: &Host| {
            let (phase, ticket) = match &host.phase {
                Phase::Idle => (0, None),
                Phase::Admitted(ticket) => (1, Some(ticket)),
                Phase::Rechecks(ticket, _) => (2, Some(ticket)),
                Phase::Rechecked(ticket, _) => (3, Some(ticket)),
                Phase::Sends(ticket, _) => (4, Some(ticket)),
            };
            (phase, ticket.map(|ticket| self.worth(ticket)), self.clock(host), host.stopped)
        };
        let mut hosts: Vec<_> = self.hosts.iter().map(of).collect();
        hosts.sort_unstable();
        let mut adrift: Vec<_> = self
            .adrift
            .iter()
            .map(|message| match message {
                Message::Recheck(ticket) => (1, self.worth(ticket)),
                Message::GiveBack(ticket) => (2, self.worth(ticket)),
                Message::Report(ticket, BreakerSignal::Ignore) => (3, self.worth(ticket)),
                Message::Report(ticket, BreakerSignal::Success) => (4, self.worth(ticket)),
                Message::Report(ticket, BreakerSignal::Failure) => (5, self.worth(ticket)),
            })
            .collect();
        adrift.sort_unstable();
        (breaker, hosts, adrift, self.stale_result_counted)
    }
}

impl Hash for Fleet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.essence().hash(state);
    }
}

impl PartialEq for Fleet {
    fn eq(&self, other: &Self) -> bool {
        self.essence() == other.essence()
    }
}

fn explore(protocol: Protocol) {
    let checked = protocol.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them unlike", checked.state_count(), checked.unique_state_count());
    checked.assert_properties();
}

fn breaks(protocol: Protocol, property: &'static str) {
    let found = protocol.checker().threads(2).spawn_bfs().join().discovery(property).is_some();
    assert!(found, "not found: {property}");
}

#[test]
fn three_hosts_one_probe_at_a_time() {
    explore(Protocol::new(3, 1, 1));
}

#[test]
fn two_hosts_two_probes_at_a_time() {
    explore(Protocol::new(2, 2, 1));
}

/// The exploration finds what it is for: hosts that do not check their clock.
#[test]
fn without_a_look_at_the_clock_a_late_probe_has_no_lease() {
    let careless = Protocol { careful: false, ..Protocol::new(2, 1, 1) };
    breaks(careless, "a host that probes holds an unexpired lease, or the epoch is over");
}

/// And a store that takes any result.
#[test]
fn without_epochs_a_late_result_counts() {
    let careless = Protocol { epochs: false, ..Protocol::new(2, 1, 1) };
    breaks(careless, "a result of an older epoch changes nothing");
}

#[test]
#[ignore = "minutes"]
fn three_hosts_two_probes_and_more_messages_adrift() {
    explore(Protocol::new(3, 1, 2));
    explore(Protocol::new(3, 2, 1));
    explore(Protocol { stopped: 3, ..Protocol::new(3, 1, 1) });
}
