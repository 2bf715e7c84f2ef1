//! SemLock: Lock, RLock, Semaphore, BoundedSemaphore. Permits, who holds them, and what
//! owners leave behind.

use std::sync::Arc;

use crate::{
    Abandonment, Acquire, Answer, Body, Cause, Class, Error, ErrorKind, Grant, Handle, Holder,
    Holders, Input, ObjectId, Owner, RecordKind, RequestId, SessionId, State, Time, Token,
    arena::{Idx, Linked, Links, List},
    object::{Kind, Object},
    session::Undo,
    space::{Outcome, Space},
    waiter::{Claim, Wait},
    work::{At, Progress, Task},
};

/// Permits: free, owned and loose ones add up to the capacity, which nothing changes but a
/// release of a Semaphore while no permit is out.
#[derive(Clone, Debug)]
pub(crate) struct SemLock {
    pub class: Class,
    pub initial: u32,
    pub max: u32,
    pub capacity: u32,
    /// Free permits. Above 0 only while nobody waits, or the queue is on the agenda.
    pub value: u32,
    /// Permits that are out and nobody's.
    pub loose: u32,
    /// Permits that are out and owned, oldest first.
    pub holds: List<Hold>,
}

impl SemLock {
    pub fn new(class: Class, value: u32, max: u32) -> Self {
        let holds = List::default();
        SemLock { class, initial: value, max, capacity: value, value, loose: 0, holds }
    }
}

/// An owned permit that is out.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    links: Links<Hold>,
    pub object: Idx<Object>,
    pub session: SessionId,
    pub owner: Owner,
    pub token: Token,
    pub since: Time,
    /// Above 1 for an RLock alone.
    pub depth: u32,
}

impl Linked for Hold {
    fn links(&self) -> &Links<Self> {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links<Self> {
        &mut self.links
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
    fn resolve_semlock(
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

    fn semlock_mut(&mut self, ix: Idx<Object>) -> &mut SemLock {
        match &mut self.objects[ix].kind {
            Kind::SemLock(sem) => sem,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    /// The one hold of a Lock or RLock.
    pub(crate) fn sole_hold(&self, ix: Idx<Object>) -> Option<&Hold> {
        self.semlock(ix).holds.first().map(|hold| &self.holds[hold])
    }

    pub(crate) fn acquire(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        acquire: Acquire,
    ) -> Outcome {
        let Acquire { handle, owner, loose, timeout, fail_on_deadlock } = acquire;
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
        let loose = loose && !class.is_exclusive();
        if !loose {
            self.check_holds(session, ix)?;
        }
        if free {
            self.grant(now, ix, claim, loose);
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
        let waiter = self.enqueue(now, ix, claim, Wait::Acquire { loose });
        self.report_deadlock(now, waiter);
        Ok(None)
    }

    /// Refuses if the namespace or the session owns as many permits as it may.
    fn check_holds(&self, session: SessionId, ix: Idx<Object>) -> Result<(), Box<Error>> {
        let limits = &self.config.limits;
        let quota = |field, limit: usize| {
            Err(self.refuse(ix, ErrorKind::Quota { field, limit: limit as u64 }))
        };
        if self.holds.len() >= limits.holds {
            return quota("holds", limits.holds);
        }
        if self.sessions[&session].holds.len() >= limits.holds_per_session {
            return quota("holds_per_session", limits.holds_per_session);
        }
        Ok(())
    }

    pub(crate) fn is_of(&self, hold: Idx<Hold>, session: SessionId, owner: Owner) -> bool {
        let hold = &self.holds[hold];
        (hold.session, hold.owner) == (session, owner)
    }

    /// An RLock's owner takes it once more.
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
    fn grant(&mut self, now: Time, ix: Idx<Object>, claim: Claim, loose: bool) {
        let grant = self.take(now, ix, claim, loose, 1);
        let token = (!loose).then_some(grant.token);
        let id = self.objects[ix].id;
        let undo = Undo { object: ix, id, owner: claim.owner, token, notified: None, whole: false };
        let reply = Body::Reply(claim.request, Ok(Answer::Granted(grant)));
        self.deliver(claim.session, reply, Some(undo));
    }

    /// Takes a free permit.
    fn take(&mut self, now: Time, ix: Idx<Object>, claim: Claim, loose: bool, depth: u32) -> Grant {
        let Claim { session, owner, .. } = claim;
        let token = Token(self.next_number);
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Granted { token, depth }, Some(ix), who);
        let sem = self.semlock_mut(ix);
        sem.value -= 1;
        if loose {
            sem.loose += 1;
        } else {
            let links = Links::default();
            let hold = Hold { links, object: ix, session, owner, token, since: now, depth };
            let hold = self.holds.insert(hold);
            let Kind::SemLock(sem) = &mut self.objects[ix].kind else { unreachable!() };
            sem.holds.push_back(&mut self.holds, hold);
            let exclusive = sem.class.is_exclusive();
            let s = self.sessions.get_mut(&session).expect("a waiter's session is open");
            s.holds.insert((ix, token), hold);
            if !exclusive {
                s.permits.insert((ix, owner, token));
            }
        }
        Grant { token, depth, abandoned: self.tell(ix) }
    }

    /// The oldest abandonment that nobody was told of.
    fn tell(&mut self, ix: Idx<Object>) -> Option<Arc<Abandonment>> {
        let object = &mut self.objects[ix];
        let trouble = object.trouble.as_mut()?;
        let told = trouble.untold.pop_front();
        if object.poison && told.is_some() {
            trouble.inconsistent = told.clone();
        }
        object.tidy_trouble();
        told
    }

    /// Grants free permits to the head of the queue, as far as they go. On a poisoned object,
    /// all who wait are refused.
    pub(crate) fn wake(&mut self, now: Time, ix: Idx<Object>) {
        while let Some(first) = self.objects[ix].waiters.first() {
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
                Wait::Acquire { loose } => self.grant(now, ix, claim, loose),
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
                    unreachable!("only permits are waited for at a SemLock")
                }
            }
            // With this wait out of the way, its other one may be all that the owner does.
            self.report_sole_wait(now, session, owner);
        }
    }

    pub(crate) fn release(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
        token: Option<Token>,
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
            None if sem.loose > 0 => None,
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
            (_, None) => self.release_loose(now, session, owner, ix),
        }
        Ok(Some(Answer::Done { count: 0 }))
    }

    /// The caller's oldest hold of a semaphore.
    fn own_hold(&self, session: SessionId, owner: Owner, ix: Idx<Object>) -> Option<Idx<Hold>> {
        let s = &self.sessions[&session];
        let range = (ix, owner, Token(0))..=(ix, owner, Token(u64::MAX));
        let &(_, _, token) = s.permits.range(range).next()?;
        Some(s.holds[&(ix, token)])
    }

    /// A loose permit comes back; without any out, there is one more.
    fn release_loose(&mut self, now: Time, session: SessionId, owner: Owner, ix: Idx<Object>) {
        let sem = self.semlock_mut(ix);
        match sem.loose.checked_sub(1) {
            Some(left) => sem.loose = left,
            None => sem.capacity += 1,
        }
        sem.value += 1;
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Released { token: None, depth: 0 }, Some(ix), who);
        self.wake(now, ix);
    }

    /// Gives up `levels` of a hold, in order.
    pub(crate) fn release_hold(&mut self, now: Time, ix: Idx<Hold>, levels: u32) {
        let hold = &mut self.holds[ix];
        hold.depth = hold.depth.saturating_sub(levels);
        let Hold { object, session, owner, token, depth, .. } = *hold;
        let who = self.party(session, owner);
        let released = RecordKind::Released { token: Some(token), depth };
        self.emit(now, released, Some(object), who.clone());
        if depth > 0 {
            return;
        }
        self.end_hold(ix);
        let o = &mut self.objects[object];
        if let Some(trouble) = &mut o.trouble
            && let Some(left) = trouble.inconsistent.take()
        {
            trouble.poisoned = Some(left);
            self.emit(now, RecordKind::Poisoned, Some(object), who);
        }
        self.wake(now, object);
    }

    /// Ends a hold whose owner did not release it.
    pub(crate) fn abandon(&mut self, now: Time, ix: Idx<Hold>, cause: Cause) {
        let Hold { object, session, owner, token, since, .. } = self.holds[ix];
        let by = self.party(session, owner).expect("a hold's session is open");
        let kind = RecordKind::Abandoned { token, cause };
        self.emit(now, kind, Some(object), Some(by.clone()));
        self.end_hold(ix);
        let left = Abandonment { by, token, held: now.since(since), at: now, cause };
        let trouble = self.objects[object].trouble_mut();
        trouble.inconsistent = None;
        trouble.untold.push_back(Arc::new(left));
        self.wake(now, object);
    }

    fn end_hold(&mut self, ix: Idx<Hold>) {
        let Hold { object, session, owner, token, .. } = self.holds[ix];
        let Kind::SemLock(sem) = &mut self.objects[object].kind else { unreachable!() };
        sem.holds.unlink(&mut self.holds, ix);
        sem.value += 1;
        self.holds.remove(ix);
        let s = self.sessions.get_mut(&session).expect("a hold's session is open");
        s.holds.remove(&(object, token));
        s.permits.remove(&(object, owner, token));
    }

    fn tell_lost(&mut self, hold: Idx<Hold>, cause: Cause) {
        let Hold { object, session, owner, token, .. } = self.holds[hold];
        // In the middle of a Detach it has no name for the object any more.
        if let Some(handle) = self.sessions[&session].handle_of(object) {
            self.deliver(session, Body::HoldLost { handle, owner, token, cause }, None);
        }
    }

    /// Takes an object from all who hold it; each is told, and the next owner learns
    /// that it was abandoned. Returns who they are; `None` if there is no such object.
    pub fn handle_force_release(&mut self, now: Time, object: ObjectId) -> Option<Holders> {
        self.call(now, Input::ForceRelease(object));
        let ix = *self.ids.get(&object)?;
        let holders = self.all_holders(now, ix);
        if let Some(last) = self.objects[ix].semlock().and_then(|sem| sem.holds.last()) {
            let (at, last) = (self.at(ix), self.holds[last].token);
            self.begin(now, Task::Force { at, last });
        }
        Some(holders)
    }

    pub(crate) fn go_on_forcing(&mut self, now: Time, at: At, last: Token) -> Progress {
        while self.spend() {
            let sem = self.objects.get(at.ix).filter(|o| o.id == at.id).and_then(Object::semlock);
            let hold = sem.and_then(|sem| sem.holds.first());
            let Some(hold) = hold.filter(|&hold| self.holds[hold].token <= last) else {
                return Progress::Over;
            };
            self.tell_lost(hold, Cause::Forced);
            self.abandon(now, hold, Cause::Forced);
        }
        Progress::More
    }

    pub(crate) fn forget(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        token: Token,
    ) -> Outcome {
        let (ix, sem) = self.resolve_semlock(session, handle)?;
        if sem.class.is_exclusive() {
            return Err(self.mismatch(ix, "Semaphore"));
        }
        let hold = self.sessions[&session].holds.get(&(ix, token)).copied();
        let hold = hold.ok_or_else(|| self.refuse(ix, ErrorKind::Stale))?;
        let who = self.party(session, self.holds[hold].owner);
        self.end_hold(hold);
        let sem = self.semlock_mut(ix);
        sem.value -= 1;
        sem.loose += 1;
        self.emit(now, RecordKind::Forgotten { token }, Some(ix), who);
        Ok(Some(Answer::Done { count: 0 }))
    }

    pub(crate) fn mark_consistent(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
    ) -> Outcome {
        let (ix, sem) = self.resolve_semlock(session, handle)?;
        if let Some(hold) = sem.holds.first()
            && sem.class.is_exclusive()
            && !self.is_of(hold, session, owner)
        {
            let holder = Some(self.holder(now, hold));
            return Err(self.refuse(ix, ErrorKind::NotOwner { holder }));
        }
        let object = &mut self.objects[ix];
        if let Some(trouble) = &mut object.trouble {
            let healed = trouble.inconsistent.take().is_some() | trouble.poisoned.take().is_some();
            object.tidy_trouble();
            if healed {
                let who = self.party(session, owner);
                self.emit(now, RecordKind::Consistent, Some(ix), who);
            }
        }
        Ok(Some(Answer::Done { count: 0 }))
    }

    /// Gives back a grant that its client never learnt of.
    pub(crate) fn undo_grant(
        &mut self,
        now: Time,
        session: SessionId,
        undo: Undo,
        untold: Option<Arc<Abandonment>>,
    ) {
        let ix = undo.object;
        if !self.is_there(At { ix, id: undo.id }) {
            return;
        }
        let hold = undo.token.map(|token| self.sessions[&session].holds.get(&(ix, token)).copied());
        if let Some(untold) = untold {
            let trouble = self.objects[ix].trouble_mut();
            // Of another owner's abandonment, if this hold is gone.
            if hold != Some(None) {
                trouble.inconsistent = None;
            }
            trouble.untold.push_front(untold);
        }
        if let Some((condition, number)) = undo.notified {
            self.pass_on(now, condition, number);
        }
        match hold {
            Some(Some(hold)) => {
                self.release_hold(now, hold, if undo.whole { u32::MAX } else { 1 });
            }
            // It was released by somebody else, or taken by force.
            Some(None) => self.wake(now, ix),
            None if self.semlock(ix).loose > 0 => {
                self.release_loose(now, session, undo.owner, ix);
            }
            // Somebody else has given the permit back already.
            None => {}
        }
    }

    fn holder(&self, now: Time, hold: Idx<Hold>) -> Holder {
        let hold = &self.holds[hold];
        Holder {
            party: self.party(hold.session, hold.owner).expect("a hold's session is open"),
            token: hold.token,
            held: now.since(hold.since),
            depth: hold.depth,
        }
    }

    /// The first holders of an object, oldest first.
    pub(crate) fn holders(&self, now: Time, ix: Idx<Object>) -> Vec<Holder> {
        self.first_holders(now, ix, State::HOLDERS)
    }

    pub(crate) fn first_holders(&self, now: Time, ix: Idx<Object>, most: usize) -> Vec<Holder> {
        let Some(sem) = self.objects[ix].semlock() else { return Vec::new() };
        sem.holds.iter(&self.holds).take(most).map(|(hold, _)| self.holder(now, hold)).collect()
    }
}
