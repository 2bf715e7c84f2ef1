//! Event: a flag to set, clear and wait for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, RequestId, SessionId, Time,
    arena::Idx,
    object::{Kind, Object},
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Event {
    pub set: bool,
    /// Waiters with a lower number were woken by a Set, though perhaps not answered yet.
    pub woken_before: u64,
    /// The number of other waiters; 0 while the event is set.
    pub waiting: u32,
}

impl Space {
    fn resolve_event(
        &self,
        session: SessionId,
        handle: Handle,
    ) -> Result<(Idx<Object>, Event), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match self.objects[ix].kind {
            Kind::Event(event) => Ok((ix, event)),
            _ => Err(self.mismatch(ix, "Event")),
        }
    }

    pub(crate) fn event_assign(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        set: bool,
    ) -> Outcome {
        let (ix, mut event) = self.resolve_event(session, handle)?;
        let mut count = 0;
        if event.set != set {
            event.set = set;
            let who = self.party(session, Owner(0));
            let kind = if set { RecordKind::Set } else { RecordKind::Cleared };
            let number = self.emit(now, kind, Some(ix), who);
            if set {
                count = std::mem::take(&mut event.waiting);
                event.woken_before = number;
            }
            self.objects[ix].kind = Kind::Event(event);
            self.tell_woken(ix, event.woken_before);
        }
        Ok(Some(Answer::Done { count }))
    }

    /// Answers the waiters that a Set has woken.
    pub(crate) fn tell_woken(&mut self, ix: Idx<Object>, before: u64) {
        while let Some(waiter) = self.objects[ix].waiters.first()
            && self.waiters[waiter].number < before
        {
            if !self.spend() {
                return self.serve_later(ix);
            }
            let waiter = self.unqueue(waiter);
            self.reply(waiter.session, waiter.request, Ok(Answer::Done { count: 0 }));
        }
    }

    pub(crate) fn event_wait(
        &mut self,
        now: Time,
        session: SessionId,
        request: RequestId,
        handle: Handle,
        owner: Owner,
        timeout: Option<Duration>,
    ) -> Outcome {
        let (ix, event) = self.resolve_event(session, handle)?;
        if event.set {
            return Ok(Some(Answer::Done { count: 0 }));
        }
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(self.refuse(ix, ErrorKind::TimedOut { holders: Vec::new() }));
        }
        self.check_room(session, ix)?;
        self.enqueue(now, ix, Claim { session, request, owner, timeout }, Wait::Event);
        Ok(None)
    }
}
