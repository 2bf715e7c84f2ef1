//! Messages sent to a session, kept until the client acknowledges them, within a quota of bytes. A
//! resume sends them again, and a Cancel can undo grants among them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    Body, FencingToken, Input, Message, ObjectId, Owner, RequestId, Space, Time, arena::Idx,
    object::Object, session::Session, undoable::Undoable,
};

/// The messages of a session, numbered from 1 without gaps.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outgoing {
    last_seq: u64,
    /// The last message that the client is known to have.
    acknowledged: u64,
    /// The kept messages. The oldest may be acknowledged, and not removed yet.
    sent: VecDeque<Sent>,
    /// The bytes of `sent`.
    weight: usize,
    /// The replies in `sent` that can be undone, by request.
    undoable: Undoable,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub message: Message,
    pub undo: Option<Undo>,
    /// The message's bytes.
    weight: usize,
}

/// How to undo a grant that its client never learnt of.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Undo {
    pub object: Idx<Object>,
    pub id: ObjectId,
    pub owner: Owner,
    /// `None`: an unowned permit.
    pub token: Option<FencingToken>,
    /// For a condition wait: the condition, and the number of the notify.
    pub notified: Option<(Idx<Object>, u64)>,
    /// Release all levels of an RLock, as a condition wait acquires them.
    pub whole: bool,
}

impl Outgoing {
    pub fn next_seq(&self) -> u64 {
        self.last_seq + 1
    }

    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Whether all messages after `received` are kept, and `received` is plausible: not above the
    /// last message, nor below what was acknowledged.
    pub fn has_all_after(&self, received: u64) -> bool {
        let oldest = self.sent.front().map_or(self.next_seq(), |sent| sent.message.seq);
        let received_to = oldest.max(self.acknowledged + 1) - 1;
        (received_to..=self.last_seq).contains(&received)
    }

    /// Numbers and keeps a message. Returns it, and its bytes.
    pub fn keep(&mut self, body: Body, undo: Option<Undo>) -> (Message, usize) {
        self.last_seq += 1;
        let message = Message { seq: self.last_seq, body };
        if undo.is_some()
            && let Body::Reply(request, _) = &message.body
        {
            self.undoable.insert(*request, message.seq);
        }
        let weight = message.weight();
        self.weight += weight;
        self.sent.push_back(Sent { message: message.clone(), undo, weight });
        (message, weight)
    }

    /// The client has all messages up to `seq`. Removes at most `most` of them, and returns their
    /// bytes.
    pub fn acknowledge(&mut self, seq: u64, most: u32) -> usize {
        self.acknowledged = self.acknowledged.max(seq.min(self.last_seq));
        (0..most).map_while(|_| self.forget_acknowledged()).sum()
    }

    pub fn forget_acknowledged(&mut self) -> Option<usize> {
        let known = self.sent.front()?.message.seq <= self.acknowledged;
        known.then(|| self.forget_oldest()).flatten()
    }

    pub fn forget_oldest(&mut self) -> Option<usize> {
        let sent = self.sent.pop_front()?;
        Some(self.forgotten(&sent))
    }

    pub fn forget_latest(&mut self) -> Option<(Sent, usize)> {
        let sent = self.sent.pop_back()?;
        let weight = self.forgotten(&sent);
        Some((sent, weight))
    }

    fn forgotten(&mut self, sent: &Sent) -> usize {
        if sent.undo.is_some()
            && let Body::Reply(request, _) = &sent.message.body
        {
            self.undoable.remove(*request);
        }
        self.weight -= sent.weight;
        sent.weight
    }

    pub fn get(&self, seq: u64) -> Option<&Message> {
        let first = self.sent.front()?.message.seq;
        let at = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.sent.get(at).map(|sent| &sent.message)
    }

    /// How to undo a request's grant, if it isn't acknowledged; and the kept reply, for the caller
    /// to replace.
    pub fn take_undo(&mut self, request: RequestId) -> Option<(&mut Body, Undo)> {
        let seq = self.undoable.get(request).filter(|&seq| seq > self.acknowledged)?;
        self.undoable.remove(request);
        let first = self.sent.front()?.message.seq;
        let sent = self.sent.get_mut(usize::try_from(seq - first).ok()?)?;
        Some((&mut sent.message.body, sent.undo.take()?))
    }

    /// Asserts the invariants, and returns the bytes.
    pub fn check(&self, ended: bool) -> usize {
        if let Some(last) = self.sent.back().map(|sent| sent.message.seq) {
            let seqs = self.sent.iter().rev().map(|sent| sent.message.seq);
            assert!(seqs.eq((0..self.sent.len() as u64).map(|back| last - back)), "no gap");
            assert!(last == self.last_seq || ended, "the latest messages are kept");
        }
        let undoable = self.sent.iter().filter(|sent| sent.undo.is_some()).count();
        assert_eq!(undoable, self.undoable.len(), "replies that can be undone");
        let weight = self.sent.iter().map(|sent| sent.weight).sum();
        assert_eq!(self.weight, weight, "bytes of messages kept");
        weight
    }
}

impl Space {
    /// There is no room for the state: drops the unacknowledged messages of each connected session
    /// except the latest `most` bytes, as if that were its quota.
    pub fn handle_shortage(&mut self, now: Time, most: usize) {
        self.call(now, Input::Shortage { most });
        // Other sessions' messages must still be sent, or their undelivered grants undone.
        let connected =
            |s: &&mut Session| !s.ended && s.grace_until.is_none() && s.resend.is_none();
        for session in self.sessions.values_mut().filter(connected) {
            while session.outgoing.weight() > most
                && let Some(weight) = session.outgoing.forget_oldest()
            {
                self.unacknowledged -= weight;
            }
        }
    }
}
