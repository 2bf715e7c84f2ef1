//! Deadlocks: cycles among owners that wait for a Lock or RLock and owners that hold it.
//!
//! Each of these objects has one holder, so the wait-for graph from a waiter is a chain: object,
//! its holder, what that holder waits for, and so on. A chain that returns to its start is a
//! deadlock. An owner that waits for several things at once may continue by any of them, so the
//! chain ends there: some deadlocks go unreported, but none is reported falsely.
//!
//! A cycle closes when an owner begins to wait for a lock, or is left with one wait; then the chain
//! is followed once, for at most [`Cycle::LONGEST`] edges. All waiters of one notify wait for the
//! same lock, so one search at that lock suffices.

use std::collections::BTreeSet;

use crate::{
    Cycle, Edge, Owner, RecordKind, SessionId, Time,
    arena::Idx,
    object::Object,
    sabotage::{Bug, sabotaged},
    space::Space,
    waiter::{Wait, Waiter},
};

/// The waiters for a Lock or RLock, by owner.
pub(crate) type Blocked = BTreeSet<(SessionId, Owner, Idx<Waiter>)>;

/// A path through the wait-for graph.
struct Chain {
    /// The number of edges.
    length: usize,
    /// Whether it returns to its start.
    closes: bool,
}

impl Space {
    pub(crate) fn is_exclusive(&self, ix: Idx<Object>) -> bool {
        self.objects[ix].semlock().is_some_and(|sem| sem.class.is_exclusive())
    }

    /// Adds a waiter to `blocked`, if it waits for a Lock or RLock.
    pub(crate) fn block(&mut self, ix: Idx<Waiter>) {
        let waiter = &self.waiters[ix];
        if self.is_exclusive(waiter.object) {
            self.blocked.insert((waiter.session, waiter.owner, ix));
        }
    }

    pub(crate) fn unblock(&mut self, ix: Idx<Waiter>) {
        let waiter = &self.waiters[ix];
        if self.is_exclusive(waiter.object) {
            self.blocked.remove(&(waiter.session, waiter.owner, ix));
        }
    }

    /// An owner's wait, if it has exactly one.
    fn sole_wait(&self, session: SessionId, owner: Owner) -> Option<Idx<Waiter>> {
        let mut waits =
            self.blocked.range((session, owner, Idx::FIRST)..=(session, owner, Idx::END));
        let first = waits.next()?.2;
        let is_sole = waits.next().is_none() || sabotaged(Bug::DeadlockWhereNone);
        is_sole.then_some(first)
    }

    /// The cycle that would close if an owner without waits waited for `object`.
    pub(crate) fn cycle_of(
        &self,
        now: Time,
        session: SessionId,
        owner: Owner,
        object: Idx<Object>,
    ) -> Option<Cycle> {
        let waits = (session, owner, Idx::FIRST)..=(session, owner, Idx::END);
        if !self.is_exclusive(object) || self.blocked.range(waits).next().is_some() {
            return None;
        }
        let chain = self.follow(session, owner, object);
        chain.closes.then(|| self.cycle(now, session, owner, object, now, chain.length))
    }

    /// The cycle that a waiter is part of, and how many edges were followed.
    fn cycle_through(&self, now: Time, waiter: Idx<Waiter>) -> (Option<Cycle>, usize) {
        let Waiter { session, owner, object, since, .. } = self.waiters[waiter];
        if self.sole_wait(session, owner) != Some(waiter) {
            return (None, 0);
        }
        let Chain { length, closes } = self.follow(session, owner, object);
        (closes.then(|| self.cycle(now, session, owner, object, since, length)), length)
    }

    /// Follows the chain from an owner that waits for an object. Most chains close no cycle, so
    /// `cycle` collects the edges only afterwards.
    fn follow(&self, session: SessionId, owner: Owner, object: Idx<Object>) -> Chain {
        let mut at = object;
        for length in 1..=Cycle::LONGEST {
            let Some(hold) = self.sole_hold(at) else { return Chain { length, closes: false } };
            if (hold.session, hold.owner) == (session, owner) {
                return Chain { length, closes: true };
            }
            let Some(next) = self.sole_wait(hold.session, hold.owner) else {
                return Chain { length, closes: false };
            };
            at = self.waiters[next].object;
        }
        Chain { length: Cycle::LONGEST, closes: false }
    }

    /// The waiter for a lock that is part of a cycle through the lock. There is at most one, since
    /// the cycle passes through the lock's only holder.
    fn closing_waiter(&self, lock: Idx<Object>) -> Option<Idx<Waiter>> {
        let mut at = lock;
        for _ in 0..Cycle::LONGEST {
            let hold = self.sole_hold(at)?;
            let waiter = self.sole_wait(hold.session, hold.owner)?;
            at = self.waiters[waiter].object;
            if at == lock {
                return Some(waiter);
            }
        }
        None
    }

    /// The edges of a cycle of this length, from an owner that waits for an object.
    fn cycle(
        &self,
        now: Time,
        session: SessionId,
        owner: Owner,
        object: Idx<Object>,
        since: Time,
        length: usize,
    ) -> Cycle {
        let shown = length.min(Cycle::SHOWN);
        let mut edges = Vec::with_capacity(shown);
        let (mut session, mut owner, mut object, mut since) = (session, owner, object, since);
        for _ in 0..shown {
            let hold = self.sole_hold(object).expect("the chain was followed");
            edges.push(Edge {
                waiter: self.party(session, owner).expect("a waiter or holder has a session"),
                object: self.label(object),
                waited: now.since(since),
                held: now.since(hold.since),
            });
            (session, owner) = (hold.session, hold.owner);
            if let Some(next) = self.sole_wait(session, owner) {
                let next = &self.waiters[next];
                (object, since) = (next.object, next.since);
            }
        }
        Cycle { edges, omitted: (length - shown) as u32 }
    }

    /// Emits a record if a waiter has just closed a cycle.
    pub(crate) fn report_deadlock(&mut self, now: Time, waiter: Idx<Waiter>) {
        let (cycle, followed) = self.cycle_through(now, waiter);
        self.budget = self.budget.saturating_sub(followed as u32);
        if let Some(cycle) = cycle {
            let Waiter { object, session, owner, .. } = self.waiters[waiter];
            self.emit_deadlock(now, object, session, owner, cycle);
        }
    }

    /// As `report_deadlock`, for an owner that one of its waits has left with a single other.
    pub(crate) fn report_sole_wait(&mut self, now: Time, session: SessionId, owner: Owner) {
        if let Some(waiter) = self.sole_wait(session, owner) {
            self.report_deadlock(now, waiter);
        }
    }

    /// As `report_deadlock`, for the waiters that a notify has just moved to a lock's queue.
    pub(crate) fn report_notified_deadlock(&mut self, now: Time, lock: Idx<Object>, notify: u64) {
        if let Some(waiter) = self.closing_waiter(lock)
            && let Wait::Reacquire { notified: Some(number), .. } = self.waiters[waiter].wait
            && number == notify
        {
            self.report_deadlock(now, waiter);
        }
    }

    pub(crate) fn emit_deadlock(
        &mut self,
        now: Time,
        object: Idx<Object>,
        session: SessionId,
        owner: Owner,
        cycle: Cycle,
    ) {
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Deadlock { cycle }, Some(object), who);
    }

    /// The cycle through an object, if there is one.
    pub(crate) fn deadlock_at(&self, now: Time, ix: Idx<Object>) -> Option<Cycle> {
        if !self.is_exclusive(ix) {
            return None;
        }
        self.cycle_through(now, self.closing_waiter(ix)?).0
    }
}
