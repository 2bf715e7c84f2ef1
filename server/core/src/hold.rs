//! Holds: owned permits, and every way in which one ends: a release by its owner or another, a
//! release by force, the session's end, or the undo of a grant that never arrived.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    Abandonment, Answer, Body, Cause, Class, ErrorKind, FencingToken, Handle, Holder, Holders,
    Input, ObjectId, Owner, RecordKind, SessionId, State, Time,
    arena::{Idx, Linked, Links},
    object::{Kind, Object},
    outgoing::Undo,
    sabotage::{Bug, sabotaged},
    space::{Outcome, Space},
    work::{At, Progress, Task},
};

/// An owned permit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hold {
    links: Links<Hold>,
    pub object: Idx<Object>,
    pub session: SessionId,
    pub owner: Owner,
    pub token: FencingToken,
    pub since: Time,
    /// Above 1 only for an RLock.
    pub depth: u32,
}

impl Hold {
    pub fn new(
        object: Idx<Object>,
        session: SessionId,
        owner: Owner,
        token: FencingToken,
        since: Time,
        depth: u32,
    ) -> Self {
        Hold { links: Links::default(), object, session, owner, token, since, depth }
    }
}

impl Linked for Hold {
    fn links(&self) -> &Links<Self> {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links<Self> {
        &mut self.links
    }
}

impl Space {
    /// Releases `levels` of a hold.
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
        if sabotaged(Bug::AbandonmentUntold) {
            return self.wake(now, object);
        }
        let left = Abandonment { by, token, held: now.since(since), at: now, cause };
        let trouble = self.objects[object].trouble_mut();
        trouble.inconsistent = None;
        trouble.untold.push_back(Arc::new(left));
        self.untold += 1;
        self.count(session, |share| share.untold += 1);
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
        self.count(session, |share| share.holds -= 1);
    }

    pub(crate) fn tell_lost(&mut self, hold: Idx<Hold>, cause: Cause) {
        let Hold { object, session, owner, token, .. } = self.holds[hold];
        // During a Detach the session has no handle for the object any more.
        if let Some(handle) = self.sessions[&session].handle_of(object) {
            self.deliver(session, Body::HoldLost { handle, owner, token, cause }, None);
        }
    }

    /// Releases an object by force from all its holders. Each is told, and its hold counts as
    /// abandoned. Returns the holders; `None` if there is no such object.
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

    pub(crate) fn go_on_forcing(&mut self, now: Time, at: At, last: FencingToken) -> Progress {
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
        token: FencingToken,
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
        sem.unowned += 1;
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

    /// Undoes a grant that its client never learnt of.
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
            self.count_of(untold.by.process.uid, |share| share.untold += 1);
            let trouble = self.objects[ix].trouble_mut();
            // If the hold is gone, `inconsistent` belongs to a later owner.
            if hold != Some(None) {
                trouble.inconsistent = None;
            }
            trouble.untold.push_front(untold);
            self.untold += 1;
        }
        if let Some((condition, number)) = undo.notified {
            self.pass_on(now, condition, number);
        }
        match hold {
            Some(Some(hold)) => {
                self.release_hold(now, hold, if undo.whole { u32::MAX } else { 1 });
            }
            // The hold was released by another owner, or by force.
            Some(None) => self.wake(now, ix),
            None => {
                let sem = self.semlock(ix);
                // Another owner's release ended this permit. Without the grant, that release would
                // have added a permit to a Semaphore; the other classes are complete.
                let makes_one = sem.class == Class::Semaphore && sem.value < sem.max;
                if sem.unowned > 0 || makes_one {
                    self.release_unowned(now, session, undo.owner, ix);
                }
            }
        }
    }

    pub(crate) fn holder(&self, now: Time, hold: Idx<Hold>) -> Holder {
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
