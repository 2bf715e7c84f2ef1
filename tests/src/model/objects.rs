//! The model's objects: making, finding, references, end; Event and Barrier.

use std::time::Duration;

use syncd_core::{Cause, SEM_VALUE_MAX};

use super::{Kind, Make, Model, No, Object, Oid, Outcome, Sid, Who, Why, Word};

impl Model {
    pub(super) fn named(&self, name: &str) -> Option<Oid> {
        self.objects.iter().position(|o| !o.gone && o.name.as_deref() == Some(name))
    }

    pub(super) fn create(
        &mut self,
        s: Sid,
        name: Option<String>,
        make: Make,
        keep: bool,
        poison: bool,
        exclusive: bool,
    ) -> Outcome {
        let kind = match make {
            Make::Sem { class, value, max } => {
                let (value, max) = if class.is_exclusive() { (1, 1) } else { (value, max) };
                for (field, number) in [("value", value), ("max", max)] {
                    if number > SEM_VALUE_MAX {
                        return Err((None, No::Invalid(field)));
                    }
                }
                Kind::Sem { class, value, max, capacity: value, unowned: 0 }
            }
            Make::Condition(lock) => {
                let lock = self.have(s, lock)?;
                if !self.is_exclusive(lock) {
                    return Err((Some(lock), No::Mismatch));
                }
                Kind::Condition { lock }
            }
            Make::Event => Kind::Event { set: false },
            Make::Barrier(0) => return Err((None, No::Invalid("parties"))),
            Make::Barrier(parties) => Kind::Barrier { parties, broken: false, action: None },
        };
        if poison && !matches!(kind, Kind::Sem { class, .. } if class.is_exclusive()) {
            return Err((None, No::Invalid("poison")));
        }
        if let Some(found) = name.as_deref().and_then(|name| self.named(name)) {
            if exclusive {
                return Err((Some(found), No::Exists));
            }
            let same = match (self.objects[found].kind, kind) {
                (
                    Kind::Sem { class: a, value: v, max: m, .. },
                    Kind::Sem { class, value, max, .. },
                ) => (a, v, m) == (class, value, max) && self.objects[found].poison == poison,
                (Kind::Condition { lock: a }, Kind::Condition { lock: b }) => a == b,
                (Kind::Event { .. }, Kind::Event { .. }) => true,
                (Kind::Barrier { parties: a, .. }, Kind::Barrier { parties: b, .. }) => a == b,
                _ => false,
            };
            if !same {
                return Err((Some(found), No::Mismatch));
            }
            let attached = self.attach(s, found, false)?;
            self.objects[found].keep |= keep;
            return Ok(attached);
        }
        if self.objects.iter().filter(|o| !o.gone).count() >= self.config.limits.objects {
            return Err((None, No::Quota("objects")));
        }
        self.may_refer_to(s, 1)?;
        self.objects.push(Object {
            gone: false,
            anonymous: name.is_none(),
            name,
            keep,
            poison,
            lingers_until: None,
            untold: vec![],
            inconsistent: None,
            poisoned: None,
            granted: 0,
            kind,
        });
        self.attach(s, self.objects.len() - 1, true)
    }

    pub(super) fn attach(&mut self, s: Sid, object: Oid, created: bool) -> Outcome {
        let lock = match self.objects[object].kind {
            Kind::Condition { lock } => Some(lock),
            _ => None,
        };
        let attached = [Some(object), lock].into_iter().flatten();
        let new = attached.clone().filter(|o| !self.sessions[s].references.contains(o));
        self.may_refer_to(s, new.count())?;
        for o in attached {
            self.sessions[s].references.push(o);
            self.objects[o].lingers_until = None;
        }
        Ok(Some(Word::Attached { object, created }))
    }

    fn may_refer_to(&self, s: Sid, more: usize) -> Result<(), (Option<Oid>, No)> {
        let mut distinct = self.sessions[s].references.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() + more > self.config.limits.references_per_session {
            return Err((None, No::Quota("references_per_session")));
        }
        Ok(())
    }

    /// By sessions, and by conditions whose lock it is.
    pub(crate) fn references(&self, o: Oid) -> usize {
        let sessions = self.sessions.iter().flat_map(|s| &s.references).filter(|&&r| r == o);
        let conditions = self.objects.iter().filter(|object| {
            !object.gone && matches!(object.kind, Kind::Condition { lock } if lock == o)
        });
        sessions.count() + conditions.count()
    }

    pub(super) fn detach(&mut self, s: Sid, o: Oid) -> Outcome {
        let at = self.sessions[s].references.iter().position(|&r| r == o).expect("it has it");
        self.sessions[s].references.remove(at);
        if !self.sessions[s].references.contains(&o) {
            self.let_go(s, o);
        }
        self.dereferenced(o);
        Ok(Some(Word::Done(0)))
    }

    /// The session's last reference went: its waits there end, and its holds.
    fn let_go(&mut self, s: Sid, o: Oid) {
        while let Some(wait) = self.first_wait(|w| w.who.session == s && self.concerns(w, o)) {
            self.give_up(wait);
        }
        self.leave_barrier(s, o);
        let hold =
            |m: &Self| m.holds.iter().position(|h| (h.who.session, h.ticket.object) == (s, o));
        while let Some(hold) = hold(self) {
            self.abandon(hold, Cause::Left);
        }
    }

    /// What becomes of it, if that was the last reference.
    pub(super) fn dereferenced(&mut self, o: Oid) {
        let object = &self.objects[o];
        if object.gone || object.keep || self.references(o) > 0 {
            return;
        }
        if object.name.is_none() && !object.anonymous {
            return self.remove(o);
        }
        let trouble =
            !object.untold.is_empty() || object.inconsistent.is_some() || object.poisoned.is_some();
        if trouble && object.poison && object.name.is_some() {
            return;
        }
        if !trouble && !object.anonymous {
            return self.remove(o);
        }
        let until = self.now + self.config.linger.as_nanos() as u64;
        self.objects[o].lingers_until.get_or_insert(until);
    }

    pub(super) fn remove(&mut self, o: Oid) {
        self.objects[o].gone = true;
        self.objects[o].lingers_until = None;
        if let Kind::Condition { lock } = self.objects[o].kind {
            self.dereferenced(lock);
        }
    }

    pub(super) fn unlink(&mut self, name: &str) -> Outcome {
        let o = self.named(name).ok_or((None, No::NotFound))?;
        self.objects[o].name = None;
        self.objects[o].keep = false;
        if self.references(o) == 0 {
            self.remove(o);
        }
        Ok(Some(Word::Done(0)))
    }

    pub(super) fn query(&self, o: Oid) -> Word {
        let mut holders = self.holders(o);
        holders.truncate(16);
        let waiters = self.queue(o).count() as u32;
        Word::State { value: self.value(o), waiters, broken: self.is_broken(o), holders }
    }

    /// Free permits, 1 if set, parties that have come.
    pub(crate) fn value(&self, o: Oid) -> u32 {
        match self.objects[o].kind {
            Kind::Sem { .. } => self.free(o),
            Kind::Condition { .. } => 0,
            Kind::Event { set } => set.into(),
            Kind::Barrier { .. } => self.queue(o).count() as u32,
        }
    }

    pub(crate) fn is_broken(&self, o: Oid) -> bool {
        match self.objects[o].kind {
            Kind::Barrier { broken, .. } => broken,
            _ => self.objects[o].poisoned.is_some(),
        }
    }

    pub(super) fn set(&mut self, o: Oid, to: bool) -> Outcome {
        let Kind::Event { set } = &mut self.objects[o].kind else {
            return Err((Some(o), No::Mismatch));
        };
        *set = to;
        let mut count = 0;
        while to && let Some(wait) = self.head(o) {
            self.answer(wait, Ok(Word::Done(0)));
            count += 1;
        }
        Ok(Some(Word::Done(count)))
    }

    pub(super) fn await_event(
        &mut self,
        o: Oid,
        who: Who,
        id: u64,
        timeout: Option<Duration>,
    ) -> Outcome {
        match self.objects[o].kind {
            Kind::Event { set: true } => Ok(Some(Word::Done(0))),
            Kind::Event { .. } if timeout.is_some_and(|t| t.is_zero()) => {
                Err((Some(o), No::TimedOut(vec![])))
            }
            Kind::Event { .. } => self.enqueue(o, who, id, timeout, Why::Event),
            _ => Err((Some(o), No::Mismatch)),
        }
    }

    pub(super) fn meet(
        &mut self,
        o: Oid,
        who: Who,
        id: u64,
        timeout: Option<Duration>,
        acting: bool,
    ) -> Outcome {
        let Kind::Barrier { parties, broken, action } = self.objects[o].kind else {
            return Err((Some(o), No::Mismatch));
        };
        if broken {
            return Err((Some(o), No::Broken));
        }
        if action.is_none() && self.queue(o).count() + 1 == parties as usize {
            let before = self.tick();
            if acting {
                self.set_barrier(o, false, Some((who, before)));
            } else {
                self.pass(o, before);
            }
            return Ok(Some(Word::Passed { index: parties - 1, acting }));
        }
        if timeout.is_some_and(|t| t.is_zero()) {
            self.break_barrier(o);
            return Err((Some(o), No::TimedOut(vec![])));
        }
        self.enqueue(o, who, id, timeout, Why::Barrier { acting })
    }

    fn set_barrier(&mut self, o: Oid, is_broken: bool, by: Option<(Who, u64)>) {
        if let Kind::Barrier { broken, action, .. } = &mut self.objects[o].kind {
            (*broken, *action) = (is_broken, by);
        }
    }

    /// Those who came before pass; those who came after may be a full round already.
    fn pass(&mut self, o: Oid, before: u64) {
        let mut index = 0;
        while let Some(wait) = self.head(o).filter(|&at| self.waits[at].stamp < before) {
            self.answer(wait, Ok(Word::Passed { index, acting: false }));
            index += 1;
        }
        let Kind::Barrier { parties, .. } = self.objects[o].kind else { return };
        let last = self.queue(o).nth(parties as usize - 1).cloned();
        if let Some(last) = last {
            let Why::Barrier { acting } = last.why else { unreachable!("of a Barrier") };
            let at = self.waits.iter().position(|w| w.stamp == last.stamp).expect("it waits");
            self.answer(at, Ok(Word::Passed { index: parties - 1, acting }));
            if acting {
                self.set_barrier(o, false, Some((last.who, last.stamp)));
            } else {
                self.pass(o, last.stamp);
            }
        }
    }

    fn turn_away(&mut self, o: Oid) {
        while let Some(wait) = self.head(o) {
            self.answer(wait, Err(No::Broken));
        }
    }

    pub(super) fn break_barrier(&mut self, o: Oid) {
        self.set_barrier(o, true, None);
        self.turn_away(o);
    }

    pub(super) fn act(&mut self, o: Oid, who: Who, ok: bool) -> Outcome {
        let Kind::Barrier { broken, action, .. } = self.objects[o].kind else {
            return Err((Some(o), No::Mismatch));
        };
        match action {
            Some((by, before)) if by == who => {
                self.set_barrier(o, false, None);
                if ok {
                    self.pass(o, before)
                } else {
                    self.break_barrier(o)
                }
                Ok(Some(Word::Done(0)))
            }
            None if broken => Err((Some(o), No::Broken)),
            _ => Err((Some(o), No::NotOwner(None))),
        }
    }

    pub(super) fn leave_barrier(&mut self, s: Sid, o: Oid) {
        if let Kind::Barrier { action: Some((by, _)), .. } = self.objects[o].kind
            && by.session == s
        {
            self.break_barrier(o);
        }
    }

    pub(super) fn reset(&mut self, o: Oid) -> Outcome {
        self.barrier_op(o, |m| {
            m.turn_away(o);
            m.set_barrier(o, false, None);
        })
    }

    pub(super) fn abort(&mut self, o: Oid) -> Outcome {
        self.barrier_op(o, |m| m.break_barrier(o))
    }

    fn barrier_op(&mut self, o: Oid, op: impl FnOnce(&mut Self)) -> Outcome {
        if !matches!(self.objects[o].kind, Kind::Barrier { .. }) {
            return Err((Some(o), No::Mismatch));
        }
        op(self);
        Ok(Some(Word::Done(0)))
    }
}
