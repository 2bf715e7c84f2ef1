//! The model's queues: joining, every way out, and the search for deadlocks.

use std::time::Duration;

use super::{Kind, Model, No, Oid, Outcome, Said, Sid, Wait, Who, Why, Word};

impl Model {
    pub(crate) fn queue(&self, o: Oid) -> impl Iterator<Item = &Wait> {
        self.waits.iter().filter(move |wait| wait.object == o)
    }

    pub(super) fn head(&self, o: Oid) -> Option<usize> {
        self.waits.iter().position(|wait| wait.object == o)
    }

    pub(super) fn has_room(&self, session: Sid, o: Oid) -> Result<(), (Option<Oid>, No)> {
        let limits = &self.config.limits;
        let own = self.waits.iter().filter(|wait| wait.who.session == session).count();
        if self.waits.len() >= limits.waiters {
            return Err((Some(o), No::Quota("waiters")));
        }
        if own >= limits.waiters_per_session {
            return Err((Some(o), No::Quota("waiters_per_session")));
        }
        Ok(())
    }

    pub(super) fn enqueue(
        &mut self,
        object: Oid,
        who: Who,
        request: u64,
        timeout: Option<Duration>,
        why: Why,
    ) -> Outcome {
        self.has_room(who.session, object)?;
        let (since, stamp) = (self.now, self.tick());
        let deadline =
            timeout.map(|t| self.now.saturating_add(t.as_nanos().min(u64::MAX.into()) as u64));
        self.waits.push(Wait { who, request, object, since, deadline, stamp, why });
        Ok(None)
    }

    /// It leaves the queue with an answer; nothing else happens.
    pub(super) fn answer(&mut self, at: usize, word: Result<Word, No>) -> Wait {
        let wait = self.waits.remove(at);
        let word = word.unwrap_or_else(|no| Word::Refused(Some(wait.object), no));
        self.say(wait.who.session, Said::Reply(wait.request, word), None);
        wait
    }

    pub(super) fn give_up(&mut self, at: usize) {
        let wait = self.answer(at, Err(No::Cancelled));
        self.left_early(wait);
    }

    pub(super) fn recall(&mut self, at: usize) {
        match self.waits[at].why {
            Why::Back { .. } => {}
            Why::Notify { .. } => self.unnotified(at),
            _ => self.give_up(at),
        }
    }

    pub(super) fn expire(&mut self, at: usize) {
        self.waits[at].deadline = None;
        let object = self.waits[at].object;
        match self.waits[at].why {
            Why::Notify { .. } => self.unnotified(at),
            Why::Acquire { .. } => {
                let holders = self.first_holders(object);
                let wait = self.answer(at, Err(No::TimedOut(holders)));
                self.left_early(wait);
            }
            Why::Event => drop(self.answer(at, Err(No::TimedOut(vec![])))),
            Why::Barrier { .. } => {
                self.answer(at, Err(No::TimedOut(vec![])));
                self.break_barrier(object);
            }
            Why::Back { .. } => unreachable!("the way back has no time-out"),
        }
    }

    pub(super) fn vanish(&mut self, at: usize) {
        let wait = self.waits.remove(at);
        match wait.why {
            Why::Barrier { .. } => self.break_barrier(wait.object),
            _ => self.left_early(wait),
        }
    }

    /// A notify that it had goes to the next; whoever it kept out gets in.
    fn left_early(&mut self, wait: Wait) {
        if let Why::Back { condition, notified: Some(notify), .. } = wait.why {
            self.pass_on(condition, notify);
        }
        if matches!(wait.why, Why::Back { .. } | Why::Acquire { .. }) {
            self.wake(wait.object);
        }
    }

    /// To the next that was waiting already when the notify was made.
    pub(super) fn pass_on(&mut self, condition: Oid, notify: u64) {
        let next = self.head(condition).filter(|&at| self.waits[at].stamp < notify);
        if let Some(next) = next {
            self.turn_back(next, Some(notify));
            let Kind::Condition { lock } = self.objects[condition].kind else { return };
            self.wake(lock);
        }
    }

    fn unnotified(&mut self, at: usize) {
        self.turn_back(at, None);
        self.wake(self.waits.last().expect("just moved there").object);
    }

    /// From the condition's queue to the end of its lock's.
    pub(super) fn turn_back(&mut self, at: usize, notified: Option<u64>) {
        let mut wait = self.waits.remove(at);
        let condition = wait.object;
        let (Kind::Condition { lock }, Why::Notify { depth }) =
            (self.objects[condition].kind, wait.why)
        else {
            unreachable!("it waited for a notify")
        };
        wait.object = lock;
        wait.deadline = None;
        wait.why = Why::Back { condition, depth, notified };
        self.waits.push(wait);
    }

    /// It ends when the session's last reference to the object goes.
    pub(super) fn concerns(&self, wait: &Wait, o: Oid) -> bool {
        let condition = match wait.why {
            Why::Back { condition, .. } => condition,
            _ => wait.object,
        };
        let lock = match self.objects[condition].kind {
            Kind::Condition { lock } => Some(lock),
            _ => None,
        };
        wait.object == o || condition == o || lock == Some(o)
    }

    /// The circle that closes if `who`, who waits for nothing, waits for `o`: found by walking
    /// from owner to owner until one comes back or can go on in no way or in several.
    pub(super) fn circle(&self, who: Who, o: Oid) -> Option<Vec<(Who, Oid, u64, u64)>> {
        let waits_for = |who: Who| {
            let locks = self.waits.iter().filter(|w| w.who == who && self.is_exclusive(w.object));
            locks.map(|w| (w.object, w.since)).collect::<Vec<_>>()
        };
        if !self.is_exclusive(o) || !waits_for(who).is_empty() {
            return None;
        }
        let mut circle = vec![];
        let (mut at, mut wants, mut since) = (who, o, self.now);
        while circle.len() <= self.waits.len() {
            let hold = self.holds.iter().find(|h| h.ticket.object == wants)?;
            circle.push((at, wants, self.now - since, self.now - hold.since));
            if hold.who == who {
                return Some(circle);
            }
            let [(next, next_since)] = waits_for(hold.who)[..] else { return None };
            (at, wants, since) = (hold.who, next, next_since);
        }
        None
    }
}
