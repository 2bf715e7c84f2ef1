//! Condition: wait, and notify. A waiter is in one queue at any time: the condition's,
//! or, once notified or out of time, its lock's; so a notify wakes nobody who would
//! only have to wait again.

use std::time::Duration;

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, RequestId, SessionId, Time,
    list::Ix,
    object::Kind,
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

impl Space {
    /// A condition's lock.
    pub(crate) fn lock_of(&self, condition: Ix) -> Ix {
        match self.objects[condition as usize].kind {
            Kind::Condition { lock } => lock,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    /// The condition behind a handle, and its owner's hold of the lock.
    fn resolve_condition(
        &self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
    ) -> Result<(Ix, Ix), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        let Kind::Condition { lock } = self.objects[ix as usize].kind else {
            return Err(self.mismatch(ix, "Condition"));
        };
        let hold = self.semlock(lock).holds.first();
        match hold.map(|hold| (hold, &self.holds[hold as usize])) {
            Some((ix_hold, hold)) if (hold.session, hold.owner) == (session, owner) => {
                Ok((ix, ix_hold))
            }
            _ => {
                let holder = self.first_holders(now, lock, 1).pop();
                Err(self.refuse(lock, ErrorKind::NotOwner { holder }))
            }
        }
    }

    pub(crate) fn wait(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        handle: Handle,
        owner: Owner,
        timeout: Option<Duration>,
    ) -> Outcome {
        let (ix, hold) = self.resolve_condition(now, session, handle, owner)?;
        self.check_room(session, ix)?;
        let depth = self.holds[hold as usize].depth;
        let claim = Claim { session, request, owner, timeout };
        self.enqueue(now, ix, claim, Wait::Notify { depth });
        self.release_hold(now, hold, u32::MAX);
        // No time at all is up at once, but those in the lock's queue come first.
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            let waiter = self.sessions[&session].waiters[&request];
            self.expire(now, waiter);
        }
        Ok(None)
    }

    pub(crate) fn notify(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
        n: Option<u32>,
    ) -> Outcome {
        let (ix, _) = self.resolve_condition(now, session, handle, owner)?;
        let lock = self.lock_of(ix);
        let mut count = 0;
        while n.is_none_or(|n| count < n)
            && let Some(waiter) = self.objects[ix as usize].waiters.first()
        {
            let number = self.emit_notified(now, ix, waiter);
            self.requeue(now, waiter, lock, Some(number));
            count += 1;
        }
        Ok(Some(Answer::Done { count }))
    }

    /// A notified waiter went away before it could act: the notify is the next one's,
    /// provided that it waited when the notify was made.
    pub(crate) fn pass_on(&mut self, now: Time, condition: Ix, number: u64) {
        let Some(object) = self.objects.get(condition as usize) else { return };
        let (Kind::Condition { lock }, Some(next)) = (&object.kind, object.waiters.first()) else {
            return;
        };
        let lock = *lock;
        if self.waiters[next as usize].number < number {
            self.emit_notified(now, condition, next);
            self.requeue(now, next, lock, Some(number));
            self.wake(now, lock);
        }
    }

    fn emit_notified(&mut self, now: Time, condition: Ix, waiter: Ix) -> u64 {
        let waiter = &self.waiters[waiter as usize];
        let who = self.party(waiter.session, waiter.owner);
        self.emit(now, RecordKind::Notified, Some(condition), who)
    }
}
