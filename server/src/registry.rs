//! The registry of users, their processes, sessions and namespaces, and of the use of quotas.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use dashmap::{DashMap, Entry};
use syncd_core::SessionId;
use tokio::sync::{Notify, Semaphore};
use tracing::warn;

use crate::{
    broker::NoNamespace,
    clients::Client,
    journal::StoreError,
    limits::Limits,
    namespace::{Address, Counters, Namespace},
    outbox::Session,
};

/// The most command lines of one user's processes that are read at once.
const READERS: usize = 4;

pub(crate) struct Registry {
    /// All sessions, connected or not, by namespace number and id.
    pub sessions: DashMap<(u64, SessionId), Arc<Session>>,
    pub namespaces: DashMap<Address, Arc<Namespace>>,
    /// Processes by pid and user.
    pub clients: DashMap<(u32, u32), Arc<Client>>,
    /// Counters of namespaces that have ended, by owner.
    pub retired: DashMap<Option<u32>, Counters>,
    /// Notified when a connection or a namespace comes or goes.
    pub changed: Notify,
    users: DashMap<u32, Arc<User>>,
}

/// A user's quota is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: the quota of {limit} per user is used up; free some, or raise it")]
pub(crate) struct QuotaError {
    pub field: &'static str,
    pub limit: usize,
}

/// A user, and what they use over all namespaces.
pub(crate) struct User {
    pub number: u32,
    pub connections: Gauge,
    pub calls: Gauge,
    pub namespaces: Gauge,
    pub watches: Gauge,
    /// Bytes of messages that wait for their sessions' streams.
    pub unsent: Gauge,
    /// Bytes of the state of their namespaces.
    pub memory: Arc<Gauge>,
    /// Permits to read the command lines of their processes.
    pub readers: Arc<Semaphore>,
}

/// The use of a quota, and its limit.
pub(crate) struct Gauge {
    field: &'static str,
    limit: usize,
    used: AtomicUsize,
    refused: AtomicU64,
}

impl Gauge {
    pub fn new(field: &'static str, limit: usize) -> Self {
        Self { field, limit, used: AtomicUsize::new(0), refused: AtomicU64::new(0) }
    }

    /// Takes `n`; return them with [`give_back`](Self::give_back).
    ///
    /// # Errors
    /// If that exceeds the limit.
    pub fn take(&self, n: usize) -> Result<(), QuotaError> {
        let within = |used: usize| used.checked_add(n).filter(|&used| used <= self.limit);
        match self.used.fetch_update(Relaxed, Relaxed, within) {
            Ok(_) => Ok(()),
            Err(_) => {
                let refused = self.refused.fetch_add(1, Relaxed) + 1;
                let Self { field, limit, .. } = *self;
                // Logged ever more rarely: many refusals must not flood the log.
                if refused.is_power_of_two() {
                    warn!(field, limit, refused, "a user's quota is used up");
                }
                Err(QuotaError { field, limit })
            }
        }
    }

    /// Takes `n` if there is room, or if `exempt` in any case. False if the quota is used up.
    pub fn take_unless_full(&self, n: usize, exempt: bool) -> bool {
        let used = self.used.fetch_add(n, Relaxed);
        let taken = exempt || used.saturating_add(n) <= self.limit;
        if !taken {
            self.give_back(n);
        }
        taken
    }

    /// Takes `n`, even beyond the limit.
    pub fn add(&self, n: usize) {
        self.used.fetch_add(n, Relaxed);
    }

    pub fn give_back(&self, n: usize) {
        self.used.fetch_sub(n, Relaxed);
    }

    pub fn field(&self) -> &'static str {
        self.field
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

impl User {
    fn new(number: u32, limits: &Limits) -> Self {
        Self {
            number,
            connections: Gauge::new("connections", limits.connections),
            calls: Gauge::new("calls", limits.calls),
            namespaces: Gauge::new("namespaces", limits.namespaces),
            watches: Gauge::new("watches", limits.watches),
            unsent: Gauge::new("unsent_bytes", limits.unsent_bytes),
            memory: Arc::new(Gauge::new("memory", limits.memory)),
            readers: Arc::new(Semaphore::new(READERS)),
        }
    }
}

impl Registry {
    pub fn new() -> Self {
        Self {
            sessions: DashMap::new(),
            namespaces: DashMap::new(),
            clients: DashMap::new(),
            retired: DashMap::new(),
            changed: Notify::new(),
            users: DashMap::new(),
        }
    }

    /// A user's entry, made if there is none.
    pub fn user(&self, number: u32, limits: &Limits) -> Arc<User> {
        if let Some(user) = self.users.get(&number) {
            return user.clone();
        }
        self.users.entry(number).or_insert_with(|| Arc::new(User::new(number, limits))).clone()
    }

    /// A user's entry, if there is one.
    pub fn known_user(&self, number: u32) -> Option<Arc<User>> {
        self.users.get(&number).map(|user| user.clone())
    }

    /// Removes a user's entry if only the caller refers to it and the user has no namespaces (which
    /// exist without a connection).
    pub fn release_user(&self, user: &Arc<User>) {
        let is_last = |_: &_, entry: &Arc<User>| {
            Arc::ptr_eq(entry, user)
                && Arc::strong_count(entry) <= 2
                && entry.namespaces.used() == 0
        };
        self.users.remove_if(&user.number, is_last);
    }

    /// All current namespaces.
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        self.namespaces.iter().map(|entry| entry.value().clone()).collect()
    }

    /// The namespace at `address`, made by `make` if there is none; and whether it was made.
    ///
    /// # Errors
    /// If the owner's quota of namespaces is used up, or `make` fails.
    pub fn namespace(
        &self,
        address: &Address,
        limits: &Limits,
        make: impl FnOnce() -> Result<Arc<Namespace>, StoreError>,
    ) -> Result<(Arc<Namespace>, bool), NoNamespace> {
        if let Some(found) = self.namespaces.get(address) {
            return Ok((found.clone(), false));
        }
        match self.namespaces.entry(address.clone()) {
            Entry::Occupied(found) => Ok((found.get().clone(), false)),
            Entry::Vacant(vacant) => {
                let user = address.owner.map(|owner| self.user(owner, limits));
                if let Some(user) = &user {
                    user.namespaces.take(1)?;
                }
                let namespace = make().inspect_err(|_| {
                    if let Some(user) = &user {
                        user.namespaces.give_back(1);
                    }
                })?;
                vacant.insert(namespace.clone());
                Ok((namespace, true))
            }
        }
    }

    /// Adds a restored namespace, even beyond the quota.
    pub fn restore(&self, namespace: &Arc<Namespace>, limits: &Limits) {
        if let Some(owner) = namespace.address.owner {
            self.user(owner, limits).namespaces.add(1);
        }
        self.namespaces.insert(namespace.address.clone(), namespace.clone());
    }

    /// Removes a namespace; its address can be used for a new one.
    pub fn retire(&self, namespace: &Namespace) {
        let is_same = |_: &_, other: &Arc<Namespace>| other.number == namespace.number;
        let Some((address, _)) = self.namespaces.remove_if(&namespace.address, is_same) else {
            return;
        };
        if let Some(user) = address.owner.and_then(|owner| self.known_user(owner)) {
            user.namespaces.give_back(1);
            self.release_user(&user);
        }
        self.changed.notify_one();
    }

    /// Whether there are no connections and no namespaces.
    pub fn is_idle(&self) -> bool {
        self.clients.is_empty() && self.namespaces.is_empty()
    }
}
