//! SemLock: Lock, RLock, Semaphore, BoundedSemaphore: acquire, grant, release.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Acquire, Answer, Body, Cause, Class, Error, ErrorKind, FencingToken, Grant,
    Handle, Owner, RecordKind, RequestId, SessionId, Time,
    arena::{Idx, List},
    hold::Hold,
    object::{Kind, Object},
    outgoing::Undo,
    sabotage::{Bug, sabotaged},
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

/// The permits. Free, owned and unowned ones add up to the capacity, which only grows, by a release
/// of a Semaphore while no permit is out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SemLock {
    pub class: Class,
    pub initial: u32,
    pub max: u32,
    pub capacity: u32,
    /// Free permits. Above 0 only while nobody waits, or serving the queue is on the agenda.
    pub value: u32,
    /// Unowned permits.
    pub unowned: u32,
    /// Owned permits, oldest first.
    pub holds: List<Hold>,
}

impl SemLock {
    pub fn new(class: Class, value: u32, max: u32) -> Self {
        let holds = List::default();
        SemLock { class, initial: value, max, capacity: value, value, unowned: 0, holds }
    }
}

impl Object {
    pub(crate) fn semlock(&self) -> Option<&SemLock> {
        match &self.kind {
            Kind::SemLock(sem) => Some(sem),
            _ => None,
        }
    }
}

impl Space {
    /// The SemLock behind a handle.
    pub(crate) fn resolve_semlock(
        &self,
        session: SessionId,
        handle: Handle,
    ) -> Result<(Idx<Object>, &SemLock), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match self.objects[ix].semlock() {
            Some(sem) => Ok((ix, sem)),
            None => Err(self.mismatch(ix, "Lock, RLock or Semaphore")),
        }
    }

    pub(crate) fn semlock(&self, ix: Idx<Object>) -> &SemLock {
        self.objects[ix].semlock().expect("checked when the handle was resolved")
    }

    pub(crate) fn semlock_mut(&mut self, ix: Idx<Object>) -> &mut SemLock {
        match &mut self.objects[ix].kind {
            Kind::SemLock(sem) => sem,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    /// The hold of a Lock or RLock.
    pub(crate) fn sole_hold(&self, ix: Idx<Object>) -> Option<&Hold> {
        self.semlock(ix).holds.first().map(|hold| &self.holds[hold])
    }

    pub(crate) fn acquire(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        acquire: &Acquire,
    ) -> Outcome {
        let Acquire { handle, owner, unowned, timeout, fail_on_deadlock } = *acquire;
        let (ix, sem) = self.resolve_semlock(session, handle)?;
        let (class, free) = (sem.class, sem.value > 0 && self.objects[ix].waiters.is_empty());
        if class == Class::RLock
            && let Some(hold) = sem.holds.first()
            && self.is_of(hold, session, owner)
        {
            return self.acquire_deeper(now, session, request, hold);
        }
        if let Some(by) = self.objects[ix].poisoned() {
            return Err(self.refuse(ix, ErrorKind::Poisoned { by: by.clone() }));
        }
        let claim = Claim { session, request, owner, timeout };
        let unowned = unowned && !class.is_exclusive();
        if !unowned {
            self.check_holds(session, ix)?;
        }
        if free {
            self.grant(now, ix, claim, unowned);
            return Ok(None);
        }
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let holders = self.holders(now, ix);
            return Err(self.refuse(ix, ErrorKind::TimedOut { holders }));
        }
        self.check_room(session, ix)?;
        if fail_on_deadlock && let Some(cycle) = self.cycle_of(now, session, owner, ix) {
            self.emit_deadlock(now, ix, session, owner, cycle.clone());
            return Err(self.refuse(ix, ErrorKind::Deadlock { cycle }));
        }
        let waiter = self.enqueue(now, ix, claim, Wait::Acquire { unowned });
        self.report_deadlock(now, waiter);
        Ok(None)
    }

    /// Refuses if the namespace or the session has as many holds as it may have.
    fn check_holds(&self, session: SessionId, ix: Idx<Object>) -> Result<(), Box<Error>> {
        let limits = &self.config.limits;
        let quota = |field, limit: usize| {
            Err(self.refuse(ix, ErrorKind::Quota { field, limit: limit as u64 }))
        };
        let s = &self.sessions[&session];
        let all = (limits.holds, self.holds.len());
        let checked = self.check_share(s.process.uid, "holds", all, |share| share.holds);
        checked.map_err(|kind| self.refuse(ix, kind))?;
        if s.holds.len() >= limits.holds_per_session {
            return quota("holds_per_session", limits.holds_per_session);
        }
        Ok(())
    }

    pub(crate) fn is_of(&self, hold: Idx<Hold>, session: SessionId, owner: Owner) -> bool {
        let hold = &self.holds[hold];
        (hold.session, hold.owner) == (session, owner)
    }

    /// Acquires an RLock again for its owner.
    fn acquire_deeper(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        ix: Idx<Hold>,
    ) -> Outcome {
        let Hold { object, owner, token, depth, .. } = self.holds[ix];
        let Some(depth) = depth.checked_add(1) else {
            let kind = ErrorKind::Quota { field: "depth", limit: u64::from(u32::MAX) };
            return Err(self.refuse(object, kind));
        };
        self.holds[ix].depth = depth;
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Granted { token, depth }, Some(object), who);
        let grant = Grant { token, depth, abandoned: None };
        let id = self.objects[object].id;
        let undo = Undo { object, id, owner, token: Some(token), notified: None, whole: false };
        self.deliver(session, Body::Reply(request, Ok(Answer::Granted(grant))), Some(undo));
        Ok(None)
    }

    /// Takes a free permit for an Acquire, and answers it.
    fn grant(&mut self, now: Time, ix: Idx<Object>, claim: Claim, unowned: bool) {
        let grant = self.take(now, ix, claim, unowned, 1);
        let token = (!unowned).then_some(grant.token);
        let id = self.objects[ix].id;
        let undo = Undo { object: ix, id, owner: claim.owner, token, notified: None, whole: false };
        let reply = Body::Reply(claim.request, Ok(Answer::Granted(grant)));
        self.deliver(claim.session, reply, Some(undo));
    }

    /// Takes a free permit.
    fn take(
        &mut self,
        now: Time,
        ix: Idx<Object>,
        claim: Claim,
        unowned: bool,
        depth: u32,
    ) -> Grant {
        let Claim { session, owner, .. } = claim;
        let token = FencingToken(self.next_number);
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Granted { token, depth }, Some(ix), who);
        let sem = self.semlock_mut(ix);
        sem.value -= 1;
        if unowned {
            sem.unowned += 1;
        } else {
            let hold = Hold::new(ix, session, owner, token, now, depth);
            let hold = self.holds.insert(hold);
            let Kind::SemLock(sem) = &mut self.objects[ix].kind else { unreachable!() };
            sem.holds.push_back(&mut self.holds, hold);
            let exclusive = sem.class.is_exclusive();
            let s = self.sessions.get_mut(&session).expect("a waiter's session is open");
            s.holds.insert((ix, token), hold);
            if !exclusive {
                s.permits.insert((ix, owner, token));
            }
            self.count(session, |share| share.holds += 1);
        }
        Grant { token, depth, abandoned: self.tell(ix) }
    }

    /// Takes the oldest untold abandonment, for the next owner.
    fn tell(&mut self, ix: Idx<Object>) -> Option<Arc<Abandonment>> {
        let object = &mut self.objects[ix];
        let trouble = object.trouble.as_mut()?;
        let told = trouble.untold.pop_front();
        if object.poison && told.is_some() {
            trouble.inconsistent = told.clone();
        }
        object.tidy_trouble();
        if let Some(told) = &told {
            self.untold -= 1;
            self.count_of(told.by.process.uid, |share| share.untold -= 1);
        }
        told
    }

    /// Grants free permits to the head of the queue. On a poisoned object, refuses all waiters.
    pub(crate) fn wake(&mut self, now: Time, ix: Idx<Object>) {
        while let Some(first) = self.objects[ix].waiters.first() {
            let last = self.objects[ix].waiters.last().filter(|_| sabotaged(Bug::LastComeFirst));
            let first = last.unwrap_or(first);
            let poisoned = self.objects[ix].poisoned().cloned();
            if poisoned.is_none() && self.semlock(ix).value == 0 {
                return;
            }
            if !self.spend() {
                return self.serve_later(ix);
            }
            if self.is_ended(self.waiters[first].session) {
                self.leave_queue(now, first);
                continue;
            }
            let waiter = self.unqueue(first);
            let (session, request, owner) = (waiter.session, waiter.request, waiter.owner);
            if let Some(by) = poisoned {
                let error = self.refuse(ix, ErrorKind::Poisoned { by });
                self.reply(session, request, Err(error));
                continue;
            }
            let claim = Claim { session, request, owner, timeout: None };
            match waiter.wait {
                Wait::Acquire { unowned } => {
                    self.grant(now, ix, claim, unowned);
                    let is_late = waiter.deadline.is_some_and(|at| at <= now);
                    if is_late && sabotaged(Bug::TimeOutAfterGrant) {
                        let error = self.refuse(ix, ErrorKind::TimedOut { holders: vec![] });
                        self.reply(session, request, Err(error));
                    }
                }
                Wait::Reacquire { condition, depth, notified } => {
                    let grant = self.take(now, ix, claim, false, depth);
                    let undo = Undo {
                        object: ix,
                        id: self.objects[ix].id,
                        owner,
                        token: Some(grant.token),
                        notified: notified.map(|number| (condition, number)),
                        whole: true,
                    };
                    let answer = Answer::Woken { notified: notified.is_some(), grant };
                    self.deliver(session, Body::Reply(request, Ok(answer)), Some(undo));
                }
                Wait::Notify { .. } | Wait::Event | Wait::Barrier { .. } => {
                    unreachable!("a SemLock's waiters wait for permits")
                }
            }
            // The owner may have one wait left, which may now close a cycle.
            self.report_sole_wait(now, session, owner);
        }
    }

    pub(crate) fn release(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
        token: Option<FencingToken>,
    ) -> Outcome {
        let (ix, sem) = self.resolve_semlock(session, handle)?;
        let class = sem.class;
        let oldest = sem.holds.first();
        let hold = match token {
            Some(token) => {
                let own = self.sessions[&session].holds.get(&(ix, token)).copied();
                Some(own.ok_or_else(|| self.refuse(ix, ErrorKind::Stale))?)
            }
            None if class.is_exclusive() => oldest,
            None if sem.value >= sem.max => {
                return Err(self.refuse(ix, ErrorKind::OverReleased { max: sem.max }));
            }
            None if sem.unowned > 0 => None,
            None if class == Class::BoundedSemaphore && oldest.is_none() => {
                return Err(self.refuse(ix, ErrorKind::OverReleased { max: sem.capacity }));
            }
            None => self.own_hold(session, owner, ix).or(oldest),
        };
        match (class, hold) {
            (Class::RLock, hold) if !hold.is_some_and(|h| self.is_of(h, session, owner)) => {
                let holder = hold.map(|hold| self.holder(now, hold));
                return Err(self.refuse(ix, ErrorKind::NotOwner { holder }));
            }
            (Class::Lock, None) => return Err(self.refuse(ix, ErrorKind::OverReleased { max: 1 })),
            (_, Some(hold)) => {
                if token.is_none() && !self.is_of(hold, session, owner) {
                    self.tell_lost(hold, Cause::Released);
                }
                self.release_hold(now, hold, 1);
            }
            (_, None) => self.release_unowned(now, session, owner, ix),
        }
        Ok(Some(Answer::Done { count: 0 }))
    }

    /// The caller's oldest hold of a semaphore.
    fn own_hold(&self, session: SessionId, owner: Owner, ix: Idx<Object>) -> Option<Idx<Hold>> {
        let s = &self.sessions[&session];
        let range = (ix, owner, FencingToken(0))..=(ix, owner, FencingToken(u64::MAX));
        let &(_, _, token) = s.permits.range(range).next()?;
        Some(s.holds[&(ix, token)])
    }

    /// Releases an unowned permit; if none is out, adds one.
    pub(crate) fn release_unowned(
        &mut self,
        now: Time,
        session: SessionId,
        owner: Owner,
        ix: Idx<Object>,
    ) {
        let sem = self.semlock_mut(ix);
        match sem.unowned.checked_sub(1) {
            Some(left) => sem.unowned = left,
            None => sem.capacity += 1,
        }
        sem.value += 1;
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Released { token: None, depth: 0 }, Some(ix), who);
        self.wake(now, ix);
    }
}
