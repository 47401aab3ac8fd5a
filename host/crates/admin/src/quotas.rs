//! Request quotas of the admin listener: one per token role, and one per address without a token.
//!
//! The quotas are separate so that callers without a token cannot use up those of scrapers and operators.

use super::role::Role;
use crate::{
    clock::Timestamp,
    rate_limit::{Gcra, Quota},
};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

/// Several times what a scraper, health checks, a page and a script need together.
const QUOTA: Quota = Quota {
    requests: NonZeroU32::new(100).unwrap(),
    period: Duration::from_secs(1),
    burst: NonZeroU32::new(200).unwrap(),
};

/// Addresses with their own quota; further ones share one.
const MAX_ADDRESSES: usize = 1024;

/// The key of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A caller with a token, or with a session that a token began.
    Bearer(Role),
    /// Any other caller.
    Address(IpAddr),
}

/// The quotas and their recent use.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    readers: Gcra,
    writers: Gcra,
    addresses: HashMap<IpAddr, Gcra>,
    others: Gcra,
}

impl Quotas {
    /// Counts a request against its quota.
    ///
    /// # Errors
    /// The time until the caller may try again.
    pub(super) fn admit(&mut self, asker: Asker, now: Timestamp) -> Result<(), Duration> {
        let limit = match asker {
            Asker::Bearer(Role::Read) => &mut self.readers,
            Asker::Bearer(Role::Write) => &mut self.writers,
            Asker::Address(address) => self.address(network(address), now),
        };
        let due = limit.earliest(&QUOTA, now);
        if due > now {
            return Err(due.since(now));
        }
        let _ = limit.take(&QUOTA, now);
        Ok(())
    }

    fn address(&mut self, address: IpAddr, now: Timestamp) -> &mut Gcra {
        if !self.addresses.contains_key(&address) && self.addresses.len() >= MAX_ADDRESSES {
            // An address with an unused quota needs no entry.
            self.addresses.retain(|_, limit| limit.taken(&QUOTA, now) > 0);
            if self.addresses.len() >= MAX_ADDRESSES {
                return &mut self.others;
            }
        }
        self.addresses.entry(address).or_default()
    }
}

/// The network of an address. An IPv6 caller usually has a whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: u32) -> Asker {
        Asker::Address(Ipv4Addr::from_bits(n).into())
    }

    fn admitted(quotas: &mut Quotas, asker: Asker, now: Timestamp) -> usize {
        (0..1000).filter(|_| quotas.admit(asker, now).is_ok()).count()
    }

    #[test]
    fn each_asker_has_a_quota_of_its_own() {
        let (mut quotas, now) = (Quotas::default(), Timestamp(1_000_000_000));
        assert_eq!(admitted(&mut quotas, address(1), now), 200);
        assert_eq!(admitted(&mut quotas, address(2), now), 200, "another address");
        assert_eq!(admitted(&mut quotas, Asker::Bearer(Role::Read), now), 200, "a token, from wherever");
        assert_eq!(admitted(&mut quotas, Asker::Bearer(Role::Write), now), 200, "and the other one");
        assert_eq!(admitted(&mut quotas, address(1), now.after(Duration::from_secs(1))), 100, "a second's worth");
    }

    #[test]
    fn many_addresses_take_a_bounded_room() {
        let (mut quotas, now) = (Quotas::default(), Timestamp(1_000_000_000));
        for n in 0..5000 {
            let _ = quotas.admit(address(n), now);
        }
        assert_eq!(quotas.addresses.len(), MAX_ADDRESSES);
        assert!(admitted(&mut quotas, address(9999), now) < 200, "what is beyond shares one quota");
        let later = now.after(Duration::from_secs(60));
        assert_eq!(admitted(&mut quotas, address(9999), later), 200, "once they are quiet they are forgotten");
    }
}
