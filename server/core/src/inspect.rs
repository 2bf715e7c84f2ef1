//! The getters: what there is, for people. They change nothing.

use std::ops::Bound;

use crate::{
    Label, ObjectDetail, ObjectId, ObjectKey, ObjectView, SessionId, SessionView, Time, Totals,
    WaiterView,
    list::Ix,
    object::{Kind, Object},
    session::Session,
    space::Space,
};

/// Which objects [`Space::list`] lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListQuery<'a> {
    /// Only names that begin so.
    pub prefix: &'a str,
    /// Only objects that somebody holds or waits for.
    pub busy: bool,
    /// Go on after the page that ended with this.
    pub after: Option<&'a str>,
    /// At most so many.
    pub limit: usize,
}

/// How many holders and waiters a detail names at most.
const MOST: usize = 1000;
/// How many objects a session's view names at most.
const FEW: usize = 100;

impl Space {
    /// How much there is of everything.
    pub fn totals(&self) -> Totals {
        Totals {
            sessions: self.sessions.len(),
            objects: self.objects.len(),
            holds: self.holds.len(),
            waiters: self.waiters.len(),
            last_event: self.next_event - 1,
        }
    }

    /// Nothing that would be missed: no session, no object.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.objects.is_empty()
    }

    /// An object by its name, by "#id", or by its key.
    pub fn find(&self, text: &str) -> Option<ObjectId> {
        let by_name = || self.names.get(text).copied();
        let by_id = || {
            let id = text.strip_prefix('#')?.parse().ok()?;
            self.index_of(ObjectId(id))
        };
        let by_key = || self.by_key(text.parse::<ObjectKey>().ok()?);
        let ix = by_name().or_else(by_id).or_else(by_key)?;
        Some(self.objects[ix as usize].id)
    }

    /// For administration alone: costs what exists.
    pub(crate) fn index_of(&self, id: ObjectId) -> Option<Ix> {
        self.objects.iter().find(|(_, object)| object.id == id).map(|(ix, _)| ix as Ix)
    }

    /// Objects in the order of their names, the nameless last; and where to go on, if
    /// there are more.
    pub fn list(&self, now: Time, query: ListQuery<'_>) -> (Vec<ObjectView>, Option<String>) {
        let ListQuery { prefix, busy, after, limit } = query;
        let wanted = |object: &Object| !busy || is_busy(object);
        let after_id = after.and_then(|after| after.strip_prefix('\0')?.parse::<u64>().ok());
        let mut page: Vec<ObjectView> = Vec::new();
        if after_id.is_none() {
            let from = match after {
                Some(after) => Bound::Excluded(after),
                None => Bound::Included(prefix),
            };
            let named = self
                .names
                .range::<str, _>((from, Bound::Unbounded))
                .take_while(|(name, _)| name.starts_with(prefix));
            for (name, &ix) in named {
                if !wanted(&self.objects[ix as usize]) {
                    continue;
                }
                if page.len() == limit {
                    let last = page.last().and_then(|view| view.label.name.as_deref());
                    return (page.clone(), Some(last.unwrap_or(name).to_owned()));
                }
                page.push(self.view(now, ix));
            }
        }
        if !prefix.is_empty() {
            return (page, None);
        }
        let mut nameless: Vec<(u64, Ix)> = self
            .objects
            .iter()
            .filter(|(_, o)| o.name.is_none() && wanted(o) && after_id.is_none_or(|id| o.id.0 > id))
            .map(|(ix, o)| (o.id.0, ix as Ix))
            .collect();
        nameless.sort_unstable();
        for (_, ix) in nameless {
            if page.len() == limit {
                let last = page.last().map(|view| match &view.label.name {
                    Some(name) => name.to_string(),
                    None => format!("\0{}", view.label.id.0),
                });
                return (page, last);
            }
            page.push(self.view(now, ix));
        }
        (page, None)
    }

    pub(crate) fn view(&self, now: Time, ix: Ix) -> ObjectView {
        let object = &self.objects[ix as usize];
        let (value, max, loose, holders, broken) = match &object.kind {
            Kind::SemLock(sem) => {
                let poisoned = object.poisoned().is_some();
                (sem.value, sem.max, sem.loose, sem.holds.len(), poisoned)
            }
            Kind::Condition { .. } => (0, 0, 0, 0, false),
            Kind::Event { set } => (u32::from(*set), 1, 0, 0, false),
            Kind::Barrier(b) => (object.waiters.len(), b.parties, 0, 0, b.broken),
        };
        ObjectView {
            label: object.label(),
            kind: object.kind_name(),
            value,
            max,
            holders,
            loose,
            waiters: object.waiters.len(),
            references: object.references,
            keep: object.keep,
            poison: object.poison,
            abandonments: object
                .trouble
                .iter()
                .flat_map(|trouble| trouble.poisoned.iter().chain(&trouble.untold).cloned())
                .collect(),
            broken,
            holder: self.first_holders(now, ix, 1).pop(),
            key: object.key(ix),
        }
    }

    /// One object in full.
    pub fn describe(&self, now: Time, object: ObjectId) -> Option<ObjectDetail> {
        let ix = self.index_of(object)?;
        let object = &self.objects[ix as usize];
        let waiters = object.waiters.iter(&self.waiters).take(MOST).map(|(_, w)| WaiterView {
            party: self.party(w.session, w.owner).expect("a waiter's session is open"),
            waited: now.since(w.since),
            timeout_in: w.deadline.map(|at| at.since(now)),
            what: w.wait.as_str(),
        });
        Some(ObjectDetail {
            object: self.view(now, ix),
            holders: self.first_holders(now, ix, MOST),
            waiters: waiters.collect(),
            lock: match object.kind {
                Kind::Condition { lock } => Some(self.label(lock)),
                _ => None,
            },
            deadlocks: self.deadlocks_at(now, ix),
        })
    }

    /// All sessions, oldest first.
    pub fn sessions(&self, now: Time) -> Vec<SessionView> {
        self.sessions.iter().map(|(&id, session)| self.session_view(now, id, session)).collect()
    }

    /// One session.
    pub fn session(&self, now: Time, id: SessionId) -> Option<SessionView> {
        self.sessions.get(&id).map(|session| self.session_view(now, id, session))
    }

    fn session_view(&self, now: Time, id: SessionId, session: &Session) -> SessionView {
        let label = |ix: Ix| -> Label { self.label(ix) };
        SessionView {
            id,
            process: session.process.clone(),
            age: now.since(session.opened),
            connected: session.grace_until.is_none(),
            holds: session.holds.len(),
            waits: session.waiters.len(),
            references: session.references.len(),
            holding: session.holds.keys().take(FEW).map(|&(ix, _)| label(ix)).collect(),
            waiting: session
                .waiters
                .values()
                .take(FEW)
                .map(|&waiter| label(self.waiters[waiter as usize].object))
                .collect(),
        }
    }
}

fn is_busy(object: &Object) -> bool {
    let held = match &object.kind {
        Kind::SemLock(sem) => sem.holds.len() + sem.loose > 0,
        Kind::Barrier(barrier) => barrier.action.is_some(),
        Kind::Condition { .. } | Kind::Event { .. } => false,
    };
    held || object.waiters.len() > 0
}
