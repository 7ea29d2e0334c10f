//! Stage 2: exact limits of tenant and user, counted in userspace.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::{Bucket, Denied};
use crate::config::Tenant;

/// The state of stage 2.
#[derive(Debug, Default)]
pub struct Tenants {
    state: Mutex<State>,
    watcher: OnceLock<Watcher>,
}

/// Told a tenant's number and its sessions at every change.
struct Watcher(Box<dyn Fn(u32, u32) + Send + Sync>);

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<Arc<str>, Room>,
}

#[derive(Debug)]
struct Room {
    /// `None`: removed from the configuration while sessions were still open.
    tenant: Option<Arc<Tenant>>,
    active: u32,
    users: HashMap<Arc<str>, u32>,
    bucket: Bucket,
}

/// A session that passed stage 2. Its drop frees the slots of tenant and user.
#[derive(Debug)]
pub struct Admission {
    tenants: Arc<Tenants>,
    name: Arc<str>,
    user: Arc<str>,
    tenant: Arc<Tenant>,
}

/// A tenant as the operator sees it.
#[derive(Clone, Debug)]
pub struct TenantView {
    /// Its name.
    pub name: Arc<str>,
    /// Sessions open now.
    pub active: u32,
    /// Users with a session open.
    pub users: usize,
    /// What the configuration says.
    pub tenant: Arc<Tenant>,
}

impl Tenants {
    /// The tenants of a configuration, all empty.
    pub fn new(tenants: &BTreeMap<String, Tenant>, now: Instant) -> Arc<Self> {
        let this = Arc::new(Self::default());
        this.reload(tenants, now);
        this
    }

    /// New limits from now on; open sessions keep their slots. Returns the names of tenants that are gone.
    pub fn reload(&self, tenants: &BTreeMap<String, Tenant>, now: Instant) -> Vec<Arc<str>> {
        let mut state = self.lock();
        for room in state.tenants.values_mut() {
            room.tenant = None;
        }
        for (name, tenant) in tenants {
            let room = state.tenants.entry(name.as_str().into()).or_insert_with(|| Room::new(now));
            room.tenant = Some(Arc::new(tenant.clone()));
        }
        let gone = state
            .tenants
            .iter()
            .filter(|(_, room)| room.tenant.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        state.tenants.retain(|_, room| room.tenant.is_some() || room.active > 0);
        gone
    }

    /// From now on tells `watcher` a tenant's number and its sessions at every change, in the order of the changes and
    /// under a lock: it must return at once. Only the first watcher counts.
    pub fn watch(&self, watcher: impl Fn(u32, u32) + Send + Sync + 'static) {
        let _ = self.watcher.set(Watcher(Box::new(watcher)));
        self.tell_all();
    }

    /// Tells the watcher every tenant's sessions, changed or not.
    pub fn tell_all(&self) {
        let state = self.lock();
        state.tenants.values().for_each(|room| self.tell(room));
    }

    fn tell(&self, room: &Room) {
        if let (Some(Watcher(watcher)), Some(tenant)) = (self.watcher.get(), &room.tenant) {
            watcher(tenant.number, room.active);
        }
    }

    /// What the configuration says of a tenant.
    pub fn get(&self, name: &str) -> Option<Arc<Tenant>> {
        self.lock().tenants.get(name)?.tenant.clone()
    }

    /// Lets a session in, or says why not.
    pub fn admit(self: &Arc<Self>, name: &str, user: &str, now: Instant) -> Result<Admission, Denied> {
        let mut state = self.lock();
        let (name, room) = match state.tenants.get_key_value(name).map(|(name, _)| name.clone()) {
            Some(name) => (name.clone(), state.tenants.get_mut(&name).ok_or(Denied::UnknownTenant)?),
            None => return Err(Denied::UnknownTenant),
        };
        let tenant = room.tenant.clone().ok_or(Denied::UnknownTenant)?;
        if room.active >= tenant.max_sessions {
            return Err(Denied::TenantFull);
        }
        let most = tenant.max_sessions_per_user.unwrap_or(u32::MAX);
        if room.users.get(user).copied().unwrap_or(0) >= most {
            return Err(Denied::UserFull);
        }
        if tenant.rate.is_some_and(|rate| !room.bucket.take(rate, tenant.burst, now)) {
            return Err(Denied::TenantRate);
        }
        let user = room.seat(user);
        self.tell(room);
        Ok(Admission { tenants: self.clone(), name, user, tenant })
    }

    /// The slots of a session that another process let in; it counts, whatever the limits say. `None`: no such tenant.
    pub fn adopt(self: &Arc<Self>, name: &str, user: &str) -> Option<Admission> {
        let mut state = self.lock();
        let (name, _) = state.tenants.get_key_value(name)?;
        let name = name.clone();
        let room = state.tenants.get_mut(&name)?;
        let tenant = room.tenant.clone()?;
        let user = room.seat(user);
        self.tell(room);
        Some(Admission { tenants: self.clone(), name, user, tenant })
    }

    /// Sessions by tenant and user, those on their way included, and when each tenant's bucket is full: for the process
    /// that takes over.
    pub fn export(&self) -> (Vec<(Arc<str>, Arc<str>, u32)>, Vec<(Arc<str>, Instant)>) {
        let state = self.lock();
        let seats = |(name, room): (&Arc<str>, &Room)| {
            let name = name.clone();
            room.users.iter().map(move |(user, n)| (name.clone(), user.clone(), *n)).collect::<Vec<_>>()
        };
        let buckets = state.tenants.iter().map(|(name, room)| (name.clone(), room.bucket.fills_at()));
        (state.tenants.iter().flat_map(seats).collect(), buckets.collect())
    }

    /// Takes over the buckets of another process.
    pub fn import_buckets(&self, buckets: impl IntoIterator<Item = (Arc<str>, Instant)>) {
        let mut state = self.lock();
        for (name, full_at) in buckets {
            if let Some(room) = state.tenants.get_mut(&name) {
                room.bucket = Bucket::full_at(full_at);
            }
        }
    }

    /// Every configured tenant, by name.
    pub fn list(&self) -> Vec<TenantView> {
        let state = self.lock();
        let mut list: Vec<_> = state
            .tenants
            .iter()
            .filter_map(|(name, room)| {
                let tenant = room.tenant.clone()?;
                Some(TenantView { name: name.clone(), active: room.active, users: room.users.len(), tenant })
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn new(now: Instant) -> Self {
        Self { tenant: None, active: 0, users: HashMap::new(), bucket: Bucket::new(now) }
    }

    /// Takes a slot of the tenant and of the user; returns the user's name, shared.
    fn seat(&mut self, user: &str) -> Arc<str> {
        let user = self.users.get_key_value(user).map_or_else(|| user.into(), |(user, _)| user.clone());
        *self.users.entry(user.clone()).or_default() += 1;
        self.active += 1;
        user
    }
}

impl Admission {
    /// The tenant's name, shared.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The user's name, shared.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }

    /// The tenant as it was configured when the session came in.
    pub fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.tenants.lock();
        let Some(room) = state.tenants.get_mut(&self.name) else { return };
        room.active -= 1;
        self.tenants.tell(room);
        if let Some(n) = room.users.get_mut(&self.user) {
            *n -= 1;
            if *n == 0 {
                room.users.remove(&self.user);
            }
        }
        if room.active == 0 && room.tenant.is_none() {
            state.tenants.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn tenant(max_sessions: u32) -> Tenant {
        Tenant {
            number: 1,
            max_sessions,
            rate: None,
            burst: 1,
            max_sessions_per_user: None,
            sources: vec![],
            addresses: vec![],
            targets: vec![],
            idle: None,
            session: None,
            console_power: Default::default(),
        }
    }

    fn one(tenant: Tenant) -> (Arc<Tenants>, Instant) {
        let now = Instant::now();
        (Tenants::new(&BTreeMap::from([("acme".into(), tenant)]), now), now)
    }

    #[test]
    fn limits_are_exact() {
        for limit in [0, 1, 10, 1000] {
            let (tenants, now) = one(tenant(limit));
            let held: Vec<_> = (0..limit).map(|_| tenants.admit("acme", "u", now).unwrap()).collect();
            assert_eq!(tenants.admit("acme", "u", now).unwrap_err(), Denied::TenantFull);
            drop(held);
            assert_eq!(tenants.list()[0].active, 0);
            assert_eq!(tenants.admit("acme", "u", now).is_ok(), limit > 0);
        }
    }

    #[test]
    fn users_and_rates_have_limits_of_their_own() {
        let (tenants, now) =
            one(Tenant { max_sessions_per_user: Some(1), rate: Some(1), burst: 2, ..tenant(10) });
        let a = tenants.admit("acme", "a", now).unwrap();
        assert_eq!(tenants.admit("acme", "a", now).unwrap_err(), Denied::UserFull);
        let _b = tenants.admit("acme", "b", now).unwrap();
        assert_eq!(tenants.admit("acme", "c", now).unwrap_err(), Denied::TenantRate);
        drop(a);
        assert!(tenants.admit("acme", "a", now + Duration::from_secs(1)).is_ok());
        assert_eq!(tenants.admit("bolt", "a", now).unwrap_err(), Denied::UnknownTenant);
    }

    #[test]
    fn a_removed_tenant_gets_nobody_in_and_its_slots_still_come_back() {
        let (tenants, now) = one(tenant(2));
        let held = tenants.admit("acme", "u", now).unwrap();
        assert_eq!(tenants.reload(&BTreeMap::new(), now), [Arc::from("acme")]);
        assert_eq!(tenants.admit("acme", "u", now).unwrap_err(), Denied::UnknownTenant);
        tenants.reload(&BTreeMap::from([("acme".into(), tenant(2))]), now);
        let _second = tenants.admit("acme", "u", now).unwrap();
        assert_eq!(
            tenants.admit("acme", "u", now).unwrap_err(),
            Denied::TenantFull,
            "the old session still counts"
        );
        drop(held);
        assert!(tenants.admit("acme", "u", now).is_ok());
    }

    #[test]
    fn the_watcher_hears_every_change_in_order() {
        let (tenants, now) = one(tenant(2));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        tenants.watch(move |number, active| ear.lock().unwrap().push((number, active)));
        let first = tenants.admit("acme", "u", now).unwrap();
        let second = tenants.admit("acme", "u", now).unwrap();
        assert!(tenants.admit("acme", "u", now).is_err());
        drop(first);
        drop(second);
        assert_eq!(*heard.lock().unwrap(), [(1, 0), (1, 1), (1, 2), (1, 1), (1, 0)]);
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(limit in 0u32..5, per_user in 1u32..3, moves in prop::collection::vec((any::<bool>(), 0usize..4), 0..60)) {
            let (tenants, now) = one(Tenant { max_sessions_per_user: Some(per_user), ..tenant(limit) });
            let mut held: Vec<Admission> = Vec::new();
            for (enter, n) in moves {
                if enter {
                    let user = ["a", "b", "c", "d"][n];
                    let of_user = held.iter().filter(|h| &**h.user() == user).count() as u32;
                    let should = (held.len() as u32) < limit && of_user < per_user;
                    let got = tenants.admit("acme", user, now);
                    prop_assert_eq!(got.is_ok(), should);
                    held.extend(got);
                } else if n < held.len() {
                    held.swap_remove(n);
                }
                prop_assert_eq!(tenants.list()[0].active as usize, held.len());
            }
        }
    }
}
