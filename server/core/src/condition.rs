//! Condition: wait and notify. A waiter is in one queue at any time: the condition's or, once
//! notified or timed out, the lock's. So a notify never wakes a client that would have to wait
//! again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, RequestId, SessionId, Time,
    arena::Idx,
    hold::Hold,
    object::{Kind, Object},
    sabotage::{Bug, sabotaged},
    space::{Outcome, Space},
    waiter::{Claim, Wait, Waiter},
    work::{Notify, Progress, Task},
};

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Condition {
    /// Its Lock or RLock; counts as a reference to that.
    pub lock: Idx<Object>,
}

impl Space {
    /// A condition's lock.
    pub(crate) fn lock_of(&self, condition: Idx<Object>) -> Idx<Object> {
        match self.objects[condition].kind {
            Kind::Condition(Condition { lock }) => lock,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    /// The condition behind a handle, and `owner`'s hold of its lock.
    fn resolve_condition(
        &self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
    ) -> Result<(Idx<Object>, Idx<Hold>), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        let Kind::Condition(Condition { lock }) = self.objects[ix].kind else {
            return Err(self.mismatch(ix, "Condition"));
        };
        match self.semlock(lock).holds.first() {
            Some(hold) if self.is_of(hold, session, owner) => Ok((ix, hold)),
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
        let depth = self.holds[hold].depth;
        let claim = Claim { session, request, owner, timeout };
        let waiter = self.enqueue(now, ix, claim, Wait::Notify { depth });
        self.release_hold(now, hold, u32::MAX);
        // A zero time-out expires at once, but the lock's queue is served first.
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            self.expire(now, waiter);
        }
        Ok(None)
    }

    pub(crate) fn notify(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        handle: Handle,
        owner: Owner,
        n: Option<u32>,
    ) -> Outcome {
        let (ix, _) = self.resolve_condition(now, session, handle, owner)?;
        let notify = Notify {
            condition: self.at(ix),
            before: self.next_number,
            left: n.unwrap_or(u32::MAX),
            count: 0,
            answer: Some((session, request)),
        };
        self.begin(now, Task::Notify(notify));
        Ok(None)
    }

    /// Passes the notify of a waiter that went away before it got the lock to the next waiter that
    /// waited when the notify was made. The caller must serve the lock's queue.
    pub(crate) fn pass_on(&mut self, now: Time, condition: Idx<Object>, before: u64) {
        if let Some(object) = self.objects.get(condition)
            && matches!(object.kind, Kind::Condition(_))
        {
            let condition = self.at(condition);
            let notify = Notify { condition, before, left: 1, count: 0, answer: None };
            self.begin(now, Task::Notify(notify));
        }
    }

    /// Moves the oldest waiters to the end of the lock's queue. An acquire that arrives between two
    /// pieces of a long notify gets a place between them.
    pub(crate) fn go_on_notifying(&mut self, now: Time, notify: &mut Notify) -> Progress {
        let Notify { condition, before, .. } = *notify;
        let mut progress = Progress::Over;
        if self.is_there(condition) {
            let lock = self.lock_of(condition.ix);
            while notify.left > 0
                && let Some(waiter) = self.first_waiting_before(condition.ix, before)
            {
                if !self.spend() {
                    progress = Progress::More;
                    break;
                }
                if self.is_ended(self.waiters[waiter].session) {
                    self.unqueue(waiter);
                    continue;
                }
                self.announce(now, RecordKind::Notified, waiter);
                self.requeue(waiter, lock, Some(before));
                if sabotaged(Bug::RequeuedTwice) && notify.left > u32::MAX / 2 {
                    let again = self.waiters.insert(self.waiters[waiter].clone());
                    self.objects[lock].waiters.push_back(&mut self.waiters, again);
                }
                notify.left -= 1;
                notify.count += 1;
            }
            if progress == Progress::Over && notify.count > 0 {
                self.report_notified_deadlock(now, lock, before);
            }
        }
        if progress == Progress::Over
            && let Some((session, request)) = notify.answer
        {
            self.reply(session, request, Ok(Answer::Done { count: notify.count }));
        }
        progress
    }

    fn first_waiting_before(&self, condition: Idx<Object>, before: u64) -> Option<Idx<Waiter>> {
        let first = self.objects[condition].waiters.first()?;
        (self.waiters[first].number < before).then_some(first)
    }
}
