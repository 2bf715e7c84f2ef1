//! Waiters: queueing, and every way out of a queue except the grant. Each early exit wakes the queue
//! that it left.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ErrorKind, Owner, RecordKind, RequestId, SessionId, Time,
    arena::{Idx, Linked, Links},
    deadline::Reason,
    object::{Kind, Object},
    sabotage::{Bug, sabotaged},
    space::Space,
};

/// A request in an object's queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Waiter {
    links: Links<Waiter>,
    pub session: SessionId,
    pub request: RequestId,
    pub owner: Owner,
    /// The object in whose queue it is.
    pub object: Idx<Object>,
    /// The number of the record by which it began to wait.
    pub number: u64,
    pub since: Time,
    pub deadline: Option<Time>,
    pub wait: Wait,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wait {
    /// A permit.
    Acquire { unowned: bool },
    /// A notify; after it the condition's lock at `depth`.
    Notify { depth: u32 },
    /// The condition's lock, after the notify of this number, a time-out or a cancel (None).
    Reacquire { condition: Idx<Object>, depth: u32, notified: Option<u64> },
    /// An event to be set.
    Event,
    /// The other parties. `action`: this party runs an action if it is the last.
    Barrier { action: bool },
}

impl Wait {
    pub fn as_str(self) -> &'static str {
        match self {
            Wait::Acquire { .. } => "acquire",
            Wait::Notify { .. } => "wait",
            Wait::Reacquire { .. } => "reacquire",
            Wait::Event => "event",
            Wait::Barrier { .. } => "barrier",
        }
    }
}

impl Linked for Waiter {
    fn links(&self) -> &Links<Self> {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links<Self> {
        &mut self.links
    }
}

impl Waiter {
    /// Whether it waits for a permit.
    fn wants_permit(&self) -> bool {
        matches!(self.wait, Wait::Acquire { .. } | Wait::Reacquire { .. })
    }
}

/// A request that wants to acquire or wait, and its time-out.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    pub session: SessionId,
    pub request: RequestId,
    pub owner: Owner,
    pub timeout: Option<Duration>,
}

impl Space {
    /// The objects whose last Detach ends a wait: the one that it began at and, for a condition,
    /// also the lock.
    pub(crate) fn concerned(&self, waiter: &Waiter) -> [Option<Idx<Object>>; 2] {
        match waiter.wait {
            Wait::Notify { .. } => [Some(waiter.object), Some(self.lock_of(waiter.object))],
            Wait::Reacquire { condition, .. } => [Some(condition), Some(waiter.object)],
            _ => [Some(waiter.object), None],
        }
    }

    /// Whether its answer is decided, though not sent yet.
    fn is_decided(&self, ix: Idx<Waiter>) -> bool {
        let waiter = &self.waiters[ix];
        match &self.objects[waiter.object].kind {
            Kind::Event(event) => waiter.number < event.woken_before,
            Kind::Barrier(barrier) => barrier.is_decided(waiter),
            Kind::SemLock(_) | Kind::Condition(_) => false,
        }
    }

    /// Refuses if the namespace or the session has as many waiters as it may have.
    pub(crate) fn check_room(
        &self,
        session: SessionId,
        ix: Idx<Object>,
    ) -> Result<(), Box<crate::Error>> {
        let limits = &self.config.limits;
        let quota = |field, limit: usize| {
            Err(self.refuse(ix, ErrorKind::Quota { field, limit: limit as u64 }))
        };
        let s = &self.sessions[&session];
        let all = (limits.waiters, self.waiters.len());
        let checked = self.check_share(s.process.uid, "waiters", all, |share| share.waiters);
        checked.map_err(|kind| self.refuse(ix, kind))?;
        if s.waiters.len() >= limits.waiters_per_session {
            return quota("waiters_per_session", limits.waiters_per_session);
        }
        Ok(())
    }

    /// Puts a request at the end of an object's queue.
    pub(crate) fn enqueue(
        &mut self,
        now: Time,
        ix: Idx<Object>,
        claim: Claim,
        wait: Wait,
    ) -> Idx<Waiter> {
        let Claim { session, request, owner, timeout } = claim;
        let deadline = timeout.map(|timeout| now + timeout);
        let kind = match wait {
            Wait::Acquire { .. } => RecordKind::Queued,
            _ => RecordKind::Waiting,
        };
        let who = self.party(session, owner);
        let number = self.emit(now, kind, Some(ix), who);
        let links = Links::default();
        let waiter = Waiter {
            links,
            session,
            request,
            owner,
            object: ix,
            number,
            since: now,
            deadline,
            wait,
        };
        let concerned = self.concerned(&waiter);
        let waiter = self.waiters.insert(waiter);
        let object = &mut self.objects[ix];
        object.waiters.push_back(&mut self.waiters, waiter);
        match &mut object.kind {
            Kind::Event(event) => event.waiting += 1,
            Kind::Barrier(barrier) => barrier.coming += 1,
            Kind::SemLock(_) | Kind::Condition(_) => {}
        }
        let s = self.sessions.get_mut(&session).expect("the caller's session is open");
        s.waiters.insert(request, waiter);
        s.waits_at.extend(concerned.into_iter().flatten().map(|ix| (ix, request)));
        if let Some(at) = deadline {
            self.deadlines.insert(at, Reason::Timeout { session, request });
        }
        self.count(session, |share| share.waiters += 1);
        self.block(waiter);
        waiter
    }

    /// Removes a waiter from all tables, and returns it.
    pub(crate) fn unqueue(&mut self, ix: Idx<Waiter>) -> Waiter {
        self.unblock(ix);
        let concerned = self.concerned(&self.waiters[ix]);
        let object = &mut self.objects[self.waiters[ix].object];
        match &mut object.kind {
            Kind::Event(event) if self.waiters[ix].number >= event.woken_before => {
                event.waiting -= 1;
            }
            Kind::Barrier(barrier) => {
                let cursor = barrier.cursor().map(|cursor| self.waiters[cursor].number);
                barrier.leave(ix, &self.waiters[ix], cursor);
            }
            Kind::Event(_) | Kind::SemLock(_) | Kind::Condition(_) => {}
        }
        object.waiters.unlink(&mut self.waiters, ix);
        let waiter = self.waiters.remove(ix);
        let Waiter { session, request, .. } = waiter;
        if let Some(at) = waiter.deadline {
            self.deadlines.remove(at, Reason::Timeout { session, request });
        }
        let s = self.sessions.get_mut(&session).expect("its waiter was here");
        s.waiters.remove(&request);
        for object in concerned.into_iter().flatten() {
            s.waits_at.remove(&(object, request));
        }
        self.count(session, |share| share.waiters -= 1);
        waiter
    }

    /// Moves a condition's waiter to the queue of its lock.
    pub(crate) fn requeue(&mut self, ix: Idx<Waiter>, lock: Idx<Object>, notified: Option<u64>) {
        let waiter = &mut self.waiters[ix];
        let Wait::Notify { depth } = waiter.wait else { unreachable!("a condition's waiter") };
        let condition = std::mem::replace(&mut waiter.object, lock);
        waiter.wait = Wait::Reacquire { condition, depth, notified };
        if let Some(at) = waiter.deadline.take() {
            let Waiter { session, request, .. } = *waiter;
            self.deadlines.remove(at, Reason::Timeout { session, request });
        }
        self.objects[condition].waiters.unlink(&mut self.waiters, ix);
        self.objects[lock].waiters.push_back(&mut self.waiters, ix);
        self.block(ix);
    }

    /// Handles a waiter's time-out.
    pub(crate) fn expire(&mut self, now: Time, ix: Idx<Waiter>) {
        if self.is_decided(ix) {
            return;
        }
        self.announce(now, RecordKind::TimedOut, ix);
        match self.waiters[ix].wait {
            Wait::Notify { .. } => self.end_wait(now, ix),
            Wait::Acquire { .. } | Wait::Event => {
                let holders = self.holders(now, self.waiters[ix].object);
                self.exit(now, ix, ErrorKind::TimedOut { holders });
            }
            Wait::Barrier { .. } => {
                let barrier = self.waiters[ix].object;
                self.exit(now, ix, ErrorKind::TimedOut { holders: vec![] });
                self.break_barrier(now, barrier);
            }
            Wait::Reacquire { .. } => {}
        }
    }

    /// Handles a Cancel without `give_back`: ends the wait. A wait for a notify ends as by a
    /// time-out.
    pub(crate) fn recall(&mut self, now: Time, ix: Idx<Waiter>) {
        match self.waiters[ix].wait {
            Wait::Reacquire { .. } => {}
            Wait::Notify { .. } => {
                self.announce(now, RecordKind::Cancelled, ix);
                self.end_wait(now, ix);
            }
            _ => self.withdraw(now, ix),
        }
    }

    /// Handles a Cancel with `give_back`: ends the wait, unless its answer is decided.
    pub(crate) fn withdraw(&mut self, now: Time, ix: Idx<Waiter>) {
        if !self.is_decided(ix) {
            self.give_up(now, ix);
        }
    }

    /// Ends the wait, even if its answer is decided.
    pub(crate) fn give_up(&mut self, now: Time, ix: Idx<Waiter>) {
        self.announce(now, RecordKind::Cancelled, ix);
        self.exit(now, ix, ErrorKind::Cancelled);
    }

    /// Removes a waiter whose session has ended.
    pub(crate) fn vanish(&mut self, now: Time, ix: Idx<Waiter>) {
        let breaks = matches!(self.waiters[ix].wait, Wait::Barrier { .. }) && !self.is_decided(ix);
        let waiter = self.leave_queue(now, ix);
        if breaks {
            self.break_barrier(now, waiter.object);
        }
        if waiter.wants_permit() {
            self.wake(now, waiter.object);
        }
    }

    /// Ends a wait for a notify without one: the waiter moves to the lock's queue.
    fn end_wait(&mut self, now: Time, ix: Idx<Waiter>) {
        let lock = self.lock_of(self.waiters[ix].object);
        self.requeue(ix, lock, None);
        self.report_deadlock(now, ix);
        self.wake(now, lock);
    }

    /// Ends a wait with a refusal.
    fn exit(&mut self, now: Time, ix: Idx<Waiter>, why: ErrorKind) {
        let waiter = self.leave_queue(now, ix);
        let error = self.refuse(waiter.object, why);
        self.reply(waiter.session, waiter.request, Err(error));
        if waiter.wants_permit() {
            self.wake(now, waiter.object);
            self.report_sole_wait(now, waiter.session, waiter.owner);
        }
    }

    /// Removes a waiter before its turn, and passes its notify on. The caller must serve the queue.
    pub(crate) fn leave_queue(&mut self, now: Time, ix: Idx<Waiter>) -> Waiter {
        let waiter = self.unqueue(ix);
        if let Wait::Reacquire { condition, notified: Some(number), .. } = waiter.wait
            && !(sabotaged(Bug::NotifyLostOnDeath) && self.is_ended(waiter.session))
        {
            self.pass_on(now, condition, number);
        }
        waiter
    }

    pub(crate) fn announce(&mut self, now: Time, kind: RecordKind, ix: Idx<Waiter>) {
        let Waiter { session, owner, object, .. } = self.waiters[ix];
        let who = self.party(session, owner);
        self.emit(now, kind, Some(object), who);
    }
}
