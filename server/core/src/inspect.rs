//! The getters, for inspection.

use std::ops::Bound;

use crate::{
    Holders, Label, ObjectDetail, ObjectId, ObjectKey, ObjectView, SessionId, SessionView, Time,
    Totals, WaiterView,
    arena::{Idx, count_visit},
    condition::Condition,
    object::{Kind, Object},
    session::Session,
    space::Space,
};

/// Which objects [`Space::list`] lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListQuery<'a> {
    /// Only names with this prefix.
    pub prefix: &'a str,
    /// Only objects that are held or waited for.
    pub busy: bool,
    /// Continue after the page that returned this.
    pub after: Option<&'a str>,
    /// The most objects per page.
    pub limit: usize,
}

/// The most holders and waiters in an object's detail.
const MOST: usize = 1000;
/// The most objects that are examined for one page of a list.
const SCANNED: usize = 4096;
/// The most abandonments in an object's view.
const LEFT: usize = 16;
/// The most objects in a session's view.
const FEW: usize = 100;

/// A page of a list under construction.
struct Page<'a> {
    space: &'a Space,
    now: Time,
    query: ListQuery<'a>,
    looked: usize,
    views: Vec<ObjectView>,
    /// The last object examined, and whether by its name.
    last: Option<(Idx<Object>, bool)>,
}

impl<'a> Page<'a> {
    fn new(space: &'a Space, now: Time, query: ListQuery<'a>) -> Self {
        Page { space, now, query, looked: 0, views: Vec::new(), last: None }
    }

    fn is_full(&self) -> bool {
        self.views.len() >= self.query.limit.max(1) || self.looked >= SCANNED
    }

    /// Examines the next object, by name or by id.
    fn look(&mut self, ix: Idx<Object>, by_name: bool) {
        count_visit();
        self.looked += 1;
        self.last = Some((ix, by_name));
        let object = &self.space.objects[ix];
        if by_name == object.name.is_some() && (!self.query.busy || is_busy(object)) {
            self.views.push(self.space.view(self.now, ix));
        }
    }

    /// The page, and where the next one begins.
    fn end_with_more(self) -> (Vec<ObjectView>, Option<String>) {
        let next = self.last.map(|(ix, by_name)| {
            let object = &self.space.objects[ix];
            match &object.name {
                Some(name) if by_name => name.to_string(),
                _ => format!("\0{}", object.id.0),
            }
        });
        (self.views, next)
    }
}

impl Space {
    /// How much there is of everything.
    pub fn totals(&self) -> Totals {
        Totals {
            sessions: self.sessions.len(),
            objects: self.objects.len(),
            holds: self.holds.len(),
            waiters: self.waiters.len(),
            last_number: self.next_number - 1,
            unacknowledged: self.unacknowledged,
            untold: self.untold,
        }
    }

    /// Whether there is no session, no object, and nothing left to discard.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.objects.is_empty() && self.untold == 0
    }

    /// An object by its name, by "#id", or by its key.
    pub fn find(&self, text: &str) -> Option<ObjectId> {
        let by_name = || self.names.get(text).copied();
        let by_id = || {
            let id = text.strip_prefix('#')?.parse().ok()?;
            self.ids.get(&ObjectId(id)).copied()
        };
        let by_key = || self.by_key(text.parse::<ObjectKey>().ok()?);
        let ix = by_name().or_else(by_id).or_else(by_key)?;
        Some(self.objects[ix].id)
    }

    /// Objects in the order of their names, then anonymous ones in the order of their ids; and where
    /// to continue, if there may be more. A page may be shorter than its limit, even empty, although
    /// there are more: one call examines a limited number of objects.
    pub fn list(&self, now: Time, query: ListQuery<'_>) -> (Vec<ObjectView>, Option<String>) {
        let ListQuery { prefix, after, .. } = query;
        let mut page = Page::new(self, now, query);
        let after_id = after.and_then(|after| after.strip_prefix('\0')?.parse::<u64>().ok());
        if after_id.is_none() {
            let from = match after {
                Some(after) => Bound::Excluded(after),
                None => Bound::Included(prefix),
            };
            let named = self
                .names
                .range::<str, _>((from, Bound::Unbounded))
                .take_while(|(name, _)| name.starts_with(prefix));
            for (_, &ix) in named {
                if page.is_full() {
                    return page.end_with_more();
                }
                page.look(ix, true);
            }
        }
        if !prefix.is_empty() {
            return (page.views, None);
        }
        let from = after_id.map_or(Bound::Unbounded, |id| Bound::Excluded(ObjectId(id)));
        for (_, &ix) in self.ids.range((from, Bound::Unbounded)) {
            if page.is_full() {
                return page.end_with_more();
            }
            page.look(ix, false);
        }
        (page.views, None)
    }

    pub(crate) fn view(&self, now: Time, ix: Idx<Object>) -> ObjectView {
        let object = &self.objects[ix];
        let (value, max, unowned, holders, broken) = match &object.kind {
            Kind::SemLock(sem) => {
                let poisoned = object.poisoned().is_some();
                (sem.value, sem.max, sem.unowned, sem.holds.len(), poisoned)
            }
            Kind::Condition(_) => (0, 0, 0, 0, false),
            Kind::Event(event) => (u32::from(event.set), 1, 0, 0, false),
            Kind::Barrier(b) => (b.full + b.coming, b.parties, 0, 0, b.broken),
        };
        ObjectView {
            label: object.label(),
            kind: object.kind_name(),
            value,
            max,
            holders,
            unowned,
            waiters: object.waiters.len(),
            references: object.references,
            keep: object.keep,
            poison: object.poison,
            abandonments: object
                .trouble
                .iter()
                .flat_map(|trouble| trouble.poisoned.iter().chain(&trouble.untold).cloned())
                .take(LEFT)
                .collect(),
            broken,
            holder: self.first_holders(now, ix, 1).pop(),
            key: object.key(ix),
        }
    }

    /// One object in full.
    pub fn describe(&self, now: Time, object: ObjectId) -> Option<ObjectDetail> {
        let ix = *self.ids.get(&object)?;
        let object = &self.objects[ix];
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
                Kind::Condition(Condition { lock }) => Some(self.label(lock)),
                _ => None,
            },
            deadlock: self.deadlock_at(now, ix),
        })
    }

    /// Sessions after `after`, oldest first, at most `limit`.
    pub fn sessions(&self, now: Time, after: Option<SessionId>, limit: usize) -> Vec<SessionView> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = self.sessions.range((from, Bound::Unbounded)).take(limit);
        sessions.map(|(&id, session)| self.session_view(now, id, session)).collect()
    }

    /// The first holders of an object, oldest first, and how many there are.
    pub(crate) fn all_holders(&self, now: Time, ix: Idx<Object>) -> Holders {
        let count = self.objects[ix].semlock().map_or(0, |sem| sem.holds.len());
        Holders { count, first: self.first_holders(now, ix, MOST) }
    }

    /// One session.
    pub fn session(&self, now: Time, id: SessionId) -> Option<SessionView> {
        self.sessions.get(&id).map(|session| self.session_view(now, id, session))
    }

    fn session_view(&self, now: Time, id: SessionId, session: &Session) -> SessionView {
        let label = |ix: Idx<Object>| -> Label { self.label(ix) };
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
                .map(|&waiter| label(self.waiters[waiter].object))
                .collect(),
        }
    }
}

fn is_busy(object: &Object) -> bool {
    let held = match &object.kind {
        Kind::SemLock(sem) => sem.holds.len() + sem.unowned > 0,
        Kind::Barrier(barrier) => barrier.action.is_some(),
        Kind::Condition(_) | Kind::Event(_) => false,
    };
    held || !object.waiters.is_empty()
}
