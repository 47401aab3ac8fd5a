//! Gates of several hosts with one server, on real time.

use super::*;
use crate::{
    breaker,
    clock::Clock,
    contract::BreakerSignal::{Failure, Success},
    group::{AttemptKind, Recheck, Refusal, Report, Settings},
    rate_limit::Quota,
    retry::budget,
    rng::Rng,
    telemetry::Events,
    {
        Address, RedisConnection,
        admission::{RedisGate, RedisGates},
        test_server::{Proxy, RedisCluster, RedisServer, Way},
    },
};
use std::{num::NonZeroU32, sync::Arc, time::Duration};
use tokio::time::sleep;

pub(super) const MS: Duration = Duration::from_millis(1);

pub(super) struct Host {
    pub(super) gates: Arc<RedisGates>,
    pub(super) gate: Arc<RedisGate>,
    events: Arc<Events>,
}

pub(super) fn settings(breaker: Option<breaker::Settings>, limits: Vec<Quota>) -> Settings {
    let budget = budget::Settings { percent: 100, floor_per_second: 1000, capacity: 1000 };
    Settings { breaker, limits, budget, leased: false, pybreaker: None }
}

pub(super) fn five() -> breaker::Settings {
    breaker::Settings {
        failure_rate_percent: None,
        open_for: 300 * MS,
        jitter_percent: 0,
        probe_lease: Duration::from_secs(2),
        ..breaker::Settings::default()
    }
}

pub(super) fn quota(requests: u32, period: Duration, burst: u32) -> Quota {
    Quota { requests: NonZeroU32::new(requests).unwrap(), period, burst: NonZeroU32::new(burst).unwrap() }
}

pub(super) fn host_at(url: &str, settings: &Settings, timeout: Duration) -> Host {
    let shared =
        crate::Settings { prefix: "test".to_owned(), timeout, ..crate::Settings::new(Address::parse(url).unwrap()) };
    let (clock, entropy) = (Clock::system(), Rng::system());
    let events = Arc::new(Events::new(clock));
    let link = RedisConnection::open(&shared, clock, entropy.clone()).unwrap();
    let gates = RedisGates::open(link, shared.quorum, clock, entropy, Arc::clone(&events));
    let gate = gates.group("api/get", || settings.clone());
    Host { gates, gate, events }
}

pub(super) async fn host(server: &RedisServer, settings: &Settings) -> Host {
    let host = host_at(&server.url(), settings, Duration::from_secs(2));
    soon("its first beat", || host.gate.known.lock().heartbeat.is_some()).await;
    host
}

pub(super) async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        sleep(10 * MS).await;
    }
    panic!("not in 15 s: {what}");
}

impl Host {
    /// One attempt with this result.
    async fn call(&self, signal: crate::contract::BreakerSignal) -> Result<bool, Refusal> {
        let mut grant = self.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await?;
        let probe = grant.is_probe();
        match self.gate.recheck(&mut grant).await {
            Recheck::Send => {}
            Recheck::Refused(refusal) => return Err(refusal),
            Recheck::Wait(wait) => panic!("to wait {wait:?}"),
        }
        self.gate.report(&grant, Report::new(signal, Duration::ZERO));
        self.gates.flush().await;
        Ok(probe)
    }

    fn state(&self) -> breaker::BreakerState {
        self.gate.view().breaker.unwrap().state
    }

    fn opened(&self) -> u64 {
        self.events.transitions("api/get", "breaker-opened")
    }
}

/// Five failures at any hosts open the breaker at all hosts, and one probe closes it at all.
#[tokio::test]
async fn failures_of_two_hosts_open_the_breaker_of_all() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![]);
    let [one, other, third] =
        [host(&server, &settings).await, host(&server, &settings).await, host(&server, &settings).await];
    for host in [&one, &one, &one, &one, &other] {
        assert_eq!(host.call(Failure).await, Ok(false));
    }
    for host in [&one, &other, &third] {
        soon("all know", || host.state() == breaker::BreakerState::Open).await;
        assert!(matches!(host.call(Success).await, Err(Refusal::BreakerOpen { .. })));
        assert_eq!(host.opened(), 1, "reported once");
    }
    soon("its time is over", || third.state() == breaker::BreakerState::HalfOpen).await;
    // A refunded probe leaves its lease to another one.
    let probe = third.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await.unwrap();
    assert!(probe.is_probe());
    assert!(matches!(one.call(Success).await, Err(Refusal::BreakerOpen { .. })), "one at a time");
    third.gate.give_back(&probe);
    third.gates.flush().await;
    assert_eq!(other.call(Success).await, Ok(true));
    for host in [&one, &other, &third] {
        soon("all know", || host.state() == breaker::BreakerState::Closed).await;
        assert_eq!(host.call(Success).await, Ok(false));
        assert_eq!(host.events.transitions("api/get", "breaker-closed"), 1, "reported once");
    }
}

#[tokio::test]
async fn one_bad_host_of_three_opens_its_own_breaker_alone() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![]);
    let [bad, good, third] =
        [host(&server, &settings).await, host(&server, &settings).await, host(&server, &settings).await];
    soon("three live", || bad.gate.known.lock().heartbeat.as_ref().is_some_and(|(heartbeat, _)| heartbeat.live == 3))
        .await;
    for _ in 0..5 {
        assert_eq!(bad.call(Failure).await, Ok(false));
    }
    let refused = bad.call(Failure).await;
    assert!(matches!(refused, Err(Refusal::BreakerOpen { why: breaker::Trip::Consecutive(5), .. })), "{refused:?}");
    assert_eq!(bad.state(), breaker::BreakerState::Open);
    for host in [&good, &third] {
        for _ in 0..10 {
            assert_eq!(host.call(Success).await, Ok(false));
        }
        assert_eq!(host.opened(), 0);
    }
    // The host's own breaker closes by a probe of its own.
    soon("its time is over", || bad.state() == breaker::BreakerState::HalfOpen).await;
    assert_eq!(bad.call(Success).await, Ok(true));
    assert_eq!(bad.state(), breaker::BreakerState::Closed);
}

#[tokio::test]
async fn an_operators_word_goes_for_all() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![]);
    let [one, other] = [host(&server, &settings).await, host(&server, &settings).await];
    assert!(one.gate.force(breaker::Force::Open(Duration::from_secs(60))).await.unwrap());
    soon("the other knows", || other.state() == breaker::BreakerState::Open).await;
    assert!(other.gate.view().breaker.unwrap().forced);
    assert!(matches!(other.call(Success).await, Err(Refusal::BreakerOpen { why: breaker::Trip::Forced, .. })));
    assert!(other.gate.force(breaker::Force::Clear).await.unwrap());
    soon("the first knows", || one.state() == breaker::BreakerState::HalfOpen).await;
    assert_eq!(one.call(Success).await, Ok(true));
    assert!(one.gate.force(breaker::Force::Close(Duration::from_secs(60))).await.unwrap());
    for _ in 0..20 {
        assert_eq!(one.call(Failure).await, Ok(false), "held closed");
    }
    assert!(one.gate.force(breaker::Force::Reset).await.unwrap());
    soon("the other knows", || {
        other.state() == breaker::BreakerState::Closed && !other.gate.view().breaker.unwrap().forced
    })
    .await;
}

#[tokio::test]
async fn limits_and_pauses_hold_for_all_together() {
    let server = RedisServer::start();
    let settings = settings(None, vec![quota(1, Duration::from_secs(60), 6)]);
    let [one, other] = [host(&server, &settings).await, host(&server, &settings).await];
    let mut passed = 0;
    for host in [&one, &other, &one, &other, &one, &other, &one, &other] {
        passed += u32::from(host.call(Success).await.is_ok());
    }
    assert_eq!(passed, 6, "of both together");
    // Another host gets a refunded permit.
    let mut third =
        host(&server, &Settings { limits: vec![quota(1, Duration::from_secs(60), 1)], ..settings.clone() }).await;
    let grant = third.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await.unwrap();
    third.gate.give_back(&grant);
    third.gates.flush().await;
    assert!(third.call(Success).await.is_ok() && third.call(Success).await.is_err());
    // A pause holds for all hosts.
    third = host(&server, &Settings { limits: vec![], ..settings.clone() }).await;
    third.gate.pause(Duration::from_secs(30)).await;
    let refused = one.call(Success).await;
    assert!(matches!(refused, Err(Refusal::RateLimited { quota: None, .. })), "{refused:?}");
    soon("it is pushed", || !other.gate.alone.paused().is_zero()).await;
}

/// An operator at one host lifts the pause for all. A host that missed the message reads the lift with its next heartbeat.
#[tokio::test]
async fn a_pause_is_lifted_for_all_together() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![quota(10, Duration::from_secs(1), 1)]);
    let [one, other, deaf] =
        [host(&server, &settings).await, host(&server, &settings).await, host(&server, &settings).await];
    assert!(!one.gate.lift().await.unwrap(), "no pause yet");
    one.gate.pause(Duration::from_mins(10)).await;
    soon("it is pushed", || [&other, &deaf].iter().all(|host| !host.gate.alone.paused().is_zero())).await;
    let waiting = other.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_mins(20)).await.unwrap();
    assert!(other.gate.lift().await.unwrap());
    soon("the first knows", || one.gate.alone.paused().is_zero()).await;
    assert!(one.gate.lift().await.is_ok_and(|lifted| !lifted), "once");
    // As if the message had been lost.
    deaf.gate.alone.pause(Duration::from_mins(5));
    deaf.gate.known.lock().lifted = Some(0);
    for host in [&one, &other, &deaf] {
        soon("all know", || host.gate.alone.paused().is_zero() && host.gate.view().paused.is_none()).await;
    }
    let next = one.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_secs(1)).await;
    assert!(next.is_ok(), "within the limit: {next:?}");
    // The waiting attempt's reservation is void, also for a refund.
    other.gate.give_back(&waiting);
    other.gates.flush().await;
    let taken = || one.gate.view().limits[0].taken;
    soon("the limit is free again", || taken() == 0).await;
}

/// A grant for an attempt that no longer waits is refunded.
#[tokio::test]
async fn an_attempt_that_leaves_during_its_call_takes_no_permit() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let settings = settings(Some(five()), vec![quota(1, Duration::from_secs(60), 1)]);
    let host = host_at(&proxy.url(), &settings, Duration::from_secs(2));
    soon("its first beat", || host.gate.known.lock().heartbeat.is_some()).await;
    proxy.delay(50 * MS);
    let asked =
        tokio::time::timeout(20 * MS, host.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO)).await;
    assert!(asked.is_err(), "it takes longer");
    proxy.delay(Duration::ZERO);
    soon("it is given back", || host.gate.view().limits[0].taken == 0 && server.calls("evalsha") > 0).await;
    let mut passed = false;
    for _ in 0..100 {
        passed = passed || host.call(Success).await.is_ok();
        sleep(10 * MS).await;
    }
    assert!(passed);
}

#[tokio::test]
async fn without_the_store_each_host_goes_on_with_its_share() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let settings = settings(Some(five()), vec![quota(1, Duration::from_secs(60), 10)]);
    let one = host_at(&proxy.url(), &settings, 200 * MS);
    let other = host(&server, &settings).await;
    soon("two live", || one.gate.known.lock().heartbeat.as_ref().is_some_and(|(heartbeat, _)| heartbeat.live == 2))
        .await;
    proxy.set(Way::Cut);
    let mut alone = 0;
    for _ in 0..10 {
        match one.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await {
            Ok(grant) => {
                alone += u32::from(matches!(grant, Grant::Alone(_)));
                one.gate.report(&grant, Report::new(Failure, Duration::ZERO));
            }
            Err(refusal) => assert!(matches!(refusal, Refusal::RateLimited { .. } | Refusal::BreakerOpen { .. })),
        }
    }
    assert_eq!(alone, 5, "half of the limit, and then its own breaker is open too");
    assert_eq!(one.standing_alone(), breaker::BreakerState::Open);
    // A host that does not know its share of the limits refuses.
    let late = host_at(&proxy.url(), &settings, 200 * MS);
    let refused = late.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await.map(drop);
    assert!(matches!(refused, Err(Refusal::RateLimited { .. })), "{refused:?}");
    assert_eq!(other.call(Success).await, Ok(false));
    assert_eq!(other.state(), breaker::BreakerState::Closed, "what one saw alone is not the fleet's");
}

impl Host {
    fn standing_alone(&self) -> breaker::BreakerState {
        self.gate.alone.view().breaker.unwrap().state
    }
}

#[tokio::test]
async fn an_open_breaker_survives_a_server_that_loses_it() {
    let mut server = RedisServer::start();
    let settings = settings(Some(breaker::Settings { open_for: Duration::from_secs(30), ..five() }), vec![]);
    let [one, other] = [host(&server, &settings).await, host(&server, &settings).await];
    for host in [&one, &one, &one, &one, &other] {
        assert_eq!(host.call(Failure).await, Ok(false));
    }
    soon("both know", || [&one, &other].iter().all(|host| host.state() == breaker::BreakerState::Open)).await;
    server.restart();
    // The first script creates the breaker closed; hosts with a copy open it again.
    let fresh = host(&server, &settings).await;
    soon("all know", || [&one, &other, &fresh].iter().all(|host| host.state() == breaker::BreakerState::Open)).await;
    assert!(matches!(one.call(Success).await, Err(Refusal::BreakerOpen { .. })), "never closed in between");
    assert_eq!(one.events.transitions("api/get", "breaker-closed"), 0);
}

#[tokio::test]
async fn leased_permits_need_no_call_and_stay_within_the_limit() {
    leased(Some(five())).await;
}

#[tokio::test]
async fn leased_places_need_no_breaker() {
    leased(None).await;
}

async fn leased(breaker: Option<breaker::Settings>) {
    let server = RedisServer::start();
    let has_breaker = breaker.is_some();
    let settings = Settings { leased: true, ..settings(breaker, vec![quota(4_000, Duration::from_secs(1), 400)]) };
    let one = host(&server, &settings).await;
    if has_breaker {
        soon("it is fresh", || one.gate.known.lock().fleet.state() == Some(State::Closed)).await;
    }
    let () = server.ask(&["CONFIG", "RESETSTAT"]);
    let began = tokio::time::Instant::now();
    let mut passed = 0_u32;
    while began.elapsed() < Duration::from_secs(1) {
        let grant = one.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::from_millis(500)).await.unwrap();
        sleep(grant.wait()).await;
        let mut grant = grant;
        if one.gate.recheck(&mut grant).await == Recheck::Send {
            passed += 1;
            one.gate.report(&grant, Report::new(Success, Duration::ZERO));
        }
    }
    let most = 400 + 4_000 * u32::try_from(began.elapsed().as_millis()).unwrap() / 1000 + 400;
    assert!(passed <= most, "{passed} of {most}");
    let asked = server.calls("evalsha");
    assert!(asked * 10 < u64::from(passed), "{asked} steps for {passed} attempts");
    if has_breaker {
        soon("what is saved up arrives", || {
            one.gate.view().breaker.unwrap().counts.calls_milli / 1000 >= u64::from(passed) * 8 / 10
        })
        .await;
    }
}

/// Over a reload an unchanged limit keeps its count, at any index in the list.
#[tokio::test]
async fn a_limit_keeps_its_count_over_a_reload() {
    let server = RedisServer::start();
    let (quick, slow) = (quota(1_000, Duration::from_secs(1), 1_000), quota(1, Duration::from_secs(3_600), 2));
    let one = host(&server, &settings(None, vec![quick, slow])).await;
    for _ in 0..2 {
        assert_eq!(one.call(Success).await, Ok(false));
    }
    for (limits, passes) in [(vec![slow], false), (vec![quick], true), (vec![slow, quick], false)] {
        one.gate.adopt(settings(None, limits.clone()));
        assert_eq!(one.call(Success).await.is_ok(), passes, "{limits:?}");
    }
}

/// A disabled breaker refuses nothing. An enabled one starts from the state in Redis.
#[tokio::test]
async fn a_breaker_can_be_switched_off_while_it_is_open() {
    let server = RedisServer::start();
    let one = host(&server, &settings(Some(five()), vec![])).await;
    assert!(one.gate.force(breaker::Force::Open(Duration::from_secs(60))).await.unwrap());
    assert!(one.call(Success).await.is_err());
    one.gate.adopt(settings(None, vec![]));
    assert_eq!(one.call(Success).await, Ok(false));
    one.gate.adopt(settings(Some(five()), vec![]));
    assert!(matches!(one.call(Success).await, Err(Refusal::BreakerOpen { why: breaker::Trip::Forced, .. })));
}

/// After a restart from an older dump or a failover to a lagging replica, the hosts' copies take precedence.
#[tokio::test]
async fn a_server_with_older_data_closes_nothing() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![]);
    let one = host(&server, &settings).await;
    assert_eq!(one.call(Success).await, Ok(false));
    let key = "test:{api/get}:gate";
    let older: Vec<u8> = server.ask(&["DUMP", key]);
    assert!(one.gate.force(breaker::Force::Open(Duration::from_secs(60))).await.unwrap());
    let mut command = redis::cmd("RESTORE");
    command.arg(key).arg(0).arg(older).arg("REPLACE").exec(&mut server.connection()).unwrap();
    let late = host(&server, &settings).await;
    soon("the one that knows tells the other", || late.state() == breaker::BreakerState::Open).await;
    assert!(one.call(Success).await.is_err() && late.call(Success).await.is_err());
    assert_eq!(one.events.transitions("api/get", "breaker-closed"), 0);
}

/// A group with data of the wrong type does not affect other groups.
#[tokio::test]
async fn one_groups_trouble_is_not_the_others() {
    let server = RedisServer::start();
    for name in 0..8 {
        let () = server.ask(&["SET", &format!("test:{{api/{name}}}:gate"), "strange"]);
    }
    let host = host_at(&server.url(), &settings(None, vec![]), Duration::from_secs(2));
    for name in 0..8 {
        host.gates.group(&format!("api/{name}"), || settings(None, vec![]));
    }
    let gates: Vec<_> =
        (10..14).map(|name| host.gates.group(&format!("api/{name}"), || settings(None, vec![]))).collect();
    for gate in gates {
        soon("its beat", || gate.known.lock().heartbeat.is_some()).await;
    }
}

/// All keys of a script are in one hash slot, even if the group's name has braces.
#[tokio::test]
async fn gates_work_on_a_cluster() {
    let cluster = RedisCluster::start();
    let settings = settings(Some(five()), vec![quota(1, Duration::from_secs(60), 100)]);
    let [one, other] = [(); 2].map(|()| host_at(&cluster.url(), &settings, Duration::from_secs(5)));
    for name in ["api/get", "api/{braces} and blanks", "api/third", "other/get"] {
        let gates = [&one, &other].map(|host| host.gates.group(name, || settings.clone()));
        for gate in &gates {
            soon("its first beat", || gate.known.lock().heartbeat.is_some()).await;
        }
        for turn in 0..6 {
            let grant = gates[turn % 2].acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await.unwrap();
            assert!(matches!(grant, Grant::Shared(_)), "{name}");
            gates[turn % 2].report(&grant, Report::new(Failure, Duration::ZERO));
            one.gates.flush().await;
            other.gates.flush().await;
            if turn == 4 {
                break;
            }
        }
        for gate in &gates {
            soon("it is pushed", || gate.view().breaker.unwrap().state == breaker::BreakerState::Open).await;
        }
    }
}

/// With full memory, a replica or a silent server, each host falls back to itself, and later returns.
#[tokio::test]
async fn a_server_that_refuses_is_as_good_as_none() {
    let server = RedisServer::start();
    let settings = settings(Some(five()), vec![]);
    let host = host_at(&server.url(), &settings, 100 * MS);
    let is_alone = async || {
        let grant = host.gate.acquire(AttemptKind::First, Duration::ZERO..=Duration::ZERO).await.unwrap();
        host.gate.give_back(&grant);
        matches!(grant, Grant::Alone(_))
    };
    soon("its first beat", || host.gate.known.lock().heartbeat.is_some()).await;
    assert!(!is_alone().await);
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(is_alone().await, "full");
    let () = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(!is_alone().await, "no longer full");
    let () = server.ask(&["SCRIPT", "FLUSH"]);
    assert!(!is_alone().await, "scripts are loaded again");
    let () = server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(is_alone().await, "a replica");
    let () = server.ask(&["REPLICAOF", "NO", "ONE"]);
    for (what, alone) in [("a master again", false), ("stopped", true), ("goes on", false)] {
        match what {
            "stopped" => server.stop(),
            _ => server.go_on(),
        }
        let mut found = !alone;
        for _ in 0..300 {
            found = is_alone().await;
            if found == alone {
                break;
            }
            sleep(10 * MS).await;
        }
        assert_eq!(found, alone, "{what}");
    }
}
