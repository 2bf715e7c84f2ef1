//! Event: a flag to set, clear and wait for.

use std::time::Duration;

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, RequestId, SessionId, Time,
    list::Ix,
    object::Kind,
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

impl Space {
    fn resolve_event(&self, session: SessionId, handle: Handle) -> Result<(Ix, bool), Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match self.objects[ix as usize].kind {
            Kind::Event { set } => Ok((ix, set)),
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
        let (ix, was) = self.resolve_event(session, handle)?;
        let mut count = 0;
        if was != set {
            self.objects[ix as usize].kind = Kind::Event { set };
            let who = self.party(session, Owner(0));
            let kind = if set { RecordKind::Set } else { RecordKind::Cleared };
            self.emit(now, kind, Some(ix), who);
        }
        // Nobody waits for an event that is set.
        while set && let Some(waiter) = self.objects[ix as usize].waiters.first() {
            let waiter = self.unqueue(waiter);
            self.reply(waiter.session, waiter.request, Ok(Answer::Done { count: 0 }));
            count += 1;
        }
        Ok(Some(Answer::Done { count }))
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
        let (ix, set) = self.resolve_event(session, handle)?;
        if set {
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
