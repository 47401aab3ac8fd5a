#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use tokio::time::advance;

const LIMITS: Limits =
    Limits { peer_connections: 3, streams: 4, requests: 12, peer_requests: 8, abandoned: 6, peer_abandoned: 3 };

fn address(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

#[tokio::test(start_paused = true)]
async fn one_peer_leaves_places_to_others() {
    let peers = Peers::new(LIMITS);
    let own: Vec<_> = (0..3).map(|_| peers.connect(address(1)).unwrap()).collect();
    assert!(peers.connect(address(1)).is_none());
    let other = peers.connect(address(2)).unwrap();
    let mut running: Vec<_> = own.iter().flat_map(|own| (0..4).map(|_| peers.begin(Some(own), false))).collect();
    let refused: Vec<_> = running.iter().filter_map(|begun| begun.as_ref().err().copied()).collect();
    assert_eq!(refused, [TooMany { scope: Scope::Peer, limit: 8, abandoned: false }; 4]);
    running.extend((0..4).map(|_| peers.begin(Some(&other), false)));
    assert_eq!(peers.under_way(), (12, 0), "the other one has its share");
    assert_eq!(peers.begin(None, false).unwrap_err().scope, Scope::Host);
    drop((own, running));
    assert!(peers.connect(address(1)).is_some());
    drop(other);
    assert!(peers.known.lock().peers.is_empty(), "a peer with nothing is not kept");
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_network_is_one_peer() {
    let peers = Peers::new(Limits { peer_connections: 1, ..LIMITS });
    let _own = peers.connect("2001:db8::1".parse().unwrap()).unwrap();
    assert!(peers.connect("2001:db8::ffff".parse().unwrap()).is_none());
    assert!(peers.connect("2001:db8:0:1::1".parse().unwrap()).is_some());
    let _v4 = peers.connect("::ffff:10.0.0.1".parse().unwrap()).unwrap();
    assert!(peers.connect(address(1)).is_none(), "the same address in another notation");
}

/// Reset streams free their stream in the protocol, not in these counts.
#[tokio::test(start_paused = true)]
async fn a_write_counts_until_its_work_ends() {
    let peers = Peers::new(LIMITS);
    let connection = peers.connect(address(1)).unwrap();
    let begin = || peers.begin(Some(&connection), true);
    let mut left = Vec::new();
    for _ in 0..3 {
        let work = begin().unwrap();
        drop(work.caller());
        left.push(work);
    }
    assert_eq!(peers.under_way(), (3, 3));
    let refused = begin().unwrap_err();
    assert_eq!(refused, TooMany { scope: Scope::Peer, limit: 3, abandoned: true });
    let read = peers.begin(Some(&connection), false).unwrap();
    let other = peers.connect(address(1)).unwrap();
    assert_eq!(peers.begin(Some(&other), true).unwrap_err().scope, Scope::Peer, "another connection of the peer");
    let foreign = peers.connect(address(2)).unwrap();
    let answered = peers.begin(Some(&foreign), true).unwrap();
    answered.caller().answered();
    drop((connection, left.pop()));
    assert!(peers.begin(Some(&other), true).is_ok(), "the work counts after its connection has ended, and ends");
    drop((left, read, answered));
    assert_eq!(peers.under_way(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_connection_that_is_quiet_for_longest_makes_a_place() {
    let peers = Peers::new(LIMITS);
    let busy = peers.connect(address(1)).unwrap();
    let request = busy.open();
    let quiet = peers.connect(address(1)).unwrap();
    advance(Duration::from_millis(900)).await;
    assert!(!peers.reclaim(), "each of them is young");
    let fresh = peers.connect(address(2)).unwrap();
    advance(Duration::from_secs(2)).await;
    assert!(peers.reclaim());
    quiet.reclaimed().await;
    assert!(!fresh.state.reclaimed.is_cancelled() && !busy.state.reclaimed.is_cancelled());
    assert!(peers.reclaim(), "the other quiet one is next");
    fresh.reclaimed().await;
    assert!(!peers.reclaim(), "one that works is never closed");
    assert_eq!(busy.activity(), Activity::Working);
    drop(request);
    assert_eq!(busy.activity(), Activity::Idle(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_unread_only_if_no_answer_is_in_progress() {
    let peers = Peers::new(LIMITS);
    let connection = peers.connect(address(1)).unwrap();
    let (mut first, second) = (connection.open(), connection.open());
    first.waits();
    advance(Duration::from_secs(5)).await;
    assert_eq!(connection.activity(), Activity::Working, "the second one is");
    drop(second);
    advance(Duration::from_secs(5)).await;
    assert_eq!(connection.activity(), Activity::Unread(Duration::from_secs(5)));
    first.works();
    assert_eq!(connection.activity(), Activity::Working);
}

proptest! {
    /// For any order of begins, leaves and ends, the counts match the live requests, and no limit is exceeded.
    #[test]
    fn counts_follow_what_is_there(steps in prop::collection::vec((0..4_u8, 0..3_usize, any::<bool>()), 1..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let peers = Peers::new(LIMITS);
            let connections: Vec<_> = (0..3).map(|n| peers.connect(address(n / 2)).unwrap()).collect();
            let mut works: Vec<(UnderWay, Option<CallerWaits>)> = Vec::new();
            for (what, n, is_unsafe) in steps {
                match what {
                    0 | 1 => {
                        if let Ok(work) = peers.begin(connections.get(n), is_unsafe) {
                            let caller = work.caller();
                            works.push((work, Some(caller)));
                        }
                    }
                    2 => if let Some((_, caller)) = works.iter_mut().find(|(_, caller)| caller.is_some()) {
                        match (caller.take(), is_unsafe) {
                            (Some(caller), true) => caller.answered(),
                            (caller, _) => drop(caller),
                        }
                    },
                    _ => if !works.is_empty() {
                        // The work ends before or after its caller leaves.
                        drop(works.swap_remove(n % works.len()));
                    },
                }
                let (requests, abandoned) = peers.under_way();
                prop_assert_eq!(requests, works.len());
                prop_assert!(requests <= LIMITS.requests && abandoned <= requests);
            }
            works.clear();
            prop_assert_eq!(peers.under_way(), (0, 0));
            drop(connections);
            prop_assert!(peers.known.lock().peers.is_empty());
            Ok(())
        })?;
    }
}

/// The last work of a peer ends on two threads at once: the later one finds a new count under the address.
#[tokio::test(start_paused = true)]
async fn a_peer_that_has_come_back_is_not_forgotten() {
    let peers = Peers::new(LIMITS);
    let connection = peers.connect(address(1)).unwrap();
    let gone = Arc::clone(&connection.state.peer);
    drop(connection);
    let _back: Vec<_> = (0..3).map(|_| peers.connect(address(1)).unwrap()).collect();
    peers.known.lock().forget(&gone);
    assert!(peers.connect(address(1)).is_none(), "it has all its connections");
}
