//! Which call an owner makes next, drawn from what it could do now.

use syncd_proto::v1::{self, client_message::Request};

use super::{
    Checked,
    plan::Kind,
    process::{Binding, Held},
    witness::What,
    world::World,
};

impl World<'_> {
    /// An owner that waits for nothing does something.
    pub fn begin_something(&mut self, at: usize, owner: usize) -> Checked {
        let me = &self.processes[at].owners[owner];
        let number = me.number;
        // What it has, it gives back before long.
        if let Some(&held) = self.rng.choice(&me.holds)
            && self.rng.u32(..3) == 0
        {
            let waits = self.rng.u32(..3) == 0;
            return self.release(at, owner, held, waits);
        }
        if let Some(&object) = self.rng.choice(&me.acting) {
            let ok = self.rng.u32(..5) > 0;
            self.processes[at].owners[owner].acting.retain(|acting| *acting != object);
            let Some(handle) = self.handle(at, object) else { return Ok(()) };
            let report = v1::BarrierAction { handle, owner: number, ok };
            return self.ask(at, owner, object, What::Report, None, Request::BarrierAction(report));
        }
        let object = self.rng.usize(..self.plan.objects.len());
        let kind = self.plan.objects[object];
        let Some(session) = &self.processes[at].session else { return Ok(()) };
        match (session.bindings[object], kind) {
            (Binding::Made, _) => return Ok(()),
            (Binding::None, Kind::Condition { lock }) => {
                return match session.bindings[lock] {
                    Binding::None => self.attach(at, owner, lock),
                    Binding::Made => Ok(()),
                    Binding::Bound(_) => self.attach(at, owner, object),
                };
            }
            (Binding::None, _) => return self.attach(at, owner, object),
            (Binding::Bound(_), _) => {}
        }
        if self.rng.u32(..1000) < self.plan.chaos.detach {
            return self.detach(at, owner, object);
        }
        if self.rng.u32(..25) == 0 {
            return self.query(at, owner, object);
        }
        let held = self.held(at, owner, object);
        match kind {
            Kind::Lock { .. } | Kind::RLock { .. } => self.lock_call(at, owner, object, held),
            Kind::Semaphore { .. } => self.semaphore_call(at, owner, object, held),
            Kind::Counter { .. } => self.counter_call(at, owner, object),
            Kind::Condition { lock } => match self.held(at, owner, lock) {
                Some(held) => self.condition_call(at, owner, object, held),
                None => self.acquire(at, owner, lock, false),
            },
            Kind::Event => self.event_call(at, owner, object),
            Kind::Barrier { .. } => self.barrier_call(at, owner, object),
        }
    }

    fn held(&self, at: usize, owner: usize, object: usize) -> Option<Held> {
        let holds = &self.processes[at].owners[owner].holds;
        holds.iter().find(|held| held.object == object).copied()
    }

    fn query(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        let query = Request::Query(v1::Query { handle });
        if self.rng.u32(..100) < self.plan.chaos.flood {
            for _ in 0..self.rng.u32(300..1500) {
                let id = self.call(at, owner, object, What::Query, None, query.clone())?;
                self.processes[at].owners[owner].flood.push(id);
            }
            return Ok(());
        }
        self.ask(at, owner, object, What::Query, None, query)
    }

    /// A session gives up its reference, whatever its owners do there.
    fn detach(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        let has_condition =
            |kind: &Kind| matches!(kind, Kind::Condition { lock } if *lock == object);
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        if self.plan.objects.iter().any(has_condition) {
            return Ok(());
        }
        if let Some(session) = &mut self.processes[at].session {
            session.bindings[object] = Binding::None;
        }
        for owner in &mut self.processes[at].owners {
            owner.holds.retain(|held| held.object != object);
            owner.acting.retain(|acting| *acting != object);
        }
        let detach = Request::Detach(v1::Detach { handle, quiet: false });
        self.ask(at, owner, object, What::Detach, None, detach)
    }

    pub fn acquire(&mut self, at: usize, owner: usize, object: usize, unowned: bool) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        let is_exclusive = self.plan.objects[object].is_exclusive();
        let careful = !unowned && is_exclusive && self.rng.u32(..5) == 0;
        let timeout = self.timeout();
        let acquire = v1::Acquire {
            handle,
            owner: self.processes[at].owners[owner].number,
            unowned,
            timeout_us: timeout,
            fail_on_deadlock: careful,
        };
        let what = What::Acquire { unowned, careful };
        self.ask(at, owner, object, what, timeout, Request::Acquire(acquire))
    }

    fn lock_call(&mut self, at: usize, owner: usize, object: usize, held: Option<Held>) -> Checked {
        let kind = self.plan.objects[object];
        match (held, kind) {
            (None, Kind::Lock { stolen: true, .. }) if self.rng.u32(..5) == 0 => {
                let waits = self.rng.bool();
                self.release_bare(at, owner, object, waits)
            }
            (None, _) => self.acquire(at, owner, object, false),
            (Some(held), _) if held.abandoned && self.rng.bool() => {
                let Some(handle) = self.handle(at, object) else { return Ok(()) };
                let number = self.processes[at].owners[owner].number;
                let mark = v1::MarkConsistent { handle, owner: number };
                let mark = Request::MarkConsistent(mark);
                self.ask(at, owner, object, What::Mark, None, mark)
            }
            (Some(held), Kind::RLock { .. }) if held.depth < 4 && self.rng.bool() => {
                self.acquire(at, owner, object, false)
            }
            // Its owner would wait for itself, unless it asked not to.
            (Some(_), Kind::Lock { .. }) if self.rng.u32(..8) == 0 => {
                self.acquire(at, owner, object, false)
            }
            (Some(held), _) => {
                let waits = self.rng.bool();
                self.release(at, owner, held, waits)
            }
        }
    }

    fn semaphore_call(
        &mut self,
        at: usize,
        owner: usize,
        object: usize,
        held: Option<Held>,
    ) -> Checked {
        let me = &mut self.processes[at].owners[owner];
        let (number, waits) = (me.number, self.rng.u32(..3) == 0);
        let mine = me.unowned.iter().position(|unowned| *unowned == object);
        match (self.rng.u32(..6), mine, held) {
            (0..=2, Some(mine), _) => {
                me.unowned.swap_remove(mine);
                self.release_bare(at, owner, object, waits)
            }
            (0..=2, None, Some(held)) => self.release(at, owner, held, waits),
            (3, _, Some(held)) => {
                let Some(handle) = self.handle(at, object) else { return Ok(()) };
                let token = held.token;
                me_forgets(&mut self.processes[at].owners[owner].holds, token);
                let forget = v1::Forget { handle, owner: number, token, quiet: false };
                self.ask(at, owner, object, What::Forget { token }, None, Request::Forget(forget))
            }
            (choice, _, _) => self.acquire(at, owner, object, choice % 2 == 0),
        }
    }

    fn counter_call(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        if self.rng.bool() {
            return self.acquire(at, owner, object, true);
        }
        if self.rng.u32(..100) < self.plan.chaos.flood {
            let items = self.rng.u32(300..2500);
            self.processes[at].owners[owner].items = Some((object, items));
            return Ok(());
        }
        let waits = self.rng.u32(..3) == 0;
        self.release_bare(at, owner, object, waits)
    }

    fn condition_call(&mut self, at: usize, owner: usize, object: usize, held: Held) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        let number = self.processes[at].owners[owner].number;
        if self.rng.u32(..5) < 2 {
            let n = self.rng.u32(..4);
            let most = if n == 0 { u32::MAX } else { n };
            let notify = Request::Notify(v1::Notify { handle, owner: number, n });
            return self.ask(at, owner, object, What::Notify { n: most }, None, notify);
        }
        let timeout = self.timeout();
        self.processes[at].owners[owner].holds.retain(|mine| mine.token != held.token);
        let wait = Request::Wait(v1::Wait { handle, owner: number, timeout_us: timeout });
        self.ask(at, owner, object, What::Wait { depth: held.depth }, timeout, wait)
    }

    fn event_call(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        match self.rng.u32(..5) {
            0 => {
                let set = Request::EventSet(v1::EventSet { handle });
                self.ask(at, owner, object, What::Set(true), None, set)
            }
            1 => {
                let clear = Request::EventClear(v1::EventClear { handle });
                self.ask(at, owner, object, What::Set(false), None, clear)
            }
            _ => {
                let timeout = self.timeout();
                let owner_number = self.processes[at].owners[owner].number;
                let wait = v1::EventWait { handle, owner: owner_number, timeout_us: timeout };
                self.ask(at, owner, object, What::Await, timeout, Request::EventWait(wait))
            }
        }
    }

    fn barrier_call(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        match self.rng.u32(..12) {
            0 => {
                let reset = Request::BarrierReset(v1::BarrierReset { handle });
                self.ask(at, owner, object, What::Reset, None, reset)
            }
            1 if self.rng.bool() => {
                let abort = Request::BarrierAbort(v1::BarrierAbort { handle });
                self.ask(at, owner, object, What::Abort, None, abort)
            }
            _ => {
                let timeout = if self.rng.bool() { None } else { self.timeout() };
                let wait = v1::BarrierWait {
                    handle,
                    owner: self.processes[at].owners[owner].number,
                    timeout_us: timeout,
                    has_action: self.rng.u32(..3) == 0,
                };
                self.ask(at, owner, object, What::Meet, timeout, Request::BarrierWait(wait))
            }
        }
    }
}

fn me_forgets(holds: &mut Vec<Held>, token: u64) {
    holds.retain(|held| held.token != token);
}
