//! Barrier: parties wait for each other, the last may run an action, and all pass; or the barrier
//! breaks for all.
//!
//! The fate of waiters is a *verdict* on all with a lower number. It takes effect at once, and the
//! waiters are answered one by one from the head of the queue, within each call's budget. Behind
//! them in the queue are the parties of the full barrier whose action runs, if one does, and behind
//! those the parties that have arrived since.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    Answer, Error, ErrorKind, Handle, Owner, RecordKind, SessionId, Time,
    arena::{Idx, after},
    object::{Kind, Object},
    sabotage::{Bug, sabotaged},
    space::{Outcome, Space},
    waiter::{Claim, Wait, Waiter},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Barrier {
    pub parties: u32,
    pub broken: bool,
    /// In the order of the queue.
    pub verdicts: VecDeque<Verdict>,
    /// Set while the last party of a full barrier runs its action and the others wait.
    pub action: Option<Action>,
    /// The number of those others.
    pub full: u32,
    /// The number of parties that have arrived for the next full barrier.
    pub coming: u32,
    /// How far the search for the last party of the next full barrier has got: a waiter, and how
    /// many are before it.
    search: Option<(Idx<Waiter>, u32)>,
}

/// The answer to waiters whose number is below `before`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    before: u64,
    /// The index of the next party to pass; `None`: the barrier broke.
    passes: Option<u32>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Action {
    pub session: SessionId,
    pub owner: Owner,
    /// Waiters with a lower number belong to the full barrier.
    number: u64,
}

impl Barrier {
    pub fn new(parties: u32) -> Self {
        Barrier {
            parties,
            broken: false,
            verdicts: VecDeque::new(),
            action: None,
            full: 0,
            coming: 0,
            search: None,
        }
    }

    /// Whether there is a verdict on a waiter.
    pub fn is_decided(&self, waiter: &Waiter) -> bool {
        self.verdicts.back().is_some_and(|verdict| waiter.number < verdict.before)
    }

    /// Removes a waiter from the counts; `cursor` is the number of the waiter that the search has
    /// reached.
    pub fn leave(&mut self, ix: Idx<Waiter>, waiter: &Waiter, cursor: Option<u64>) {
        if self.is_decided(waiter) {
            return;
        }
        match self.action {
            Some(action) if waiter.number < action.number => self.full -= 1,
            _ => self.coming -= 1,
        }
        match &mut self.search {
            Some((at, _)) if *at == ix => self.search = None,
            Some((_, before)) if cursor.is_some_and(|cursor| waiter.number < cursor) => {
                *before -= 1;
            }
            _ => {}
        }
    }

    pub fn cursor(&self) -> Option<Idx<Waiter>> {
        self.search.map(|(at, _)| at)
    }
}

impl Space {
    fn resolve_barrier(
        &self,
        session: SessionId,
        handle: Handle,
    ) -> Result<Idx<Object>, Box<Error>> {
        let ix = self.resolve(session, handle)?;
        match &self.objects[ix].kind {
            Kind::Barrier(_) => Ok(ix),
            _ => Err(self.mismatch(ix, "Barrier")),
        }
    }

    pub(crate) fn barrier_mut(&mut self, ix: Idx<Object>) -> &mut Barrier {
        match &mut self.objects[ix].kind {
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
        let number = self.next_number;
        let barrier = self.barrier_mut(ix);
        let is_short = barrier.parties > 1 && sabotaged(Bug::BarrierOneShort);
        let parties = barrier.parties - u32::from(is_short);
        if barrier.broken {
            return Err(self.refuse(ix, ErrorKind::BrokenBarrier));
        }
        if barrier.action.is_none() && barrier.coming + 1 == parties {
            // A search was in progress for parties of which some have left.
            barrier.search = None;
            if has_action {
                let Claim { session, owner, .. } = claim;
                barrier.action = Some(Action { session, owner, number });
                barrier.full = std::mem::take(&mut barrier.coming);
            } else {
                barrier.coming = 0;
                self.pass(now, ix, number);
                self.serve_barrier(now, ix);
            }
            let (index, run_action) = (parties - 1, has_action);
            return Ok(Some(Answer::BarrierPassed { index, run_action }));
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
                if ok {
                    barrier.action = None;
                    barrier.full = 0;
                    self.pass(now, ix, action.number);
                    self.serve_barrier(now, ix);
                } else {
                    self.break_barrier(now, ix);
                }
                Ok(Some(Answer::Done { count: 0 }))
            }
            None if barrier.broken => Err(self.refuse(ix, ErrorKind::BrokenBarrier)),
            _ => Err(self.refuse(ix, ErrorKind::NotOwner { holder: None })),
        }
    }

    /// Lets the waiters with a number below `before` pass.
    fn pass(&mut self, now: Time, ix: Idx<Object>, before: u64) {
        self.emit(now, RecordKind::BarrierPassed, Some(ix), None);
        let verdict = Verdict { before, passes: Some(0) };
        self.barrier_mut(ix).verdicts.push_back(verdict);
    }

    /// Answers the waiters with a verdict. After that, parties that arrived during an action may
    /// fill the barrier again, more than once.
    pub(crate) fn serve_barrier(&mut self, now: Time, ix: Idx<Object>) {
        loop {
            let Some(&verdict) = self.barrier_mut(ix).verdicts.front() else {
                match self.next_last(ix) {
                    Some(last) => self.fill(now, ix, last),
                    None => return,
                }
                continue;
            };
            let first = self.objects[ix].waiters.first();
            let Some(waiter) = first.filter(|&w| self.waiters[w].number < verdict.before) else {
                self.barrier_mut(ix).verdicts.pop_front();
                continue;
            };
            if !self.spend() {
                return self.serve_later(ix);
            }
            let waiter = self.unqueue(waiter);
            let reply = match verdict.passes {
                Some(index) => Ok(Answer::BarrierPassed { index, run_action: false }),
                None => Err(self.refuse(ix, ErrorKind::BrokenBarrier)),
            };
            self.reply(waiter.session, waiter.request, reply);
            if let Some(verdict) = self.barrier_mut(ix).verdicts.front_mut() {
                verdict.passes = verdict.passes.map(|index| index + 1);
            }
        }
    }

    /// The last party of the next full barrier, if enough have arrived. Continues the search of an
    /// earlier call.
    fn next_last(&mut self, ix: Idx<Object>) -> Option<Idx<Waiter>> {
        let barrier = self.barrier_mut(ix);
        if barrier.action.is_some() || barrier.coming < barrier.parties {
            barrier.search = None;
            return None;
        }
        let (last, search) = (barrier.parties - 1, barrier.search.take());
        let first = self.objects[ix].waiters.first();
        let (mut at, mut before) = search.or(first.map(|first| (first, 0)))?;
        while self.spend() {
            if before == last {
                return Some(at);
            }
            at = after(&self.waiters[at]).expect("`coming` waiters are in the queue");
            before += 1;
        }
        self.barrier_mut(ix).search = Some((at, before));
        self.serve_later(ix);
        None
    }

    /// The barrier is full, with `last` as its last party.
    fn fill(&mut self, now: Time, ix: Idx<Object>, last: Idx<Waiter>) {
        let waiter = self.unqueue(last);
        let barrier = self.barrier_mut(ix);
        let others = barrier.parties - 1;
        barrier.coming -= others;
        let run_action = waiter.wait == Wait::Barrier { action: true };
        let Waiter { session, owner, request, number, .. } = waiter;
        if run_action {
            barrier.action = Some(Action { session, owner, number });
            barrier.full = others;
        }
        let answer = Answer::BarrierPassed { index: others, run_action };
        self.reply(session, request, Ok(answer));
        if !run_action {
            self.pass(now, ix, number);
        }
    }

    /// Breaks the barrier for all waiters, until a reset.
    pub(crate) fn break_barrier(&mut self, now: Time, ix: Idx<Object>) {
        if !std::mem::replace(&mut self.barrier_mut(ix).broken, true) {
            self.emit(now, RecordKind::BarrierBroken, Some(ix), None);
        }
        self.turn_away(now, ix);
    }

    /// Refuses all waiters that no verdict lets pass.
    fn turn_away(&mut self, now: Time, ix: Idx<Object>) {
        let before = self.next_number;
        let barrier = self.barrier_mut(ix);
        (barrier.action, barrier.full, barrier.coming, barrier.search) = (None, 0, 0, None);
        match barrier.verdicts.back_mut() {
            Some(verdict) if verdict.passes.is_none() => verdict.before = before,
            _ => barrier.verdicts.push_back(Verdict { before, passes: None }),
        }
        self.serve_barrier(now, ix);
    }

    pub(crate) fn barrier_reset(
        &mut self,
        now: Time,
        session: SessionId,
        handle: Handle,
    ) -> Outcome {
        let ix = self.resolve_barrier(session, handle)?;
        self.turn_away(now, ix);
        self.barrier_mut(ix).broken = false;
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

    /// Breaks the barrier if this session was running its action.
    pub(crate) fn leave_barrier(&mut self, now: Time, session: SessionId, ix: Idx<Object>) {
        if let Kind::Barrier(barrier) = &self.objects[ix].kind
            && barrier.action.is_some_and(|action| action.session == session)
        {
            self.break_barrier(now, ix);
        }
    }
}
