//! The model's sessions: opening, disconnect and resume, and their end.

use syncd_core::Cause;

use super::{Model, No, Said, Sent, Session, Sid, Undo, Word, cause_number};

impl Model {
    /// Opens a session, if there may be one more.
    pub fn open(&mut self) -> Option<Sid> {
        let open = self.sessions.iter().filter(|session| !session.over).count();
        if open >= self.config.limits.sessions {
            return None;
        }
        self.sessions.push(Session {
            over: false,
            grace_until: None,
            references: vec![],
            last_request: 0,
            sent: vec![],
            unsent: None,
            last_seq: 0,
            acknowledged: 0,
        });
        Some(self.sessions.len() - 1)
    }

    /// Its grace begins, unless it has.
    pub fn disconnect(&mut self, s: Sid) {
        let session = &mut self.sessions[s];
        if !session.over {
            let until = self.now + self.config.grace.as_nanos() as u64;
            if session.grace_until.is_none() {
                session.unsent = Some(session.last_seq + 1);
            }
            session.grace_until.get_or_insert(until);
        }
    }

    /// Its daemon was killed: it waits for its process without a limit.
    pub fn restored(&mut self, s: Sid) {
        let session = &mut self.sessions[s];
        if session.grace_until.replace(u64::MAX).is_none() {
            session.unsent = Some(session.last_seq + 1);
        }
    }

    /// Its last request, and the numbers of the messages that are sent again.
    pub fn resume(&mut self, s: Sid, received: u64) -> Result<u64, No> {
        let session = &mut self.sessions[s];
        if session.over {
            return Err(No::NotFound);
        }
        let first_kept = session.sent.first().map_or(session.last_seq + 1, |sent| sent.seq);
        // An attempt from before a later one, by which more was acknowledged.
        if received < session.acknowledged {
            return Err(No::Broken);
        }
        if received > session.last_seq || received < first_kept - 1 {
            self.lost(s, Cause::Misbehaved);
            return Err(No::Broken);
        }
        session.grace_until = None;
        session.unsent = None;
        session.sent.retain(|sent| sent.seq > received);
        session.acknowledged = received;
        Ok(session.last_request)
    }

    /// Ends a session that said no Goodbye.
    pub fn lost(&mut self, s: Sid, cause: Cause) -> bool {
        let alive = !self.sessions[s].over;
        if alive {
            self.say(s, Said::End(cause_number(cause)), None);
            self.end(s, cause);
        }
        alive
    }

    pub(super) fn goodbye(&mut self, s: Sid, id: u64) {
        self.say(s, Said::Reply(id, Word::Done(0)), None);
        self.end(s, Cause::Left);
    }

    /// First it leaves all queues, then unowned permits that it never heard of return, then it
    /// abandons its holds, then its references go.
    fn end(&mut self, s: Sid, cause: Cause) {
        self.sessions[s].over = true;
        self.sessions[s].grace_until = None;
        while let Some(wait) = self.first_wait(|w| w.who.session == s) {
            self.vanish(wait);
        }
        if let Some(unsent) = self.sessions[s].unsent {
            let late = self.said.iter().filter(|(whom, ..)| *whom == s);
            let late = late.map(|(_, said, undo)| (said.clone(), *undo));
            let sent = std::mem::take(&mut self.sessions[s].sent);
            let sent = sent.into_iter().filter(|sent| sent.seq >= unsent);
            let unheard: Vec<_> = sent.map(|sent| (sent.said, sent.undo)).chain(late).collect();
            for (said, undo) in unheard.into_iter().rev() {
                if let Some(undo @ Undo { ticket: None, .. }) = undo {
                    self.undo(undo, left_of(&said));
                }
            }
        }
        while let Some(hold) = self.holds.iter().position(|h| h.who.session == s) {
            self.abandon(hold, cause);
        }
        for o in 0..self.objects.len() {
            self.leave_barrier(s, o);
        }
        let mut references = std::mem::take(&mut self.sessions[s].references);
        references.sort_unstable();
        references.dedup();
        references.into_iter().for_each(|o| self.dereferenced(o));
    }

    /// The wait with the lowest request id.
    pub(super) fn first_wait(&self, which: impl Fn(&super::Wait) -> bool) -> Option<usize> {
        let waits = self.waits.iter().enumerate().filter(|(_, wait)| which(wait));
        waits.min_by_key(|(_, wait)| wait.request).map(|(at, _)| at)
    }

    pub(super) fn cancel(&mut self, s: Sid, request: u64, give_back: bool) {
        if let Some(wait) = self.first_wait(|w| (w.who.session, w.request) == (s, request)) {
            return if give_back { self.give_up(wait) } else { self.recall(wait) };
        }
        let kept = self.sessions[s].sent.iter_mut().rev();
        // A second request of that number was refused, which changes nothing.
        let kept = kept.filter_map(|Sent { said, undo, .. }| match said {
            Said::Reply(id, word) if *id == request && undo.is_some() => Some((word, undo)),
            _ => None,
        });
        if give_back
            && let Some((word, undo)) = kept.take(1).next()
            && let Some(Undo { who, object, ticket, woken }) = undo.take()
        {
            let told = match word {
                Word::Granted { left, .. } => *left,
                _ => unreachable!("only grants can be undone"),
            };
            *word = Word::Refused((!self.objects[object].gone).then_some(object), No::Cancelled);
            self.undo(Undo { who, object, ticket, woken }, told);
        }
    }
}

/// What a message told of an abandonment.
fn left_of(said: &Said) -> Option<super::Left> {
    match said {
        Said::Reply(_, Word::Granted { left, .. }) => *left,
        _ => None,
    }
}
