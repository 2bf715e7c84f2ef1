//! Requests that wait: queueing, and every way out of a queue but the grant. Each early
//! exit re-runs the wake-up of the queue that it left.

use std::time::Duration;

use crate::{
    ErrorKind, Owner, RecordKind, RequestId, SessionId, Time,
    deadline::Reason,
    list::{Ix, Linked, Links},
    space::Space,
};

/// A request in an object's queue.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    links: Links,
    pub session: SessionId,
    pub request: RequestId,
    pub owner: Owner,
    /// In whose queue it is.
    pub object: Ix,
    /// The number of the event by which it began to wait.
    pub number: u64,
    pub since: Time,
    pub deadline: Option<Time>,
    pub wait: Wait,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A permit.
    Acquire { loose: bool },
    /// A notify; then its lock, `depth` times.
    Notify { depth: u32 },
    /// The lock again, after a notify of that number, or none: time-out or cancel.
    Reacquire { condition: Ix, depth: u32, notified: Option<u64> },
    /// An event to be set.
    Event,
    /// The other parties. `action`: it has one to run, should it come last.
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
    fn links(&self) -> &Links {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Waiter {
    /// It wants a permit, as opposed to news.
    fn wants_permit(&self) -> bool {
        matches!(self.wait, Wait::Acquire { .. } | Wait::Reacquire { .. })
    }
}

/// Who waits, and how long at most.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    pub session: SessionId,
    pub request: RequestId,
    pub owner: Owner,
    pub timeout: Option<Duration>,
}

impl Space {
    /// It waits at the object; or at a condition, or on its way back from one, that is the
    /// object or has it for a lock.
    pub(crate) fn concerns(&self, waiter: Ix, ix: Ix) -> bool {
        let waiter = &self.waiters[waiter as usize];
        match waiter.wait {
            Wait::Notify { .. } => waiter.object == ix || self.lock_of(waiter.object) == ix,
            Wait::Reacquire { condition, .. } => waiter.object == ix || condition == ix,
            _ => waiter.object == ix,
        }
    }

    /// Refuses if the namespace or the session has as many waiters as it may have.
    pub(crate) fn check_room(&self, session: SessionId, ix: Ix) -> Result<(), Box<crate::Error>> {
        let limits = &self.config.limits;
        let quota = |field, limit: usize| {
            Err(self.refuse(ix, ErrorKind::Quota { field, limit: limit as u64 }))
        };
        if self.waiters.len() >= limits.waiters {
            return quota("waiters", limits.waiters);
        }
        if self.sessions[&session].waiters.len() >= limits.waiters_per_session {
            return quota("waiters_per_session", limits.waiters_per_session);
        }
        Ok(())
    }

    /// Puts a request at the end of an object's queue.
    pub(crate) fn enqueue(&mut self, now: Time, ix: Ix, claim: Claim, wait: Wait) {
        let Claim { session, request, owner, timeout } = claim;
        let deadline = timeout.map(|timeout| now + timeout);
        let kind = match wait {
            Wait::Acquire { .. } => RecordKind::Queued,
            _ => RecordKind::Waiting,
        };
        let who = self.party(session, owner);
        let number = self.emit(now, kind, Some(ix), who);
        let waiter = self.waiters.insert(Waiter {
            links: Links::default(),
            session,
            request,
            owner,
            object: ix,
            number,
            since: now,
            deadline,
            wait,
        }) as Ix;
        self.objects[ix as usize].waiters.push_back(&mut self.waiters, waiter);
        let s = self.sessions.get_mut(&session).expect("the caller's session is open");
        s.waiters.insert(request, waiter);
        if let Some(at) = deadline {
            self.deadlines.insert(at, Reason::Timeout { session, request });
        }
        self.block(waiter);
    }

    /// Takes a waiter out of everything, and returns what it was.
    pub(crate) fn unqueue(&mut self, ix: Ix) -> Waiter {
        self.unblock(ix);
        let object = self.waiters[ix as usize].object;
        self.objects[object as usize].waiters.unlink(&mut self.waiters, ix);
        let waiter = self.waiters.remove(ix as usize);
        let Waiter { session, request, .. } = waiter;
        if let Some(at) = waiter.deadline {
            self.deadlines.remove(at, Reason::Timeout { session, request });
        }
        self.sessions.get_mut(&session).expect("its waiter was here").waiters.remove(&request);
        waiter
    }

    /// Moves a condition's waiter to the queue of its lock.
    pub(crate) fn requeue(&mut self, now: Time, ix: Ix, lock: Ix, notified: Option<u64>) {
        let waiter = &mut self.waiters[ix as usize];
        let Wait::Notify { depth } = waiter.wait else { unreachable!("only a condition's queue") };
        let condition = std::mem::replace(&mut waiter.object, lock);
        waiter.wait = Wait::Reacquire { condition, depth, notified };
        if let Some(at) = waiter.deadline.take() {
            let Waiter { session, request, .. } = *waiter;
            self.deadlines.remove(at, Reason::Timeout { session, request });
        }
        self.objects[condition as usize].waiters.unlink(&mut self.waiters, ix);
        self.objects[lock as usize].waiters.push_back(&mut self.waiters, ix);
        self.block(ix);
        self.report_deadlock(now, ix);
    }

    /// The waiter's time is up.
    pub(crate) fn expire(&mut self, now: Time, ix: Ix) {
        self.announce(now, RecordKind::TimedOut, ix);
        match self.waiters[ix as usize].wait {
            Wait::Notify { .. } => self.end_wait(now, ix),
            Wait::Acquire { .. } | Wait::Event => {
                let object = self.waiters[ix as usize].object;
                let holders = self.holders(now, object);
                self.exit(now, ix, Some(ErrorKind::TimedOut { holders }));
            }
            Wait::Barrier { .. } => {
                let waiter = self.exit(now, ix, Some(ErrorKind::TimedOut { holders: vec![] }));
                self.break_barrier(now, waiter.object);
            }
            Wait::Reacquire { .. } => {}
        }
    }

    /// The client wants its answer now: a wait for a notify ends as by time-out.
    pub(crate) fn recall(&mut self, now: Time, ix: Ix) {
        match self.waiters[ix as usize].wait {
            Wait::Reacquire { .. } => {}
            Wait::Notify { .. } => {
                self.announce(now, RecordKind::Cancelled, ix);
                self.end_wait(now, ix);
            }
            _ => self.give_up(now, ix),
        }
    }

    /// The client wants nothing any more.
    pub(crate) fn give_up(&mut self, now: Time, ix: Ix) {
        self.announce(now, RecordKind::Cancelled, ix);
        self.exit(now, ix, Some(ErrorKind::Cancelled));
    }

    /// The client is gone.
    pub(crate) fn vanish(&mut self, now: Time, ix: Ix) {
        let waiter = self.exit(now, ix, None);
        if matches!(waiter.wait, Wait::Barrier { .. }) {
            self.break_barrier(now, waiter.object);
        }
    }

    /// A wait for a notify ends without one: on to the lock.
    fn end_wait(&mut self, now: Time, ix: Ix) {
        let lock = self.lock_of(self.waiters[ix as usize].object);
        self.requeue(now, ix, lock, None);
        self.wake(now, lock);
    }

    /// Leaves the queue, with an answer unless nobody is there to hear it.
    fn exit(&mut self, now: Time, ix: Ix, answer: Option<ErrorKind>) -> Waiter {
        let waiter = self.unqueue(ix);
        if let Some(kind) = answer {
            let error = self.refuse(waiter.object, kind);
            self.reply(waiter.session, waiter.request, Err(error));
        }
        if let Wait::Reacquire { condition, notified: Some(number), .. } = waiter.wait {
            self.pass_on(now, condition, number);
        }
        if waiter.wants_permit() {
            self.wake(now, waiter.object);
        }
        waiter
    }

    fn announce(&mut self, now: Time, kind: RecordKind, ix: Ix) {
        let Waiter { session, owner, object, .. } = self.waiters[ix as usize];
        let who = self.party(session, owner);
        self.emit(now, kind, Some(object), who);
    }
}
