//! Barrier: parties meet, one may run an action, and all go on; or it breaks for all.

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, SessionId, Time,
    list::Ix,
    object::{Action, Barrier, Kind},
    space::{Outcome, Space},
    waiter::{Claim, Wait},
};

impl Space {
    fn resolve_barrier(&self, session: SessionId, handle: Handle) -> Result<Ix, Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match &self.objects[ix as usize].kind {
            Kind::Barrier(_) => Ok(ix),
            _ => Err(self.mismatch(ix, "Barrier")),
        }
    }

    fn barrier_mut(&mut self, ix: Ix) -> &mut Barrier {
        match &mut self.objects[ix as usize].kind {
            Kind::Barrier(barrier) => barrier,
            _ => unreachable!("checked when the handle was resolved"),
        }
    }

    pub(crate) fn barrier_wait(
        &mut self,
        now: Time,
        handle: Handle,
        claim: Claim,
        has_action: bool,
    ) -> Outcome {
        let ix = self.resolve_barrier(claim.session, handle)?;
        let waiting = self.objects[ix as usize].waiters.len();
        let Barrier { parties, broken, action } = *self.barrier_mut(ix);
        if broken {
            return Err(self.refuse(ix, ErrorKind::BrokenBarrier));
        }
        let last = action.is_none() && waiting + 1 == parties;
        if last && has_action {
            let number = self.next_event;
            let Claim { session, owner, .. } = claim;
            self.barrier_mut(ix).action = Some(Action { session, owner, number });
            return Ok(Some(Answer::BarrierPassed { index: parties - 1, run_action: true }));
        }
        if last {
            self.pass(now, ix, u64::MAX);
            return Ok(Some(Answer::BarrierPassed { index: parties - 1, run_action: false }));
        }
        if claim.timeout.is_some_and(|timeout| timeout.is_zero()) {
            self.break_barrier(now, ix);
            return Err(self.refuse(ix, ErrorKind::TimedOut { holders: Vec::new() }));
        }
        self.check_room(claim.session, ix)?;
        self.enqueue(now, ix, claim, Wait::Barrier { action: has_action });
        Ok(None)
    }

    pub(crate) fn barrier_action(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
        owner: Owner,
        ok: bool,
    ) -> Outcome {
        let ix = self.resolve_barrier(session, handle)?;
        let barrier = self.barrier_mut(ix);
        match barrier.action {
            Some(action) if (action.session, action.owner) == (session, owner) => {
                barrier.action = None;
                if ok {
                    self.pass(now, ix, action.number);
                } else {
                    self.break_barrier(now, ix);
                }
                Ok(Some(Answer::Done { count: 0 }))
            }
            None if barrier.broken => Err(self.refuse(ix, ErrorKind::BrokenBarrier)),
            _ => Err(self.refuse(ix, ErrorKind::NotOwner { holder: None })),
        }
    }

    /// Lets the parties through that began to wait before the event `number`. Those who
    /// came while an action ran may by now make the next full barrier.
    fn pass(&mut self, now: Time, ix: Ix, number: u64) {
        self.emit(now, RecordKind::BarrierPassed, Some(ix), None);
        self.let_through(ix, number);
        let last = self.barrier_mut(ix).parties as usize - 1;
        let next = self.objects[ix as usize].waiters.iter(&self.waiters).nth(last);
        let Some((waiter, _)) = next else { return };
        let waiter = self.unqueue(waiter);
        let run_action = waiter.wait == Wait::Barrier { action: true };
        let answer = Answer::BarrierPassed { index: last as u32, run_action };
        self.reply(waiter.session, waiter.request, Ok(answer));
        if run_action {
            let (session, owner, number) = (waiter.session, waiter.owner, waiter.number);
            self.barrier_mut(ix).action = Some(Action { session, owner, number });
        } else {
            self.pass(now, ix, waiter.number);
        }
    }

    fn let_through(&mut self, ix: Ix, number: u64) {
        let mut index = 0;
        while let Some(waiter) = self.objects[ix as usize].waiters.first()
            && self.waiters[waiter as usize].number < number
        {
            let waiter = self.unqueue(waiter);
            let answer = Answer::BarrierPassed { index, run_action: false };
            self.reply(waiter.session, waiter.request, Ok(answer));
            index += 1;
        }
    }

    /// Breaks it for all who wait, until a reset.
    pub(crate) fn break_barrier(&mut self, now: Time, ix: Ix) {
        let barrier = self.barrier_mut(ix);
        barrier.action = None;
        if !std::mem::replace(&mut barrier.broken, true) {
            self.emit(now, RecordKind::BarrierBroken, Some(ix), None);
        }
        self.turn_away(ix);
    }

    /// Refuses all who wait.
    fn turn_away(&mut self, ix: Ix) {
        while let Some(waiter) = self.objects[ix as usize].waiters.first() {
            let waiter = self.unqueue(waiter);
            let error = self.refuse(ix, ErrorKind::BrokenBarrier);
            self.reply(waiter.session, waiter.request, Err(error));
        }
    }

    pub(crate) fn barrier_reset(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
    ) -> Outcome {
        let ix = self.resolve_barrier(session, handle)?;
        self.turn_away(ix);
        let barrier = self.barrier_mut(ix);
        barrier.broken = false;
        barrier.action = None;
        let who = self.party(session, Owner(0));
        self.emit(now, RecordKind::BarrierReset, Some(ix), who);
        Ok(Some(Answer::Done { count: 0 }))
    }

    pub(crate) fn barrier_abort(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
    ) -> Outcome {
        let ix = self.resolve_barrier(session, handle)?;
        self.break_barrier(now, ix);
        Ok(Some(Answer::Done { count: 0 }))
    }
}
