//! The queue for admission, and when waiting in it is useful. Pure.
//!
//! A queue that empties again and again is a burst, and all its requests are served. One that never empties is a standing queue, a sign of
//! overload: waiting in it helps no request, and only adds its length to every response time (`CoDel`, RFC 8289; its form for servers is
//! Facebook's, in "Fail at Scale", ACM Queue 13-8).

use super::Priority;
use crate::clock::Timestamp;
use std::{collections::VecDeque, time::Duration};

/// If no request had to wait for this long, a standing queue counts as gone.
const PRESSURE_TIME: Duration = Duration::from_millis(100);

/// Waiting requests: the highest priority first, then in order of arrival.
#[derive(Debug)]
pub struct WaitQueue<T> {
    lanes: [VecDeque<(u64, T)>; Priority::ALL.len()],
    tickets: u64,
    /// Since when the queue has not been empty.
    since: Option<Timestamp>,
    /// When a request last had to wait.
    last: Timestamp,
    is_standing: bool,
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        let lanes = std::array::from_fn(|_| VecDeque::new());
        Self { lanes, tickets: 0, since: None, last: Timestamp::default(), is_standing: false }
    }
}

impl<T> WaitQueue<T> {
    /// How many waiting requests are served before a new one of this priority.
    pub fn ahead(&self, priority: Priority) -> usize {
        self.lanes[priority as usize..].iter().map(VecDeque::len).sum()
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.ahead(Priority::Low)
    }

    /// Records that a request must wait or is refused. Returns whether the queue is standing, so that waiting does not help.
    pub fn pressed(&mut self, burst: Duration, now: Timestamp) -> bool {
        self.last = now;
        self.is_standing |= self.since.is_some_and(|since| now.since(since) >= burst);
        self.is_standing
    }

    /// Whether a request had to wait a moment ago.
    pub fn is_pressed(&self, now: Timestamp) -> bool {
        !self.is_empty() || now.since(self.last) < PRESSURE_TIME
    }

    /// Records that a request need not wait.
    pub fn passed(&mut self, now: Timestamp) {
        if self.is_standing && !self.is_pressed(now) {
            self.is_standing = false;
        }
    }

    /// Adds a request. The returned ticket serves to leave the queue.
    pub fn push(&mut self, priority: Priority, waiter: T, now: Timestamp) -> u64 {
        self.since.get_or_insert(now);
        self.tickets += 1;
        self.lanes[priority as usize].push_back((self.tickets, waiter));
        self.tickets
    }

    /// Removes the next request.
    pub fn pop(&mut self) -> Option<T> {
        let next = self.lanes.iter_mut().rev().find_map(VecDeque::pop_front).map(|(_, waiter)| waiter);
        self.emptied();
        next
    }

    /// Removes a request that gave up.
    pub fn leave(&mut self, priority: Priority, ticket: u64) {
        let lane = &mut self.lanes[priority as usize];
        if let Ok(index) = lane.binary_search_by_key(&ticket, |(own, _)| *own) {
            lane.remove(index);
        }
        self.emptied();
    }

    fn emptied(&mut self) {
        if self.is_empty() {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Timestamp {
        Timestamp(1_000_000 + ms * 1000)
    }

    #[test]
    fn the_highest_goes_first_and_who_leaves_is_out() {
        let mut line = WaitQueue::default();
        let first = line.push(Priority::Low, "low", at(0));
        line.push(Priority::Normal, "one", at(0));
        let gone = line.push(Priority::Normal, "gone", at(0));
        line.push(Priority::Normal, "two", at(0));
        line.push(Priority::High, "high", at(0));
        assert_eq!((line.ahead(Priority::High), line.ahead(Priority::Normal), line.len()), (1, 4, 5));
        line.leave(Priority::Normal, gone);
        line.leave(Priority::Normal, gone);
        line.leave(Priority::High, first);
        assert_eq!(
            [line.pop(), line.pop(), line.pop(), line.pop(), line.pop()],
            [Some("high"), Some("one"), Some("two"), Some("low"), None]
        );
    }

    #[test]
    fn a_line_that_empties_is_a_burst_and_one_that_does_not_stands() {
        let mut line = WaitQueue::default();
        for ms in 0..5000 {
            assert!(!line.pressed(BURST, at(ms)), "{ms}: it was empty a moment ago");
            line.push(Priority::Normal, (), at(ms));
            line.pop();
        }
        line.push(Priority::Normal, (), at(5000));
        assert!(!line.pressed(BURST, at(5999)));
        assert!(line.pressed(BURST, at(6000)));
        line.pop();
        line.passed(at(6050));
        assert!(line.pressed(BURST, at(6060)), "it was empty for a moment only");
        line.passed(at(6160));
        assert!(!line.pressed(BURST, at(6161)));
    }
}
