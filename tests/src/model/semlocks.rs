//! The model's SemLocks and Conditions: permits, holds, abandonment, poison.

use std::time::Duration;

use syncd_core::{Cause, Class};

use super::{
    Hold, Holder, Kind, Left, Model, No, Oid, Outcome, Said, Sid, Ticket, Undo, Who, Why, Word,
    cause_number,
};

impl Model {
    pub(crate) fn is_exclusive(&self, o: Oid) -> bool {
        matches!(self.objects[o].kind, Kind::Sem { class, .. } if class.is_exclusive())
    }

    fn class(&self, o: Oid) -> Result<Class, (Option<Oid>, No)> {
        match self.objects[o].kind {
            Kind::Sem { class, .. } => Ok(class),
            _ => Err((Some(o), No::Mismatch)),
        }
    }

    fn held(&self, o: Oid) -> impl Iterator<Item = (usize, &Hold)> {
        self.holds.iter().enumerate().filter(move |(_, hold)| hold.ticket.object == o)
    }

    pub(crate) fn free(&self, o: Oid) -> u32 {
        match self.objects[o].kind {
            Kind::Sem { capacity, unowned, .. } => capacity - unowned - self.held(o).count() as u32,
            _ => 0,
        }
    }

    pub(crate) fn holders(&self, o: Oid) -> Vec<Holder> {
        self.held(o).map(|(_, hold)| self.holder(hold)).collect()
    }

    pub(super) fn first_holders(&self, o: Oid) -> Vec<Holder> {
        let mut holders = self.holders(o);
        holders.truncate(16);
        holders
    }

    fn holder(&self, hold: &Hold) -> Holder {
        let Hold { who, ticket, since, depth } = *hold;
        Holder { who, ticket, held: self.now - since, depth }
    }

    /// Who holds it, or runs its action, and by which grant.
    pub(crate) fn doer(&self, o: Oid) -> Option<(Who, Option<Ticket>)> {
        match self.objects[o].kind {
            Kind::Barrier { action, .. } => action.map(|(who, _)| (who, None)),
            _ => self.held(o).next().map(|(_, hold)| (hold.who, Some(hold.ticket))),
        }
    }

    pub(super) fn acquire(
        &mut self,
        o: Oid,
        who: Who,
        id: u64,
        unowned: bool,
        timeout: Option<Duration>,
        careful: bool,
    ) -> Outcome {
        let class = self.class(o)?;
        let own = self.held(o).find(|(_, h)| h.who == who).map(|(at, _)| at);
        if let Some(at) = own.filter(|_| class == Class::RLock) {
            self.holds[at].depth += 1;
            let Hold { ticket, depth, .. } = self.holds[at];
            let word = Word::Granted { ticket, depth, left: None, notified: None };
            let undo = Undo { who, object: o, ticket: Some(ticket), woken: None };
            self.say(who.session, Said::Reply(id, word), Some(undo));
            return Ok(None);
        }
        if let Some(left) = self.objects[o].poisoned {
            return Err((Some(o), No::Poisoned(left)));
        }
        let unowned = unowned && !class.is_exclusive();
        if !unowned {
            self.may_hold_more(who.session, o)?;
        }
        if self.free(o) > 0 {
            self.grant(o, who, id, Why::Acquire { unowned });
            return Ok(None);
        }
        if timeout.is_some_and(|t| t.is_zero()) {
            return Err((Some(o), No::TimedOut(self.first_holders(o))));
        }
        self.has_room(who.session, o)?;
        if careful && let Some(circle) = self.circle(who, o) {
            return Err((Some(o), No::Deadlock(circle)));
        }
        self.enqueue(o, who, id, timeout, Why::Acquire { unowned })
    }

    fn may_hold_more(&self, session: Sid, o: Oid) -> Result<(), (Option<Oid>, No)> {
        let limits = &self.config.limits;
        let own = self.holds.iter().filter(|hold| hold.who.session == session).count();
        if self.holds.len() >= limits.holds {
            return Err((Some(o), No::Quota("holds")));
        }
        if own >= limits.holds_per_session {
            return Err((Some(o), No::Quota("holds_per_session")));
        }
        Ok(())
    }

    /// Takes a free permit for a request, and answers it.
    fn grant(&mut self, o: Oid, who: Who, id: u64, why: Why) {
        let (unowned, depth, woken) = match why {
            Why::Acquire { unowned } => (unowned, 1, None),
            Why::Back { condition, depth, notified } => (false, depth, Some((condition, notified))),
            _ => unreachable!("no permit is wanted"),
        };
        let object = &mut self.objects[o];
        object.granted += 1;
        let ticket = Ticket { object: o, nth: object.granted };
        let left = (!object.untold.is_empty()).then(|| object.untold.remove(0));
        if object.poison && left.is_some() {
            object.inconsistent = left;
        }
        if unowned {
            self.disown(o, 1);
        } else {
            self.holds.push(Hold { who, ticket, since: self.now, depth });
        }
        let notified = woken.map(|(_, notify)| notify.is_some());
        let word = Word::Granted { ticket, depth, left, notified };
        let undo = Undo { who, object: o, ticket: (!unowned).then_some(ticket), woken };
        self.say(who.session, Said::Reply(id, word), Some(undo));
    }

    fn disown(&mut self, o: Oid, by: i32) {
        if let Kind::Sem { unowned, .. } = &mut self.objects[o].kind {
            *unowned = unowned.checked_add_signed(by).expect("as many as there are");
        }
    }

    /// Whoever can get in, in order, does; on a poisoned object, all are refused.
    pub(super) fn wake(&mut self, o: Oid) {
        while let Some(at) = self.head(o) {
            if let Some(left) = self.objects[o].poisoned {
                self.answer(at, Err(No::Poisoned(left)));
            } else if self.free(o) > 0 {
                let wait = self.waits.remove(at);
                self.grant(o, wait.who, wait.request, wait.why);
            } else {
                return;
            }
        }
    }

    pub(super) fn release(&mut self, o: Oid, who: Who, ticket: Option<Ticket>) -> Outcome {
        let class = self.class(o)?;
        let Kind::Sem { max, unowned, .. } = self.objects[o].kind else { unreachable!("it is") };
        let own = self.held(o).find(|(_, h)| h.who == who);
        let hold = match ticket {
            Some(ticket) => {
                let hold =
                    self.held(o).find(|(_, h)| h.ticket == ticket && h.who.session == who.session);
                Some(hold.ok_or((Some(o), No::Stale))?)
            }
            None if class == Class::RLock => own.or(self.held(o).next()),
            None if self.free(o) >= max => return Err((Some(o), No::OverReleased)),
            None if unowned > 0 => None,
            None if class == Class::BoundedSemaphore && self.held(o).next().is_none() => {
                return Err((Some(o), No::OverReleased));
            }
            None => own.or(self.held(o).next()),
        };
        if class == Class::RLock && hold.is_none_or(|(_, h)| h.who != who) {
            let holder = hold.map(|(_, hold)| self.holder(hold));
            return Err((Some(o), No::NotOwner(holder)));
        }
        match hold.map(|(at, hold)| (at, hold.clone())) {
            Some((at, hold)) => {
                if ticket.is_none() && hold.who != who {
                    self.tell_lost(&hold, Cause::Released);
                }
                self.let_go_of(at, 1);
            }
            None => self.free_unowned(o),
        }
        Ok(Some(Word::Done(0)))
    }

    /// An unowned permit comes back; without any out, there is one more.
    fn free_unowned(&mut self, o: Oid) {
        let Kind::Sem { unowned, capacity, .. } = &mut self.objects[o].kind else { return };
        if *unowned > 0 {
            *unowned -= 1;
        } else {
            *capacity += 1;
        }
        self.wake(o);
    }

    fn tell_lost(&mut self, hold: &Hold, cause: Cause) {
        let Hold { who, ticket, .. } = *hold;
        let cause = cause_number(cause);
        let said = Said::HoldLost { owner: who.owner, ticket, cause };
        self.say(who.session, said, None);
    }

    /// By its owner, or in its stead.
    fn let_go_of(&mut self, at: usize, levels: u32) {
        let hold = &mut self.holds[at];
        let o = hold.ticket.object;
        hold.depth = hold.depth.saturating_sub(levels);
        if hold.depth == 0 {
            self.holds.remove(at);
            if let Some(left) = self.objects[o].inconsistent.take() {
                self.objects[o].poisoned = Some(left);
            }
            self.wake(o);
        }
    }

    pub(super) fn abandon(&mut self, at: usize, cause: Cause) {
        let Hold { who, ticket, since, .. } = self.holds.remove(at);
        let (held, cause) = (self.now - since, cause_number(cause));
        let object = &mut self.objects[ticket.object];
        object.inconsistent = None;
        object.untold.push(Left { who, ticket, held, at: self.now, cause });
        self.wake(ticket.object);
    }

    /// Takes an object from all who hold it.
    pub fn force(&mut self, o: Oid) {
        let tickets: Vec<_> = self.held(o).map(|(_, hold)| hold.ticket).collect();
        for ticket in tickets {
            let at = self.holds.iter().position(|h| h.ticket == ticket).expect("still held");
            self.tell_lost(&self.holds[at].clone(), Cause::Forced);
            self.abandon(at, Cause::Forced);
        }
    }

    pub(super) fn forget(&mut self, o: Oid, s: Sid, ticket: Ticket) -> Outcome {
        if self.class(o)?.is_exclusive() {
            return Err((Some(o), No::Mismatch));
        }
        let hold = self.holds.iter().position(|h| h.ticket == ticket && h.who.session == s);
        self.holds.remove(hold.ok_or((Some(o), No::Stale))?);
        self.disown(o, 1);
        Ok(Some(Word::Done(0)))
    }

    pub(super) fn mark(&mut self, o: Oid, who: Who) -> Outcome {
        let class = self.class(o)?;
        let holder = self.holders(o).first().copied();
        if class.is_exclusive() && holder.is_some_and(|h| h.who != who) {
            return Err((Some(o), No::NotOwner(holder)));
        }
        self.objects[o].inconsistent = None;
        self.objects[o].poisoned = None;
        Ok(Some(Word::Done(0)))
    }

    /// A grant that its client never learnt of goes back; `told` is to be told again.
    pub(super) fn undo(&mut self, undo: Undo, told: Option<Left>) {
        let Undo { object: o, ticket, woken, .. } = undo;
        let hold = self.holds.iter().position(|h| Some(h.ticket) == ticket);
        if self.objects[o].gone {
            return;
        }
        let taken_away = ticket.is_some() && hold.is_none();
        if let Some(told) = told {
            if !taken_away {
                self.objects[o].inconsistent = None;
            }
            self.objects[o].untold.insert(0, told);
        }
        if let Some((condition, Some(notify))) = woken
            && !self.objects[condition].gone
        {
            self.pass_on(condition, notify);
        }
        match hold {
            Some(at) => self.let_go_of(at, if woken.is_some() { u32::MAX } else { 1 }),
            None if taken_away => {}
            None if matches!(self.objects[o].kind, Kind::Sem { unowned: 1.., .. }) => {
                self.free_unowned(o);
            }
            // Whoever released it would have made one more, had it never been out.
            None => {
                let Kind::Sem { class, max, .. } = self.objects[o].kind else { return };
                if class == Class::Semaphore && self.free(o) < max {
                    self.free_unowned(o);
                }
            }
        }
    }

    /// The Condition's lock, and the place of the owner's hold of it.
    fn own_lock(&self, o: Oid, who: Who) -> Result<(Oid, usize), (Option<Oid>, No)> {
        let Kind::Condition { lock } = self.objects[o].kind else {
            return Err((Some(o), No::Mismatch));
        };
        let holder = self.holders(lock).first().copied();
        match self.held(lock).find(|(_, h)| h.who == who) {
            Some((at, _)) => Ok((lock, at)),
            None => Err((Some(lock), No::NotOwner(holder))),
        }
    }

    pub(super) fn wait(&mut self, o: Oid, who: Who, id: u64, timeout: Option<Duration>) -> Outcome {
        let (_, hold) = self.own_lock(o, who)?;
        let depth = self.holds[hold].depth;
        self.enqueue(o, who, id, timeout, Why::Notify { depth })?;
        if timeout.is_some_and(|t| t.is_zero()) {
            self.turn_back(self.waits.len() - 1, None);
        }
        self.let_go_of(hold, u32::MAX);
        Ok(None)
    }

    pub(super) fn notify(&mut self, o: Oid, who: Who, n: Option<u32>) -> Outcome {
        self.own_lock(o, who)?;
        let mut count = 0;
        while n.is_none_or(|n| count < n)
            && let Some(at) = self.head(o)
        {
            let notify = self.tick();
            self.turn_back(at, Some(notify));
            count += 1;
        }
        Ok(Some(Word::Done(count)))
    }
}
