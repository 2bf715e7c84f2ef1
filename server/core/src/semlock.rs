//! SemLock: Lock, RLock, Semaphore, BoundedSemaphore. Permits, who holds them, and what
//! owners leave behind.

use std::sync::Arc;

use crate::{
    Abandonment, Acquire, Answer, Body, Cause, Class, Error, ErrorKind, Grant, Handle, Holder,
    Input, ObjectId, Owner, RecordKind, RequestId, SessionId, State, Time, Token,
    list::{Ix, Linked, Links},
    object::{Kind, Object, SemLock},
    session::Undo,
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

/// An owned permit that is out.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    links: Links,
    pub object: Ix,
    pub session: SessionId,
    pub owner: Owner,
    pub token: Token,
    pub since: Time,
    /// Above 1 for an RLock alone.
    pub depth: u32,
}

impl Linked for Hold {
    fn links(&self) -> &Links {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links {
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
    ) -> Result<(Ix, &SemLock), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match self.objects[ix as usize].semlock() {
            Some(sem) => Ok((ix, sem)),
            None => Err(self.mismatch(ix, "Lock, RLock or Semaphore")),
        }
    }

    pub(crate) fn semlock(&self, ix: Ix) -> &SemLock {
        self.objects[ix as usize].semlock().expect("checked when the handle was resolved")
    }

    fn semlock_mut(&mut self, ix: Ix) -> &mut SemLock {
        match &mut self.objects[ix as usize].kind {
            Kind::SemLock(sem) => sem,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    /// The one hold of a Lock or RLock.
    pub(crate) fn sole_hold(&self, ix: Ix) -> Option<&Hold> {
        self.semlock(ix).holds.first().map(|hold| &self.holds[hold as usize])
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
        let (class, free) = (sem.class, sem.value > 0);
        if class == Class::RLock
            && let Some(hold) = sem.holds.first()
            && self.is_of(hold, session, owner)
        {
            return self.acquire_deeper(now, session, request, hold);
        }
        if let Some(by) = self.objects[ix as usize].poisoned() {
            return Err(self.refuse(ix, ErrorKind::Poisoned { by: by.clone() }));
        }
        let claim = Claim { session, request, owner, timeout };
        let loose = loose && !class.is_exclusive();
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
        self.enqueue(now, ix, claim, Wait::Acquire { loose });
        let waiter = self.sessions[&session].waiters[&request];
        self.report_deadlock(now, waiter);
        Ok(None)
    }

    fn is_of(&self, hold: Ix, session: SessionId, owner: Owner) -> bool {
        let hold = &self.holds[hold as usize];
        (hold.session, hold.owner) == (session, owner)
    }

    /// An RLock's owner takes it once more.
    fn acquire_deeper(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        ix: Ix,
    ) -> Outcome {
        let Hold { object, owner, token, depth, .. } = self.holds[ix as usize];
        let Some(depth) = depth.checked_add(1) else {
            let kind = ErrorKind::Quota { field: "depth", limit: u64::from(u32::MAX) };
            return Err(self.refuse(object, kind));
        };
        self.holds[ix as usize].depth = depth;
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Granted { token, depth }, Some(object), who);
        let grant = Grant { token, depth, abandoned: None };
        let id = self.objects[object as usize].id;
        let undo = Undo { object, id, owner, token: Some(token), notified: None, whole: false };
        self.deliver(session, Body::Reply(request, Ok(Answer::Granted(grant))), Some(undo));
        Ok(None)
    }

    /// Takes a free permit for an Acquire, and answers it.
    fn grant(&mut self, now: Time, ix: Ix, claim: Claim, loose: bool) {
        let grant = self.take(now, ix, claim, loose, 1);
        let token = (!loose).then_some(grant.token);
        let id = self.objects[ix as usize].id;
        let undo = Undo { object: ix, id, owner: claim.owner, token, notified: None, whole: false };
        let reply = Body::Reply(claim.request, Ok(Answer::Granted(grant)));
        self.deliver(claim.session, reply, Some(undo));
    }

    /// Takes a free permit.
    fn take(&mut self, now: Time, ix: Ix, claim: Claim, loose: bool, depth: u32) -> Grant {
        let Claim { session, owner, .. } = claim;
        let token = Token(self.next_event);
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Granted { token, depth }, Some(ix), who);
        let sem = self.semlock_mut(ix);
        sem.value -= 1;
        if loose {
            sem.loose += 1;
        } else {
            let links = Links::default();
            let hold = Hold { links, object: ix, session, owner, token, since: now, depth };
            let hold = self.holds.insert(hold) as Ix;
            let Kind::SemLock(sem) = &mut self.objects[ix as usize].kind else { unreachable!() };
            sem.holds.push_back(&mut self.holds, hold);
            let s = self.sessions.get_mut(&session).expect("a waiter's session is open");
            s.holds.insert((ix, token), hold);
        }
        Grant { token, depth, abandoned: self.tell(ix) }
    }

    /// The oldest abandonment that nobody was told of.
    fn tell(&mut self, ix: Ix) -> Option<Arc<Abandonment>> {
        let object = &mut self.objects[ix as usize];
        let trouble = object.trouble.as_mut()?;
        let told = trouble.untold.pop_front();
        if object.poison && told.is_some() {
            trouble.inconsistent = told.clone();
        }
        object.tidy_trouble();
        told
    }

    /// Grants free permits to the head of the queue, as far as they go.
    pub(crate) fn wake(&mut self, now: Time, ix: Ix) {
        while let Some(waiter) = self.objects[ix as usize].waiters.first() {
            let poisoned = self.objects[ix as usize].poisoned().cloned();
            if poisoned.is_none() && self.semlock(ix).value == 0 {
                return;
            }
            let waiter = self.unqueue(waiter);
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
                        id: self.objects[ix as usize].id,
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

    /// The caller's oldest hold of an object.
    fn own_hold(&self, session: SessionId, owner: Owner, ix: Ix) -> Option<Ix> {
        let range = (ix, Token(0))..=(ix, Token(u64::MAX));
        let mut own = self.sessions[&session].holds.range(range).map(|(_, &hold)| hold);
        own.find(|&hold| self.holds[hold as usize].owner == owner)
    }

    fn release_loose(&mut self, now: Time, session: SessionId, owner: Owner, ix: Ix) {
        let sem = self.semlock_mut(ix);
        sem.loose = sem.loose.saturating_sub(1);
        sem.value += 1;
        let who = self.party(session, owner);
        self.emit(now, RecordKind::Released { token: None, depth: 0 }, Some(ix), who);
        self.wake(now, ix);
    }

    /// Gives up `levels` of a hold, in order.
    pub(crate) fn release_hold(&mut self, now: Time, ix: Ix, levels: u32) {
        let hold = &mut self.holds[ix as usize];
        hold.depth = hold.depth.saturating_sub(levels);
        let Hold { object, session, owner, token, depth, .. } = *hold;
        let who = self.party(session, owner);
        let released = RecordKind::Released { token: Some(token), depth };
        self.emit(now, released, Some(object), who.clone());
        if depth > 0 {
            return;
        }
        self.end_hold(ix);
        let o = &mut self.objects[object as usize];
        if let Some(trouble) = &mut o.trouble
            && let Some(left) = trouble.inconsistent.take()
        {
            trouble.poisoned = Some(left);
            self.emit(now, RecordKind::Poisoned, Some(object), who);
        }
        self.wake(now, object);
    }

    /// Ends a hold whose owner did not release it.
    pub(crate) fn abandon(&mut self, now: Time, ix: Ix, cause: Cause) {
        let Hold { object, session, owner, token, since, .. } = self.holds[ix as usize];
        let by = self.party(session, owner).expect("a hold's session is open");
        let kind = RecordKind::Abandoned { token, cause };
        self.emit(now, kind, Some(object), Some(by.clone()));
        self.end_hold(ix);
        let left = Abandonment { by, token, held: now.since(since), at: now, cause };
        let trouble = self.objects[object as usize].trouble_mut();
        trouble.inconsistent = None;
        trouble.untold.push_back(Arc::new(left));
        self.wake(now, object);
    }

    fn end_hold(&mut self, ix: Ix) {
        let Hold { object, session, token, .. } = self.holds[ix as usize];
        let Kind::SemLock(sem) = &mut self.objects[object as usize].kind else { unreachable!() };
        sem.holds.unlink(&mut self.holds, ix);
        sem.value += 1;
        self.holds.remove(ix as usize);
        let s = self.sessions.get_mut(&session).expect("a hold's session is open");
        s.holds.remove(&(object, token));
    }

    fn tell_lost(&mut self, hold: Ix, cause: Cause) {
        let Hold { object, session, owner, token, .. } = self.holds[hold as usize];
        let handle = self.sessions[&session].handle_of(object).expect("holding needs a reference");
        self.deliver(session, Body::HoldLost { handle, owner, token, cause }, None);
    }

    /// Takes an object from all who hold it; each is told, and the next owner learns
    /// that it was abandoned. Returns who they were; `None` if there is no such object.
    pub fn handle_force_release(&mut self, now: Time, object: ObjectId) -> Option<Vec<Holder>> {
        self.call(now, Input::ForceRelease(object));
        let ix = self.index_of(object)?;
        let Some(sem) = self.objects[ix as usize].semlock() else { return Some(Vec::new()) };
        let holds: Vec<Ix> = sem.holds.iter(&self.holds).map(|(hold, _)| hold).collect();
        let holders = holds.iter().map(|&hold| self.holder(now, hold)).collect();
        for hold in holds {
            self.tell_lost(hold, Cause::Forced);
            self.abandon(now, hold, Cause::Forced);
        }
        Some(holders)
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
        let who = self.party(session, self.holds[hold as usize].owner);
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
        let object = &mut self.objects[ix as usize];
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
        if self.objects.get(ix as usize).is_none_or(|object| object.id != undo.id) {
            return;
        }
        let hold = match undo.token {
            Some(token) => match self.sessions[&session].holds.get(&(ix, token)) {
                Some(&hold) => Some(hold),
                None => return,
            },
            None => None,
        };
        if let Some(untold) = untold {
            let trouble = self.objects[ix as usize].trouble_mut();
            trouble.inconsistent = None;
            trouble.untold.push_front(untold);
        }
        if let Some((condition, number)) = undo.notified {
            self.pass_on(now, condition, number);
        }
        match hold {
            Some(hold) => self.release_hold(now, hold, if undo.whole { u32::MAX } else { 1 }),
            None if self.semlock(ix).loose > 0 => {
                self.release_loose(now, session, undo.owner, ix);
            }
            // Somebody else has given the permit back already.
            None => {}
        }
    }

    fn holder(&self, now: Time, hold: Ix) -> Holder {
        let hold = &self.holds[hold as usize];
        Holder {
            party: self.party(hold.session, hold.owner).expect("a hold's session is open"),
            token: hold.token,
            held: now.since(hold.since),
            depth: hold.depth,
        }
    }

    /// The first holders of an object, oldest first.
    pub(crate) fn holders(&self, now: Time, ix: Ix) -> Vec<Holder> {
        self.first_holders(now, ix, State::HOLDERS)
    }

    pub(crate) fn first_holders(&self, now: Time, ix: Ix, most: usize) -> Vec<Holder> {
        let Some(sem) = self.objects[ix as usize].semlock() else { return Vec::new() };
        sem.holds.iter(&self.holds).take(most).map(|(hold, _)| self.holder(now, hold)).collect()
    }
}
