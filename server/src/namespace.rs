//! One namespace: its address, its [`Space`] behind a lock, and its counters.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering::Relaxed},
};

use syncd_core::{RecordKind, Space, Step, Time, Totals, fair_limit};
use tokio::sync::Notify;

mod similar;
pub(crate) use similar::similar;

use crate::{
    entry::{self, Member, Members, Page},
    journal::{Done, Journal, Store as _, StoreError},
    limits::{weigh, weigh_share},
    outbox::Session,
    panic,
    registry::{Gauge, QuotaError},
    watch::Watches,
};

/// The most bytes of one journal record: a request with the longest name and label.
const RECORD: usize = 2048;

/// The most bytes of an abandonment in a snapshot, without its session's label.
const ABANDONMENT: usize = 96;

/// The longest name of a namespace, and the longest label of a session, in bytes.
pub(crate) const MAX_NAME: usize = 255;

/// A namespace's owner and name, shown as `1000`, `1000/name` or `shared/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    /// `None`: shared by configuration, for all users.
    pub owner: Option<u32>,
    pub name: Arc<str>,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.owner, &*self.name) {
            (Some(uid), "") => write!(f, "{uid}"),
            (Some(uid), name) => write!(f, "{uid}/{name}"),
            (None, name) => write!(f, "shared/{name}"),
        }
    }
}

/// Why the caller can't use the namespace that a text names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("namespace: at most {MAX_NAME} bytes, and no control characters")]
    Malformed,
    #[error("namespace '{0}' is another user's: a name that begins with a user's number is theirs")]
    Denied(String),
    #[error(
        "namespace 'shared/{0}' isn't shared: have the daemon share it (syncd --share), or name another"
    )]
    NotShared(String),
}

impl Address {
    /// The namespace that `text` means to `caller`: empty for their default one; a name for the
    /// shared one of that name, else their own; or an address as it is shown (another user's for
    /// root only). `shared/name` is always the shared one.
    pub fn resolve(text: &str, caller: u32, shared: &[String]) -> Result<Self, AddressError> {
        if text.len() > MAX_NAME || text.contains(char::is_control) {
            return Err(AddressError::Malformed);
        }
        let is_shared = |name: &str| shared.iter().any(|s| s == name);
        if let Some(name) = text.strip_prefix("shared/")
            && !is_shared(name)
        {
            return Err(AddressError::NotShared(name.to_owned()));
        }
        let (first, rest) = text.split_once('/').unwrap_or((text, ""));
        // "+5" and "007" aren't shown like that: they are ordinary names.
        let number = first.parse::<u32>().ok().filter(|uid| uid.to_string() == first);
        let (owner, name) = if let Some(uid) = number {
            if uid != caller && caller != 0 {
                return Err(AddressError::Denied(text.to_owned()));
            }
            (Some(uid), rest)
        } else if first == "shared" && !rest.is_empty() {
            (None, rest)
        } else {
            ((!is_shared(text)).then_some(caller), text)
        };
        Ok(Self { owner, name: name.into() })
    }

    /// Parses what [`Display`](fmt::Display) writes.
    pub fn shown(text: &str) -> Option<Self> {
        let (first, name) = text.split_once('/').unwrap_or((text, ""));
        let owner = match first {
            "shared" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Self { owner, name: name.into() })
    }

    /// Whether `user` may see the namespace's contents.
    pub fn is_visible_to(&self, user: u32) -> bool {
        user == 0 || self.owner.is_none_or(|owner| owner == user)
    }
}

/// Counts of what has happened in a namespace since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub requests: u64,
    pub grants: u64,
    pub releases: u64,
    pub timeouts: u64,
    pub cancels: u64,
    pub notifies: u64,
    pub abandoned: u64,
    pub sessions_lost: u64,
    pub deadlocks: u64,
    pub events: u64,
}

impl Counters {
    pub fn count(&mut self, record: &RecordKind) {
        self.events += 1;
        let counter = match record {
            RecordKind::Granted { .. } => &mut self.grants,
            RecordKind::Released { .. } => &mut self.releases,
            RecordKind::TimedOut => &mut self.timeouts,
            RecordKind::Cancelled => &mut self.cancels,
            RecordKind::Notified => &mut self.notifies,
            RecordKind::Abandoned { .. } => &mut self.abandoned,
            RecordKind::SessionLost { .. } => &mut self.sessions_lost,
            RecordKind::Deadlock { .. } => &mut self.deadlocks,
            _ => return,
        };
        *counter += 1;
    }

    /// Adds another namespace's counters.
    pub fn add(&mut self, other: &Counters) {
        self.requests += other.requests;
        self.grants += other.grants;
        self.releases += other.releases;
        self.timeouts += other.timeouts;
        self.cancels += other.cancels;
        self.notifies += other.notifies;
        self.abandoned += other.abandoned;
        self.sessions_lost += other.sessions_lost;
        self.deadlocks += other.deadlocks;
        self.events += other.events;
    }
}

pub(crate) struct Namespace {
    /// The key in the daemon's registries; never used twice.
    pub number: u64,
    pub address: Address,
    /// Wakes the timer task after an earlier deadline is set, or when the namespace ends.
    pub timer: Notify,
    pub watches: Watches,
    /// The memory quota of the namespace's owner.
    pub memory: Arc<Gauge>,
    state: Mutex<State>,
}

pub(crate) struct State {
    pub space: Space,
    /// The journal; `None` if no state is kept.
    pub store: Option<Journal>,
    /// What the journal keeps of each session beside the core's state.
    pub members: Members,
    /// The session that the current call opens.
    pub opening: Option<Member>,
    /// The longest label of any session since the namespace was made, in bytes.
    pub longest_label: usize,
    /// The buffer for records.
    page: Page,
    pub counters: Counters,
    /// When the timer task next wakes.
    pub armed: Option<Time>,
    pub standing: Standing,
    /// The time of the last call.
    pub latest: Time,
    /// The sum of the references of all sessions.
    pub references: usize,
    /// The references by user, in a shared namespace.
    references_of: BTreeMap<u32, usize>,
    /// The bytes that are counted in `Namespace::memory`.
    pub counted: usize,
}

impl State {
    /// Writes a step to the journal. Call it before any client sees the step's outcome.
    ///
    /// # Errors
    /// The step isn't kept; no client may see its outcome.
    pub fn keep(&mut self, step: &Step) -> Result<(), StoreError> {
        let opening = self.opening.take();
        let Some(store) = &mut self.store else { return Ok(()) };
        let record = self.page.write(step, opening.as_ref());
        match store.append(record, entry::need(&step.input))? {
            Done::Now => {}
            Done::At(_) => unreachable!("a journal on this machine is done at once"),
        }
        self.members.follow(step, opening);
        Ok(())
    }

    /// Makes room in the journal for the record of the next call. Call it before a call that may
    /// add state.
    ///
    /// # Errors
    /// If there is no room.
    pub fn make_room(&mut self) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else { return Ok(()) };
        let Totals { holds, waiters, untold, .. } = self.space.totals();
        store.foresee(((holds + waiters + untold + 1) * (ABANDONMENT + self.longest_label)) as u64);
        store.make_room(RECORD)
    }

    /// Counts a session's references anew: none once it has ended, though the core may need several
    /// calls to remove it.
    pub fn count_references(&mut self, session: &Session, now: Time) {
        if session.outbox.is_over() {
            return;
        }
        let view = self.space.session(now, session.id);
        let references = view.map_or(0, |view| view.references);
        let before = session.references.swap(references, Relaxed);
        self.references = self.references + references - before;
        self.count_references_of(session, references, before);
    }

    fn count_references_of(&mut self, session: &Session, now: usize, before: usize) {
        if session.namespace.address.owner.is_none() {
            let user = session.client.peer.user;
            let counted = self.references_of.entry(user).or_default();
            *counted = *counted + now - before;
            if *counted == 0 {
                self.references_of.remove(&user);
            }
        }
    }

    /// Removes an ended session's references from the counts.
    pub fn drop_references(&mut self, session: &Session) {
        let before = session.references.swap(0, Relaxed);
        self.references -= before;
        self.count_references_of(session, 0, before);
    }

    /// Checks that `user` may add to the namespace's memory: in a shared namespace, each user may
    /// have half of what the others leave.
    ///
    /// # Errors
    /// If the quota is used up.
    pub fn check_memory(&self, namespace: &Namespace, user: u32) -> Result<(), QuotaError> {
        let memory = &namespace.memory;
        let (mut used, mut limit) = (memory.used(), memory.limit());
        if namespace.address.owner.is_none() {
            let references = self.references_of.get(&user).copied().unwrap_or_default();
            let own = weigh_share(&self.space.share(user), references);
            limit = fair_limit(limit, used.max(own), own);
            used = own;
        }
        if used < limit { Ok(()) } else { Err(QuotaError { field: memory.field(), limit }) }
    }

    /// Updates the memory that is counted for the namespace's owner.
    pub fn count_memory(&mut self, namespace: &Namespace) {
        let weight = weigh(&self.space.totals(), self.references);
        if weight > self.counted {
            namespace.memory.add(weight - self.counted);
        } else {
            namespace.memory.give_back(self.counted - weight);
        }
        self.counted = weight;
    }
}

/// Whether a namespace can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Good,
    /// It was empty and was removed from the registry: look its address up again.
    Retired,
    /// The core panicked in it: its sessions are lost.
    Failed,
}

impl Namespace {
    pub fn new(
        number: u64,
        address: Address,
        space: Space,
        store: Option<Journal>,
        memory: Arc<Gauge>,
        watch_bytes: usize,
    ) -> Self {
        let state = State {
            space,
            store,
            members: Members::default(),
            opening: None,
            longest_label: 0,
            page: Page::default(),
            counters: Counters::default(),
            armed: None,
            standing: Standing::Good,
            latest: Time::default(),
            references: 0,
            references_of: BTreeMap::new(),
            counted: 0,
        };
        Self {
            number,
            address,
            timer: Notify::new(),
            memory,
            watches: Watches::new(watch_bytes),
            state: Mutex::new(state),
        }
    }

    /// Locks the state, to read it. To change it use `Broker::enter`, which catches a panic of the
    /// core. (A panic while only reading has changed nothing.)
    pub fn lock(&self) -> MutexGuard<'_, State> {
        panic::lock(&self.state)
    }

    /// Whether the namespace is empty and isn't watched.
    pub fn is_unused(&self, state: &State) -> bool {
        state.space.is_empty() && self.watches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, caller: u32) -> Result<String, AddressError> {
        Address::resolve(text, caller, &["jobs".into()]).map(|address| address.to_string())
    }

    #[test]
    fn a_name_is_the_callers_own_unless_it_is_shared() {
        assert_eq!(resolve("", 1000).unwrap(), "1000");
        assert_eq!(resolve("a/b", 1000).unwrap(), "1000/a/b");
        assert_eq!(resolve("jobs", 1000).unwrap(), "shared/jobs");
        assert_eq!(resolve("shared/jobs", 7).unwrap(), "shared/jobs");
        assert_eq!(resolve("shared/job", 7), Err(AddressError::NotShared("job".into())));
        assert_eq!(resolve("shared/", 7), Err(AddressError::NotShared(String::new())));
        assert_eq!(resolve("shared", 7).unwrap(), "7/shared");
        for no_number in ["+5/x", "007", "007/x", "-1", "4294967296", " 5"] {
            assert_eq!(resolve(no_number, 5).unwrap(), format!("5/{no_number}"));
        }
    }

    #[test]
    fn a_shown_address_resolves_to_itself() {
        for shown in ["1000", "1000/a", "1000/a/b", "shared/jobs"] {
            assert_eq!(resolve(shown, 1000).unwrap(), shown);
            assert_eq!(resolve(shown, 0).unwrap(), shown);
        }
    }

    #[test]
    fn another_users_namespace_is_for_root_alone() {
        assert!(matches!(resolve("1000/a", 1001), Err(AddressError::Denied(_))));
        assert!(matches!(resolve("0", 1001), Err(AddressError::Denied(_))));
        assert_eq!(resolve(&"x".repeat(256), 1000), Err(AddressError::Malformed));
        for control in ["a\0", "a\nb", "\u{1b}[2J", "a\u{85}b"] {
            assert_eq!(resolve(control, 1000), Err(AddressError::Malformed));
        }
    }
}
