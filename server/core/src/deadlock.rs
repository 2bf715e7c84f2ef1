//! Deadlocks: cycles among those who wait for a Lock or RLock and those who hold it.
//!
//! Each of these objects has one holder, so from a waiter the way is a chain: object,
//! its holder, what that holder waits for, and so on. A chain that comes back to its
//! start is a certain deadlock. An owner that waits for several things at once may get
//! on by any of them, so the chain ends there: no false alarm, at the price of silence.

use crate::{Edge, Owner, RecordKind, SessionId, Time, list::Ix, space::Space};

/// Who waits for an exclusive lock, by owner; the index is the waiter's.
pub(crate) type Blocked = std::collections::BTreeSet<(SessionId, Owner, Ix)>;

impl Space {
    fn is_exclusive(&self, ix: Ix) -> bool {
        self.objects[ix as usize].semlock().is_some_and(|sem| sem.class.is_exclusive())
    }

    /// Notes that a waiter waits for an exclusive lock, if it does.
    pub(crate) fn block(&mut self, ix: Ix) {
        let waiter = &self.waiters[ix as usize];
        if self.is_exclusive(waiter.object) {
            self.blocked.insert((waiter.session, waiter.owner, ix));
        }
    }

    pub(crate) fn unblock(&mut self, ix: Ix) {
        let waiter = &self.waiters[ix as usize];
        if self.is_exclusive(waiter.object) {
            self.blocked.remove(&(waiter.session, waiter.owner, ix));
        }
    }

    /// What an owner waits for, if that is one thing.
    fn sole_wait(&self, session: SessionId, owner: Owner) -> Option<Ix> {
        let mut waits = self.blocked.range((session, owner, 0)..=(session, owner, Ix::MAX));
        let first = waits.next()?.2;
        waits.next().is_none().then_some(first)
    }

    /// The cycle that closes if an owner that waits for nothing yet waits for `object`.
    pub(crate) fn cycle_of(
        &self,
        now: Time,
        session: SessionId,
        owner: Owner,
        object: Ix,
    ) -> Option<Vec<Edge>> {
        let from = (session, owner, 0)..=(session, owner, Ix::MAX);
        if !self.is_exclusive(object) || self.blocked.range(from).next().is_some() {
            return None;
        }
        self.chain(now, session, owner, object, now)
    }

    /// The cycle that a waiter is part of.
    pub(crate) fn cycle_through(&self, now: Time, waiter: Ix) -> Option<Vec<Edge>> {
        let w = &self.waiters[waiter as usize];
        (self.sole_wait(w.session, w.owner) == Some(waiter))
            .then(|| self.chain(now, w.session, w.owner, w.object, w.since))?
    }

    fn chain(
        &self,
        now: Time,
        session: SessionId,
        owner: Owner,
        object: Ix,
        since: Time,
    ) -> Option<Vec<Edge>> {
        // Most waiters close no cycle: find out before building anything.
        let mut at = object;
        let mut length = 0;
        loop {
            let hold = self.sole_hold(at)?;
            length += 1;
            if (hold.session, hold.owner) == (session, owner) {
                break;
            }
            if length > self.blocked.len() {
                return None;
            }
            at = self.waiters[self.sole_wait(hold.session, hold.owner)? as usize].object;
        }
        let mut cycle = Vec::with_capacity(length);
        let (mut session, mut owner, mut object, mut since) = (session, owner, object, since);
        for _ in 0..length {
            let hold = self.sole_hold(object)?;
            cycle.push(Edge {
                waiter: self.party(session, owner)?,
                object: self.label(object),
                waited: now.since(since),
                held: now.since(hold.since),
            });
            (session, owner) = (hold.session, hold.owner);
            if let Some(next) = self.sole_wait(session, owner) {
                let next = &self.waiters[next as usize];
                (object, since) = (next.object, next.since);
            }
        }
        Some(cycle)
    }

    /// Tells the world if a waiter has just closed a cycle.
    pub(crate) fn report_deadlock(&mut self, now: Time, waiter: Ix) {
        if let Some(cycle) = self.cycle_through(now, waiter) {
            let waiter = &self.waiters[waiter as usize];
            let (object, session, owner) = (waiter.object, waiter.session, waiter.owner);
            self.emit_deadlock(now, object, session, owner, cycle);
        }
    }

    pub(crate) fn emit_deadlock(
        &mut self,
        now: Time,
        object: Ix,
        session: SessionId,
        owner: Owner,
        cycle: Vec<Edge>,
    ) {
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Deadlock { cycle }, Some(object), who);
    }

    /// The cycles that the waiters of an object are part of. All of them pass through
    /// its one holder, so there is at most one.
    pub(crate) fn deadlocks_at(&self, now: Time, ix: Ix) -> Vec<Vec<Edge>> {
        if !self.is_exclusive(ix) {
            return Vec::new();
        }
        let waiters = self.objects[ix as usize].waiters.iter(&self.waiters);
        waiters.filter_map(|(waiter, _)| self.cycle_through(now, waiter)).take(1).collect()
    }
}
