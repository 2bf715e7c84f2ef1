//! The end of a run: links work again, nobody begins anything, everybody gives back what it has
//! and leaves, and the world must be empty. An usher attends to those who wait for a notify, an
//! event or other parties.

use syncd_proto::v1::{self, ErrorCode, client_message::Request, server_message::Message};

use super::{
    Checked,
    broker::LINGER,
    plan::Kind,
    process::Binding,
    witness::What,
    world::{Event, USHER, World},
};

/// Events after which a world that isn't quiet never will be.
const NEVER: usize = 200_000;

/// How often everybody gives back what it has: each time, others get it.
const ROUNDS: usize = 200;

impl World<'_> {
    /// The usher opens its session and makes the objects.
    pub fn furnish(&mut self) -> Checked {
        self.healing = true;
        self.begin(USHER)?;
        self.quiet()?;
        for object in 0..self.plan.objects.len() {
            self.attach(USHER, 0, object)?;
            let id = self.processes[USHER].owners[0].pending.unwrap_or(0);
            self.keys[object] = match self.answer(id)? {
                Message::Attached(attached) => Some(attached.key),
                other => return Err(format!("no object: {other:?}")),
            };
        }
        if self.plan.warm {
            self.warm_up()?;
        }
        self.healing = false;
        Ok(())
    }

    /// Everybody opens a session and attaches to everything.
    fn warm_up(&mut self) -> Checked {
        for at in 1..self.processes.len() {
            self.restart(at)?;
        }
        self.quiet()?;
        for object in 0..self.plan.objects.len() {
            for at in 1..self.processes.len() {
                self.attach(at, 0, object)?;
            }
            self.quiet()?;
        }
        Ok(())
    }

    /// Waits for the answer to the usher's request.
    fn answer(&mut self, id: u64) -> Result<Message, String> {
        for _ in 0..NEVER {
            let Some(session) = &mut self.processes[USHER].session else {
                return Err("the usher has no session".to_owned());
            };
            let sid = session.sid;
            if session.ready.remove(&id) {
                let Some(result) = session.protocol.poll_reply(id) else {
                    return Err(format!("the usher has no answer to {id}"));
                };
                self.processes[USHER].owners[0].pending = None;
                let call = self.witness.calls[&(sid, id)];
                if let Ok(Message::Attached(attached)) = &result
                    && let Some(session) = &mut self.processes[USHER].session
                {
                    session.bindings[call.object] = Binding::Bound(attached.handle);
                }
                self.witness.now = self.now;
                self.witness.answered(sid, id, &result)?;
                return result.map_err(|failure| format!("the usher is told {failure:?}"));
            }
            if !self.carry_on()? {
                self.pass_time(self.now + 100 * self.plan.grace)
                    .ok_or_else(|| format!("the usher waits for ever: {id}"))?;
            }
        }
        Err(format!("the usher waits too long: {id}"))
    }

    /// The usher makes a request and waits for the answer.
    fn usher(&mut self, object: usize, what: What, request: Request) -> Result<Message, String> {
        self.ask(USHER, 0, object, what, None, request)?;
        let id = self.processes[USHER].owners[0].pending.unwrap_or(0);
        self.answer(id)
    }

    /// Time goes on to when something is due, if that is before `end`.
    fn pass_time(&mut self, end: u64) -> Option<()> {
        let due = self.next_due().filter(|due| *due <= end)?;
        self.now = self.now.max(due);
        Some(())
    }

    /// All that was begun is carried on until nothing more can happen, time-outs and graces
    /// included.
    fn quiet(&mut self) -> Checked {
        let end = self.now + 4 * self.plan.grace + 1_000_000;
        for _ in 0..NEVER {
            if !self.carry_on()? && self.pass_time(end).is_none() {
                return Ok(());
            }
        }
        Err("it never becomes quiet".to_owned())
    }

    /// Everybody gives back and leaves; what must hold then, holds.
    pub fn settle(&mut self) -> Checked {
        self.healing = true;
        self.trace.note(self.now, "healing", || "from here on, nothing goes wrong".to_owned());
        self.processes.iter_mut().for_each(|process| process.partitioned = 0);
        self.quiet()?;
        // Who gave up a session that the daemon has opens another in its place.
        for at in 1..self.processes.len() {
            let process = &self.processes[at];
            if process.is_running && process.session.is_none() && !process.replaced.is_empty() {
                self.begin(at)?;
            }
        }
        for round in 0.. {
            self.quiet()?;
            self.witness.now = self.now;
            self.witness.quiet()?;
            if !self.give_back()? {
                break;
            }
            if round == ROUNDS {
                return Err("they never stop".to_owned());
            }
        }
        self.leave()?;
        self.audit()?;
        self.close(USHER)?;
        self.quiet_now()?;
        if self.daemon.core.sessions() > 0 {
            return Err("a session is left, after all said Goodbye".to_owned());
        }
        let end = self.now + 2 * LINGER;
        while self.pass_time(end).is_some() {
            self.happen(Event::Timeout)?;
        }
        self.witness.end()?;
        self.daemon.core.remains().map_or(Ok(()), |rest| Err(format!("what is left: {rest}")))
    }

    /// As [`quiet`](Self::quiet), but no time passes.
    fn quiet_now(&mut self) -> Checked {
        for _ in 0..NEVER {
            if !self.carry_on()? {
                return Ok(());
            }
        }
        Err("it never becomes quiet".to_owned())
    }

    /// Each owner lets go of something, or of its wait if nobody can end that; if none does, the
    /// usher ends the waits at one of the objects. False if there is nothing more.
    fn give_back(&mut self) -> Result<bool, String> {
        let mut something = false;
        for at in 1..self.processes.len() {
            for owner in 0..self.processes[at].owners.len() {
                something |= self.give_back_of(at, owner)?;
            }
        }
        for object in 0..self.plan.objects.len() {
            something = something || self.attend_to(object)?;
        }
        let waits = self.processes[1..].iter().flat_map(|process| &process.owners);
        let waits = waits.filter(|owner| owner.pending.is_some()).count();
        if !something && waits > 0 {
            return Err(format!("{waits} owners wait, and nobody can end that"));
        }
        Ok(something)
    }

    fn give_back_of(&mut self, at: usize, owner: usize) -> Result<bool, String> {
        let me = &mut self.processes[at].owners[owner];
        if let Some(id) = me.pending {
            let has_something = !me.holds.is_empty() || !me.unowned.is_empty();
            let Some(session) = &self.processes[at].session else { return Ok(false) };
            let call = self.witness.calls[&(session.sid, id)];
            // It may be a part of a deadlock; and permits that went with their takers never come.
            let hopeless = matches!(call.what, What::Acquire { .. })
                && (has_something || !self.plan.objects[call.object].is_exclusive());
            if hopeless {
                self.withdraw(at, owner)?;
            }
            return Ok(hopeless);
        }
        if let Some(held) = me.holds.last().copied() {
            let waits = self.rng.bool();
            self.release(at, owner, held, waits)?;
            return Ok(true);
        }
        if let Some(object) = me.unowned.pop() {
            let waits = self.rng.bool();
            self.release_bare(at, owner, object, waits)?;
            return Ok(true);
        }
        if let Some(object) = me.acting.pop() {
            let (number, Some(handle)) = (me.number, self.handle(at, object)) else {
                return Ok(true);
            };
            let report = v1::BarrierAction { handle, owner: number, ok: true };
            self.ask(at, owner, object, What::Report, None, Request::BarrierAction(report))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The usher ends waits that nobody else will.
    fn attend_to(&mut self, object: usize) -> Result<bool, String> {
        let waits = |what: What| matches!(what, What::Wait { .. } | What::Await | What::Meet);
        if !self.witness.waiting(object).any(|call| waits(call.what)) {
            return Ok(false);
        }
        let handle = self.handle(USHER, object).ok_or("the usher has lost an object")?;
        match self.plan.objects[object] {
            Kind::Event => {
                self.usher(object, What::Set(true), Request::EventSet(v1::EventSet { handle }))?;
            }
            Kind::Barrier { .. } => {
                let abort = Request::BarrierAbort(v1::BarrierAbort { handle });
                self.usher(object, What::Abort, abort)?;
            }
            Kind::Condition { lock } => {
                if self.witness.is_held(lock) {
                    return Ok(false);
                }
                if let Some(token) = self.usher_takes(lock)? {
                    let notify = v1::Notify { handle, owner: 1, n: 0 };
                    let what = What::Notify { n: u32::MAX };
                    self.usher(object, what, Request::Notify(notify))?;
                    self.usher_releases(lock, token)?;
                }
            }
            _ => {}
        }
        Ok(true)
    }

    /// Takes a permit, marking a lock consistent if it has to be; none if none is free.
    fn usher_takes(&mut self, object: usize) -> Result<Option<u64>, String> {
        let handle = self.handle(USHER, object).ok_or("the usher has lost an object")?;
        let acquire = v1::Acquire { handle, owner: 1, ..v1::Acquire::default() };
        let what = What::Acquire { unowned: false, careful: false };
        loop {
            let answer = self.usher(object, what, Request::Acquire(acquire))?;
            let (token, left) = match answer {
                Message::Granted(granted) => (Some(granted.token), granted.abandoned.is_some()),
                Message::Error(error) if error.code() == ErrorCode::Poisoned => (None, true),
                other => return Err(format!("the usher is told {other:?}")),
            };
            if left && self.plan.objects[object].is_exclusive() {
                let mark = Request::MarkConsistent(v1::MarkConsistent { handle, owner: 1 });
                self.usher(object, What::Mark, mark)?;
            }
            if token.is_some() {
                return Ok(token);
            }
        }
    }

    fn usher_releases(&mut self, object: usize, token: u64) -> Checked {
        let handle = self.handle(USHER, object).ok_or("the usher has lost an object")?;
        let release = v1::Release { handle, owner: 1, token, quiet: false };
        self.usher(object, What::Release { token }, Request::Release(release)).map(drop)
    }

    /// All but the usher say Goodbye.
    fn leave(&mut self) -> Checked {
        for at in 1..self.processes.len() {
            if let Some(session) = self.processes[at].session.as_ref().filter(|s| !s.is_closing) {
                self.witness.sessions[session.sid.0].in_order = true;
            }
            self.close(at)?;
        }
        self.quiet()?;
        self.witness.now = self.now;
        Ok(())
    }

    /// The usher, alone now, looks at every object: nobody holds anything, nobody waits, all
    /// permits are there that should be, and whoever left something was told of.
    fn audit(&mut self) -> Checked {
        for object in 0..self.plan.objects.len() {
            let kind = self.plan.objects[object];
            let handle = self.handle(USHER, object).ok_or("the usher has lost an object")?;
            let query = Request::Query(v1::Query { handle });
            let Message::State(state) = self.usher(object, What::Query, query)? else {
                return Err("no state".to_owned());
            };
            let v1::State { value, waiters, holders, .. } = &state;
            let free = self.witness.free(object);
            let wrong = *waiters > 0 || !holders.is_empty();
            if wrong || kind.is_semlock() && i64::from(*value) != free {
                return Err(format!("{kind:?} should have {free} free, and has {state:?}"));
            }
            if !kind.is_semlock() || *value == 0 {
                continue;
            }
            // Each grant tells of one abandonment.
            for _ in 0..1000 {
                let told = self.witness.count.abandoned;
                let Some(token) = self.usher_takes(object)? else { break };
                self.usher_releases(object, token)?;
                if self.witness.count.abandoned == told {
                    break;
                }
            }
        }
        Ok(())
    }
}
