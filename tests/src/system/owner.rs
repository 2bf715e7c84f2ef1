//! What owners do: draw a call and make it, wait, give up, collect the answer. They use the
//! protocol as the client's objects and guards do.

use std::time::Duration;

use syncd_client::protocol::{Failure, Undo};
use syncd_proto::v1::{self, client_message::Request, server_message::Message};

use super::{
    Checked,
    plan::{Kind, MILLI},
    process::{Binding, Held, Session},
    witness::What,
    world::World,
};

impl World<'_> {
    fn session(&mut self, at: usize) -> Option<&mut Session> {
        self.processes[at].session.as_mut()
    }

    /// An owner has a turn.
    pub fn act(&mut self, at: usize, owner: usize) -> Checked {
        let Some(session) = self.session(at) else { return self.begin(at) };
        let (is_over, is_open) = (session.is_over, session.protocol.opened().is_some());
        let is_closing = session.is_closing;
        if let Some(id) = self.processes[at].owners[owner].pending {
            return self.attend(at, owner, id);
        }
        self.look_at_flood(at, owner)?;
        if is_over {
            let idle =
                |owner: &super::process::Owner| owner.pending.is_none() && owner.flood.is_empty();
            if self.processes[at].owners.iter().all(idle) {
                let over = self.processes[at].session.take();
                let replaced = over.as_ref().and_then(|over| over.protocol.poll_replaced());
                self.processes[at].replaced = replaced.unwrap_or(&[]).to_vec();
            }
            return Ok(());
        }
        if !is_open || is_closing {
            return Ok(());
        }
        if self.processes[at].owners[owner].items.is_some() {
            return self.produce(at, owner);
        }
        self.begin_something(at, owner)
    }

    /// How likely an owner is to have a turn; not at all if it could change nothing.
    pub fn urge(&self, at: usize, owner: usize) -> u32 {
        let (process, chaos) = (&self.processes[at], &self.plan.chaos);
        let idle = if self.healing { 0 } else { 25 };
        let Some(session) = &process.session else { return idle };
        let owner = &process.owners[owner];
        let all_there = || owner.flood.iter().all(|id| session.ready.contains(id));
        match owner.pending {
            Some(id) if session.is_over || session.ready.contains(&id) => 40,
            Some(_) if self.healing => 0,
            Some(_) => (chaos.withdraw + chaos.recall) / 4,
            None if !owner.flood.is_empty() => 40 * u32::from(session.is_over || all_there()),
            None if owner.items.is_some() => 40 * u32::from(session.has_room),
            None if session.is_over => 40,
            None if session.protocol.opened().is_none() || session.is_closing => 0,
            None => idle,
        }
    }

    /// It waits: it collects its answer, or gives up.
    fn attend(&mut self, at: usize, owner: usize, id: u64) -> Checked {
        let chaos = self.plan.chaos;
        let is_impatient = !self.healing && self.rng.u32(..100) < chaos.withdraw;
        let recalls = !self.healing && self.rng.u32(..100) < chaos.recall;
        let Some(session) = self.session(at) else { return Ok(()) };
        let sid = session.sid;
        if is_impatient && !session.is_over {
            let call = &self.witness.calls[&(sid, id)];
            // It would have a permit and not know of it.
            if !matches!(call.what, What::Forget { .. }) {
                return self.withdraw(at, owner);
            }
            return Ok(());
        }
        if session.is_over || session.ready.contains(&id) {
            return self.collect(at, owner, id);
        }
        if recalls {
            let call = &self.witness.calls[&(sid, id)];
            if matches!(
                call.what,
                What::Acquire { .. } | What::Wait { .. } | What::Await | What::Meet
            ) {
                let cancel = Request::Cancel(v1::Cancel { id, give_back: false });
                return self.post(at, cancel);
            }
        }
        Ok(())
    }

    /// It gives up its call, answered or not.
    pub fn withdraw(&mut self, at: usize, owner: usize) -> Checked {
        let Some(id) = self.processes[at].owners[owner].pending.take() else { return Ok(()) };
        let Some(session) = &mut self.processes[at].session else { return Ok(()) };
        self.trace.note(self.now, ("withdraw", at, id), || {
            format!("process {at} owner {owner} withdraws {id}")
        });
        session.ready.remove(&id);
        session.protocol.handle_withdraw(id);
        let call = self.witness.calls[&(session.sid, id)];
        if call.what == What::Attach {
            session.bindings[call.object] = Binding::None;
        }
        if call.what == What::Report {
            self.processes[at].owners[owner].acting.retain(|object| *object != call.object);
        }
        self.witness.withdrawn(self.processes[at].session.as_ref().expect("as above").sid, id);
        self.pump(at)
    }

    fn collect(&mut self, at: usize, owner: usize, id: u64) -> Checked {
        let Some(session) = &mut self.processes[at].session else { return Ok(()) };
        let sid = session.sid;
        session.ready.remove(&id);
        let Some(result) = session.protocol.poll_reply(id) else {
            return Err(format!("process {at} was woken for request {id}, and there is no answer"));
        };
        let call = self.witness.calls[&(sid, id)];
        self.trace.note(self.now, ("collect", at, id), || {
            format!("process {at} owner {owner} gets {id}: {result:?}")
        });
        if call.what == What::Attach {
            session.bindings[call.object] = match &result {
                Ok(Message::Attached(attached)) => Binding::Bound(attached.handle),
                _ => Binding::None,
            };
        }
        // A wait that had its lock again before its condition was given up has a lock.
        let is_detached = call.detached && !matches!(call.what, What::Wait { .. });
        let is_void = session.is_over || session.is_closing || is_detached;
        self.witness.answered(sid, id, &result)?;
        let me = &mut self.processes[at].owners[owner];
        me.pending = None;
        if is_void {
            return self.pump(at);
        }
        match (call.what, &result) {
            (What::Acquire { unowned: true, .. }, Ok(Message::Granted(_))) => {
                me.unowned.push(call.object);
            }
            (What::Acquire { .. }, Ok(Message::Granted(granted))) => {
                me.take(call.object, granted, self.plan.objects[call.object].is_exclusive());
            }
            (What::Wait { .. }, Ok(Message::Woken(woken))) => {
                if let (Kind::Condition { lock }, Some(granted)) =
                    (self.plan.objects[call.object], &woken.granted)
                {
                    me.take(lock, granted, true);
                }
            }
            (What::Forget { .. }, Ok(Message::Done(_))) => me.unowned.push(call.object),
            (What::Meet, Ok(Message::BarrierPassed(passed))) if passed.run_action => {
                me.acting.push(call.object);
            }
            (What::Report, Err(Failure::Overdue)) => {}
            _ => {}
        }
        self.pump(at)
    }

    /// Makes a request and waits for its answer.
    pub fn call(
        &mut self,
        at: usize,
        owner: usize,
        object: usize,
        what: What,
        timeout: Option<u64>,
        request: Request,
    ) -> Result<u64, String> {
        let number = self.processes[at].owners[owner].number;
        let unowned = matches!(what, What::Acquire { unowned: true, .. });
        let handle = self.handle(at, object).unwrap_or(0);
        let undo = match what {
            What::Acquire { .. } => Some(Undo::Grant { handle, owner: number, unowned }),
            What::Wait { .. } => {
                let Kind::Condition { lock } = self.plan.objects[object] else {
                    return Err("a wait at no condition".to_owned());
                };
                let handle = self.handle(at, lock).unwrap_or(0);
                Some(Undo::Lock { handle, owner: number })
            }
            What::Meet => Some(Undo::Party { handle, owner: number }),
            What::Await => Some(Undo::Wait),
            _ => None,
        };
        // A call's time-out bounds the whole of it, by the client's own clock.
        let deadline = match timeout {
            Some(timeout) if self.rng.u32(..3) == 0 => {
                Some(self.now + timeout + self.rng.u64(1..20) * MILLI)
            }
            _ => None,
        };
        let instant = deadline.map(|at| self.instant(at));
        let Some(session) = &mut self.processes[at].session else { return Ok(0) };
        let sid = session.sid;
        self.trace.note(self.now, ("call", at, owner, object), || {
            format!("process {at} owner {owner} calls {what:?} {request:?}")
        });
        let id = session.protocol.handle_request(request, undo, instant);
        self.witness.called((sid, id), number, object, what, timeout, instant.is_some());
        self.pump(at)?;
        Ok(id)
    }

    /// The same, as what the owner waits for.
    pub fn ask(
        &mut self,
        at: usize,
        owner: usize,
        object: usize,
        what: What,
        timeout: Option<u64>,
        request: Request,
    ) -> Checked {
        let id = self.call(at, owner, object, what, timeout, request)?;
        self.processes[at].owners[owner].pending = Some(id);
        Ok(())
    }

    pub fn handle(&self, at: usize, object: usize) -> Option<u32> {
        match self.processes[at].session.as_ref()?.bindings[object] {
            Binding::Bound(handle) => Some(handle),
            _ => None,
        }
    }

    /// Attaches to an object: by its name, or by its key, which it was handed.
    pub fn attach(&mut self, at: usize, owner: usize, object: usize) -> Checked {
        let kind = self.plan.objects[object];
        let request = match &self.keys[object] {
            Some(key) if self.rng.u32(..3) == 0 => {
                Request::Attach(v1::Attach { by: Some(v1::attach::By::Key(key.clone())) })
            }
            _ => Request::Create(v1::Create {
                name: format!("o{object}"),
                poison: kind.poisons(),
                spec: Some(self.spec(at, kind)),
                ..v1::Create::default()
            }),
        };
        if let Some(session) = &mut self.processes[at].session {
            session.bindings[object] = Binding::Made;
        }
        self.ask(at, owner, object, What::Attach, None, request)
    }

    fn spec(&self, at: usize, kind: Kind) -> v1::create::Spec {
        use v1::SemLockClass;
        let sem = |class: SemLockClass, value| {
            v1::create::Spec::SemLock(v1::SemLockSpec { class: class.into(), value, max: 0 })
        };
        match kind {
            Kind::Lock { .. } => sem(SemLockClass::Lock, 1),
            Kind::RLock { .. } => sem(SemLockClass::Rlock, 1),
            Kind::Semaphore { permits, bounded: false } => sem(SemLockClass::Semaphore, permits),
            Kind::Semaphore { permits, .. } => sem(SemLockClass::BoundedSemaphore, permits),
            Kind::Counter { items } => sem(SemLockClass::Semaphore, items),
            Kind::Condition { lock } => {
                let lock = self.handle(at, lock).unwrap_or(0);
                v1::create::Spec::Condition(v1::ConditionSpec { lock })
            }
            Kind::Event => v1::create::Spec::Event(v1::EventSpec {}),
            Kind::Barrier { parties } => v1::create::Spec::Barrier(v1::BarrierSpec { parties }),
        }
    }

    /// Lets go of a level of a hold, and waits for the answer or doesn't.
    pub fn release(&mut self, at: usize, owner: usize, held: Held, waits: bool) -> Checked {
        let Some(handle) = self.handle(at, held.object) else { return Ok(()) };
        let me = &mut self.processes[at].owners[owner];
        let number = me.number;
        me.holds.retain_mut(|mine| {
            let it = mine.token == held.token;
            mine.depth -= u32::from(it);
            !it || mine.depth > 0
        });
        let (token, quiet) = (held.token, !waits);
        let release = Request::Release(v1::Release { handle, owner: number, token, quiet });
        if waits {
            return self.ask(at, owner, held.object, What::Release { token }, None, release);
        }
        self.witness.release_called(token, true);
        self.post(at, release)
    }

    /// Releases a permit that is nobody's, or another's.
    pub fn release_bare(&mut self, at: usize, owner: usize, object: usize, waits: bool) -> Checked {
        let Some(handle) = self.handle(at, object) else { return Ok(()) };
        let number = self.processes[at].owners[owner].number;
        let release = v1::Release { handle, owner: number, token: 0, quiet: !waits };
        if waits {
            return self.ask(at, owner, object, What::Bare, None, Request::Release(release));
        }
        let Some(session) = &self.processes[at].session else { return Ok(()) };
        self.witness.bare_called(session.sid, object, true);
        self.post(at, Request::Release(release))
    }

    fn produce(&mut self, at: usize, owner: usize) -> Checked {
        let Some((object, mut left)) = self.processes[at].owners[owner].items.take() else {
            return Ok(());
        };
        for _ in 0..left.min(100) {
            let Some(session) = self.session(at) else { return Ok(()) };
            session.has_room = session.protocol.poll_room();
            if !session.has_room {
                break;
            }
            self.release_bare(at, owner, object, false)?;
            left -= 1;
        }
        self.processes[at].owners[owner].items = (left > 0).then_some((object, left));
        Ok(())
    }

    fn look_at_flood(&mut self, at: usize, owner: usize) -> Checked {
        let Some(session) = &self.processes[at].session else { return Ok(()) };
        let all = self.processes[at].owners[owner].flood.iter();
        if session.is_over || all.clone().all(|id| session.ready.contains(id)) {
            for id in std::mem::take(&mut self.processes[at].owners[owner].flood) {
                self.collect(at, owner, id)?;
            }
        }
        Ok(())
    }

    /// A duration as a time-out has it on the wire.
    pub fn timeout(&mut self) -> Option<u64> {
        match self.rng.u32(..8) {
            0..=3 => None,
            4 => Some(0),
            _ => Some(Duration::from_millis(self.rng.u64(1..60)).as_micros() as u64),
        }
    }
}

impl super::process::Owner {
    fn take(&mut self, object: usize, granted: &v1::Granted, exclusive: bool) {
        let abandoned = granted.abandoned.is_some();
        let (token, depth) = (granted.token, granted.depth);
        if let Some(held) = self.holds.iter_mut().find(|held| held.token == token) {
            held.depth = depth;
            return;
        }
        if exclusive {
            self.holds.retain(|held| held.object != object);
        }
        self.holds.push(Held { object, token, depth, abandoned });
    }
}
