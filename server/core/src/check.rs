//! The invariants that hold between calls, for tests that drive a `Space`. Visits everything.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    SessionId, Space, Time,
    arena::Idx,
    condition::Condition,
    deadline::{Deadline, Reason},
    object::{Kind, Object},
    session::Session,
    waiter::Wait,
    work::Task,
};

impl Space {
    /// Asserts every invariant of the state. For tests.
    ///
    /// # Panics
    /// If an invariant doesn't hold.
    pub fn check(&self) {
        let mut references: BTreeMap<Idx<Object>, u64> = BTreeMap::new();
        let mut served = BTreeSet::new();
        let mut discarded = 0;
        for task in self.agenda.iter() {
            match task {
                Task::LetGo { object, .. } => *references.entry(*object).or_default() += 1,
                Task::Serve(at) if self.is_there(*at) => {
                    assert!(served.insert(at.ix), "an object is served once");
                }
                Task::Discard { untold } => discarded += untold.len(),
                _ => {}
            }
        }
        for session in self.sessions.values() {
            for (_, reference) in session.references.iter() {
                *references.entry(reference.object).or_default() += u64::from(reference.count());
            }
        }
        for (_, object) in self.objects.iter() {
            if let Kind::Condition(Condition { lock }) = object.kind {
                *references.entry(lock).or_default() += 1;
            }
        }
        for (ix, object) in self.objects.iter() {
            let counted = references.remove(&ix).unwrap_or_default();
            assert_eq!(u64::from(object.references), counted, "references to {}", object.label());
            assert_eq!(object.served_later, served.contains(&ix), "{} is served", object.label());
            self.check_object(ix, object);
        }
        assert!(references.is_empty(), "references to what is gone: {references:?}");
        assert_eq!(self.ids.len(), self.objects.len());
        let holds: usize = self.sessions.values().map(|s| s.holds.len()).sum();
        let waiters: usize = self.sessions.values().map(|s| s.waiters.len()).sum();
        let weight: usize = self.sessions.values().map(|s| s.outgoing.check(s.ended)).sum();
        assert_eq!(holds, self.holds.len(), "each hold is a session's");
        assert_eq!(waiters, self.waiters.len(), "each waiter is a session's");
        assert_eq!(weight, self.unacknowledged, "bytes of messages kept");
        let troubles = self.objects.iter().filter_map(|(_, object)| object.trouble.as_ref());
        let untold: usize = troubles.map(|trouble| trouble.untold.len()).sum();
        assert_eq!(untold + discarded, self.untold, "abandonments that nobody was told of");
        if let Some(shares) = &self.shares {
            assert_eq!(&self.counted_shares(), shares, "what each user has");
        }
        for (&id, session) in &self.sessions {
            self.check_session(id, session);
        }
        self.check_deadlines();
        let blocked: BTreeSet<_> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| self.is_exclusive(waiter.object))
            .map(|(ix, waiter)| (waiter.session, waiter.owner, ix))
            .collect();
        assert_eq!(blocked, self.blocked, "who waits for a Lock or RLock");
    }

    fn check_object(&self, ix: Idx<Object>, object: &Object) {
        let label = object.label();
        assert_eq!(self.ids.get(&object.id), Some(&ix), "{label} by its id");
        if let Some(name) = &object.name {
            assert_eq!(self.names.get(name), Some(&ix), "{label} by its name");
        }
        let waiters: Vec<_> = object.waiters.iter(&self.waiters).collect();
        assert_eq!(waiters.len(), object.waiters.len() as usize, "the queue of {label}");
        assert!(waiters.iter().all(|(_, w)| w.object == ix), "the queue of {label}");
        match &object.kind {
            Kind::SemLock(sem) => {
                let holds: Vec<_> = sem.holds.iter(&self.holds).collect();
                assert_eq!(holds.len(), sem.holds.len() as usize, "the holds of {label}");
                assert!(holds.iter().all(|(_, hold)| hold.object == ix && hold.depth > 0));
                assert!(holds.is_sorted_by(|(_, a), (_, b)| a.token < b.token), "oldest first");
                // R31
                let sum =
                    u64::from(sem.value) + u64::from(sem.holds.len()) + u64::from(sem.unowned);
                assert_eq!(sum, u64::from(sem.capacity), "the permits of {label}");
                // R30, R42
                let served = sem.value == 0 && object.poisoned().is_none() || waiters.is_empty();
                assert!(served || object.served_later, "{label} keeps somebody waiting");
            }
            Kind::Condition(_) => {
                assert!(waiters.iter().all(|(_, w)| matches!(w.wait, Wait::Notify { .. })));
            }
            Kind::Event(event) => {
                // R51
                let undecided = waiters.iter().filter(|(_, w)| w.number >= event.woken_before);
                assert_eq!(undecided.count(), event.waiting as usize, "who waits for {label}");
                assert!(!event.set || event.waiting == 0, "{label} keeps somebody waiting");
                let all_told = waiters.len() == event.waiting as usize;
                assert!(all_told || object.served_later, "{label} keeps somebody waiting");
            }
            Kind::Barrier(barrier) => {
                // R52, R53
                let undecided = waiters.iter().filter(|(_, w)| !barrier.is_decided(w)).count();
                assert_eq!(undecided, (barrier.full + barrier.coming) as usize, "at {label}");
                assert!(!barrier.broken || undecided == 0, "{label} keeps somebody waiting");
                assert!(barrier.action.is_some() || barrier.full == 0, "{label} has no action");
                let full = barrier.action.is_none() && barrier.coming >= barrier.parties;
                let served = !full && waiters.len() == undecided;
                assert!(served || object.served_later, "{label} keeps somebody waiting");
            }
        }
    }

    fn check_session(&self, id: SessionId, session: &Session) {
        session.check_handles();
        for (&(object, token), &hold) in &session.holds {
            let hold = &self.holds[hold];
            assert_eq!((hold.session, hold.object, hold.token), (id, object, token));
            let listed = session.permits.contains(&(object, hold.owner, token));
            assert_ne!(listed, self.is_exclusive(object), "a semaphore's permits, by owner");
        }
        let mut waits_at = BTreeSet::new();
        for (&request, &waiter) in &session.waiters {
            let waiter = &self.waiters[waiter];
            assert_eq!((waiter.session, waiter.request), (id, request));
            waits_at.extend(self.concerned(waiter).into_iter().flatten().map(|ix| (ix, request)));
        }
        assert_eq!(waits_at, session.waits_at, "waits by object");
        assert!(session.permits.len() <= session.holds.len());
    }

    fn check_deadlines(&self) {
        let grace = self.sessions.iter().filter(|(_, s)| !s.ended).filter_map(|(&session, s)| {
            let at = s.grace_until.filter(|&until| until != Time::NEVER)?;
            Some(Deadline { at, reason: Reason::Grace { session } })
        });
        let linger = self.objects.iter().filter_map(|(_, object)| {
            let reason = Reason::Linger { object: object.id };
            Some(Deadline { at: object.lingers_until?, reason })
        });
        let timeout = self.waiters.iter().filter_map(|(_, waiter)| {
            let reason = Reason::Timeout { session: waiter.session, request: waiter.request };
            Some(Deadline { at: waiter.deadline?, reason })
        });
        let all: BTreeSet<Deadline> = grace.chain(linger).chain(timeout).collect();
        assert!(all.iter().eq(self.deadlines.iter()), "the deadlines: {all:?}");
    }
}
