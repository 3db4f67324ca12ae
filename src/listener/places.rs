//! The limits of a listener: connections, handshakes, and bytes of bodies in memory, per address and in total. A
//! connection needs a *place*.
//!
//! When no place is free, a connection without a request is dropped. The order is: one that has sent nothing, an idle
//! one, one in its handshake. Among equals, the one that has waited longest is dropped. A connection with a request
//! under way is never dropped for another. An address is one IPv4 address or one IPv6 /64. A trusted proxy has no limit
//! per address, because it speaks for many clients.
//!
//! This module knows nothing of TLS and HTTP, and stores nothing.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Limits;
use super::counters::{Counters, RefusalReason};
use crate::model::forwarded::share_of;

/// The state of a connection, in the order in which connections are dropped. `Busy` connections are never dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Accepted; no byte has arrived.
    Silent,
    /// Handed to the server; no request is under way.
    Idle,
    /// In its handshake.
    Handshaking,
    Busy,
}

impl Stage {
    fn is_handshake(self) -> bool {
        matches!(self, Self::Silent | Self::Handshaking)
    }
}

#[derive(Clone)]
pub(super) struct Places(Arc<SharedTable>);

struct SharedTable {
    limits: Limits,
    counters: Arc<Counters>,
    table: Mutex<PlaceTable>,
}

#[derive(Default)]
struct PlaceTable {
    /// The last number given to a connection or a change of stage.
    next: u64,
    open: HashMap<u64, PlaceEntry>,
    all: Order,
    shares: HashMap<u128, Order>,
}

struct PlaceEntry {
    share: Option<u128>,
    stage: Stage,
    since: u64,
    exchanges: usize,
    evicted: Arc<Notify>,
}

/// Connections by stage, then by the time they entered it; and the bytes that they have in memory.
#[derive(Default)]
struct Order {
    connections: BTreeSet<(Stage, u64, u64)>,
    handshakes: usize,
    bytes: usize,
}

impl Order {
    fn insert(&mut self, key: (Stage, u64, u64)) {
        self.connections.insert(key);
        self.handshakes += usize::from(key.0.is_handshake());
    }

    fn remove(&mut self, key: (Stage, u64, u64)) {
        if self.connections.remove(&key) {
            self.handshakes -= usize::from(key.0.is_handshake());
        }
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.bytes == 0
    }

    /// The connection to drop for a new one.
    fn first(&self) -> Option<u64> {
        self.connections.first().filter(|(stage, ..)| *stage != Stage::Busy).map(|(.., id)| *id)
    }

    /// The handshake to drop for a new one.
    fn first_handshake(&self) -> Option<u64> {
        let mut silent = self.connections.range((Stage::Silent, 0, 0)..(Stage::Idle, 0, 0));
        let mut others = self.connections.range((Stage::Handshaking, 0, 0)..(Stage::Busy, 0, 0));
        silent.next().or_else(|| others.next()).map(|(.., id)| *id)
    }
}

impl PlaceTable {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn orders(&mut self, share: Option<u128>, mut change: impl FnMut(&mut Order)) {
        change(&mut self.all);
        if let Some(share) = share {
            let order = self.shares.entry(share).or_default();
            change(order);
            if order.is_empty() {
                self.shares.remove(&share);
            }
        }
    }

    fn move_to(&mut self, id: u64, stage: Stage) {
        let since = self.number();
        let Some(entry) = self.open.get_mut(&id) else { return };
        let (share, before) = (entry.share, (entry.stage, entry.since, id));
        (entry.stage, entry.since) = (stage, since);
        self.orders(share, |order| {
            order.insert((stage, since, id));
            order.remove(before);
        });
    }

    fn remove(&mut self, id: u64) -> Option<PlaceEntry> {
        let entry = self.open.remove(&id)?;
        self.orders(entry.share, |order| order.remove((entry.stage, entry.since, id)));
        Some(entry)
    }
}

impl Places {
    pub fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        Self(Arc::new(SharedTable { limits, counters, table: Mutex::default() }))
    }

    /// Takes a place for a connection that was just accepted. `address`: counts against this address; `None`: against
    /// no address.
    pub fn enter(&self, address: Option<IpAddr>) -> Result<Arc<Place>, RefusalReason> {
        let share = address.map(share_of);
        let mut table = self.lock();
        self.make_room(&mut table, share, true)?;
        let id = table.number();
        let (stage, since, evicted) = (Stage::Silent, id, Arc::new(Notify::new()));
        table.open.insert(id, PlaceEntry { share, stage, since, exchanges: 0, evicted: evicted.clone() });
        table.orders(share, |order| order.insert((stage, since, id)));
        Ok(Arc::new(Place { id, places: self.clone(), evicted }))
    }

    /// Drops connections until one more fits. `is_new`: the connection is not in `table` yet.
    fn make_room(&self, table: &mut PlaceTable, share: Option<u128>, is_new: bool) -> Result<(), RefusalReason> {
        let limits = &self.0.limits;
        if let Some(order) = share.and_then(|share| table.shares.get(&share)) {
            let is_full = order.connections.len() >= limits.max_connections_per_address;
            let victim = if order.handshakes >= limits.max_handshakes_per_address {
                order.first_handshake()
            } else if is_full {
                order.first()
            } else {
                None
            };
            if victim.is_none() && is_full {
                return Err(RefusalReason::AddressFull);
            }
            self.evict(table, victim);
        }
        if is_new {
            let is_full = table.open.len() >= limits.max_connections;
            let victim = if table.all.handshakes >= limits.max_handshakes {
                table.all.first_handshake()
            } else if is_full {
                table.all.first()
            } else {
                None
            };
            if victim.is_none() && is_full {
                return Err(RefusalReason::ListenerFull);
            }
            self.evict(table, victim);
        }
        Ok(())
    }

    fn evict(&self, table: &mut PlaceTable, victim: Option<u64>) {
        if let Some(entry) = victim.and_then(|id| table.remove(id)) {
            // A dropped handshake is counted by its own task.
            if !entry.stage.is_handshake() {
                self.0.counters.count(RefusalReason::IdleEvicted);
            }
            entry.evicted.notify_one();
        }
    }

    fn charge(&self, share: Option<u128>, bytes: usize) -> bool {
        let limits = &self.0.limits;
        let mut table = self.lock();
        let of_share = share.and_then(|share| table.shares.get(&share)).map_or(0, |order| order.bytes);
        let fits = table.all.bytes + bytes <= limits.max_buffered_bytes
            && (share.is_none() || of_share + bytes <= limits.max_buffered_bytes_per_address);
        if fits {
            table.orders(share, |order| order.bytes += bytes);
        } else {
            self.0.counters.count(RefusalReason::NoMemory);
        }
        fits
    }

    fn release(&self, share: Option<u128>, bytes: usize) {
        let mut table = self.lock();
        table.orders(share, |order| order.bytes -= bytes);
    }

    fn lock(&self) -> MutexGuard<'_, PlaceTable> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection. Dropping it frees the place.
pub struct Place {
    id: u64,
    places: Places,
    evicted: Arc<Notify>,
}

impl Place {
    /// The first bytes have arrived.
    pub(super) fn heard(&self) {
        self.places.lock().move_to(self.id, Stage::Handshaking);
    }

    /// Counts the connection against the client address that its PROXY header names.
    pub(super) fn belongs_to(&self, address: IpAddr) -> Result<(), RefusalReason> {
        let share = Some(share_of(address));
        let mut table = self.places.lock();
        self.places.make_room(&mut table, share, false)?;
        let Some(mut entry) = table.remove(self.id) else { return Err(RefusalReason::HandshakeEvicted) };
        entry.share = share;
        let key = (entry.stage, entry.since, self.id);
        table.open.insert(self.id, entry);
        table.orders(share, |order| order.insert(key));
        Ok(())
    }

    /// The handshake is done.
    pub(super) fn established(&self) {
        self.places.lock().move_to(self.id, Stage::Idle);
    }

    pub(super) fn begin_exchange(&self) {
        let mut table = self.places.lock();
        let Some(entry) = table.open.get_mut(&self.id) else { return };
        entry.exchanges += 1;
        if entry.exchanges == 1 {
            table.move_to(self.id, Stage::Busy);
        }
    }

    pub(super) fn end_exchange(&self) {
        let mut table = self.places.lock();
        let Some(entry) = table.open.get_mut(&self.id) else { return };
        entry.exchanges -= 1;
        if entry.exchanges == 0 {
            table.move_to(self.id, Stage::Idle);
        }
    }

    /// Resolves when the place is given to another connection.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Reserves `bytes` of memory for a body. `None`: the limit of the address or of the listener is reached.
    pub(super) fn charge(&self, bytes: usize) -> Option<Charge> {
        let share = self.places.lock().open.get(&self.id).and_then(|entry| entry.share);
        self.places.charge(share, bytes).then(|| Charge { places: self.places.clone(), share, bytes })
    }

    pub(super) fn count(&self, reason: RefusalReason) {
        self.places.0.counters.count(reason);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(self.id);
    }
}

/// Bytes that are in memory until this is dropped.
pub(super) struct Charge {
    places: Places,
    share: Option<u128>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.places.release(self.share, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn places(limits: Limits) -> (Places, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (Places::new(limits, counters.clone()), counters)
    }

    fn small() -> Limits {
        Limits {
            max_connections: 6,
            max_connections_per_address: 3,
            max_handshakes: 4,
            max_handshakes_per_address: 2,
            max_buffered_bytes: 100,
            max_buffered_bytes_per_address: 60,
            ..Limits::default()
        }
    }

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn is_evicted(place: &Place) -> bool {
        !place.places.lock().open.contains_key(&place.id)
    }

    #[test]
    fn the_oldest_silent_connection_of_an_address_makes_room_and_no_other_address_is_touched() {
        let (places, _) = places(small());
        let other = places.enter(address("192.0.2.2")).unwrap();
        let first = places.enter(address("192.0.2.1")).unwrap();
        let second = places.enter(address("::ffff:192.0.2.1")).unwrap();
        first.heard();
        let third = places.enter(address("192.0.2.1")).unwrap();
        assert!(is_evicted(&second), "the second is silent, the older one has sent bytes");
        assert!(!is_evicted(&first) && !is_evicted(&third) && !is_evicted(&other));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let (places, _) = places(small());
        let first = places.enter(address("2001:db8::1")).unwrap();
        let _second = places.enter(address("2001:db8::ffff:2")).unwrap();
        let next = places.enter(address("2001:db8:0:1::1")).unwrap();
        assert!(!is_evicted(&first));
        let _third = places.enter(address("2001:db8::3")).unwrap();
        assert!(is_evicted(&first) && !is_evicted(&next));
    }

    #[test]
    fn a_connection_with_a_request_is_never_dropped_and_the_next_of_its_address_is_refused() {
        let (places, counters) = places(small());
        let busy: Vec<_> = (0..3)
            .map(|_| {
                let place = places.enter(address("192.0.2.1")).unwrap();
                place.established();
                place.begin_exchange();
                place
            })
            .collect();
        assert_eq!(places.enter(address("192.0.2.1")).err(), Some(RefusalReason::AddressFull));
        let other = places.enter(address("192.0.2.2")).unwrap();
        busy[1].end_exchange();
        let _next = places.enter(address("192.0.2.1")).unwrap();
        assert!(is_evicted(&busy[1]) && !is_evicted(&busy[0]) && !is_evicted(&busy[2]) && !is_evicted(&other));
        assert_eq!(counters.by_reason[RefusalReason::IdleEvicted as usize].load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_full_listener_drops_the_oldest_silent_one_of_all_and_refuses_when_all_are_busy() {
        let (places, _) = places(Limits { max_connections: 3, ..small() });
        let enter = |last: u8| places.enter(Some(IpAddr::from([192, 0, 2, last])));
        let (one, two, three) = (enter(1).unwrap(), enter(2).unwrap(), enter(3).unwrap());
        one.established();
        let four = enter(4).unwrap();
        assert!(is_evicted(&two) && !is_evicted(&one), "a silent connection is dropped before an idle one");
        for place in [&one, &three, &four] {
            place.established();
            place.begin_exchange();
        }
        assert_eq!(enter(5).err(), Some(RefusalReason::ListenerFull));
    }

    #[test]
    fn a_proxy_has_no_share_and_its_clients_have() {
        let (places, _) = places(Limits { max_connections: 100, max_handshakes: 100, ..small() });
        let silent: Vec<_> = (0..20).map(|_| places.enter(None).unwrap()).collect();
        assert!(silent.iter().all(|place| !is_evicted(place)));
        for place in &silent[..3] {
            place.belongs_to(address("192.0.2.1").unwrap()).unwrap();
        }
        assert!(is_evicted(&silent[0]) && !is_evicted(&silent[1]) && !is_evicted(&silent[2]));
        silent[3].belongs_to(address("192.0.2.2").unwrap()).unwrap();
        assert!(silent[1..].iter().all(|place| !is_evicted(place)));
    }

    #[test]
    fn bytes_are_bounded_for_an_address_and_in_all_and_are_given_back() {
        let (places, _) = places(small());
        let (one, two) = (places.enter(address("192.0.2.1")).unwrap(), places.enter(address("192.0.2.2")).unwrap());
        let held = one.charge(60).unwrap();
        assert!(one.charge(1).is_none(), "the limit of the address");
        let more = two.charge(40).unwrap();
        assert!(two.charge(1).is_none(), "the limit of the listener");
        drop(held);
        assert!(two.charge(20).is_some());
        drop((one, two, more));
        let table = places.lock();
        assert!(table.open.is_empty() && table.shares.is_empty() && table.all.is_empty());
    }
}
